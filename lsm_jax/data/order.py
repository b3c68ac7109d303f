"""The data order: which window is at which position, as a pure function of (seed, position).

Nothing is stored and nothing is drawn in sequence. The window at position `p` of the endless stream is computed from
`p`, so resuming costs nothing, and the global batch `[p, p + batch_size)` is the same on one host or on eight.

Several datasets are interleaved by a fixed schedule whose quotas are their weights. The k-th turn of a dataset of n
windows takes element k mod n of a random permutation of them, with a new permutation for each epoch k // n. So every
window comes exactly once in each epoch of its dataset. The permutation is a Feistel network over Z_a x Z_b, a*b just
above n, applied again where it lands outside (cycle walking; Black & Rogaway, "Ciphers with arbitrary finite domains",
2002). It is written out here and tested against stored values, because a run that resumes under another release of a
library (Grain's `MapDataset.shuffle` makes the same promises) must continue in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt64

_ROUNDS = 16  # with 8 rounds, some orders of five windows were 20 % more frequent than others
_MAX_SCHEDULE = 2**16  # the resolution of weights
CROP_STREAM = 2**32  # no dataset has this number
PARTNER_STREAM = 2**32 + 1  # nor this one
_REPLACEMENT_STREAM = 2**33  # nor this one or a higher one

_Integers = Int[np.ndarray, " n"]


class DataOrder:
    """The endless order of windows of one or several datasets.

    Args:
      sizes: number of windows of each dataset.
      weights: share of positions that each dataset gets; 0 leaves it out.
    """

    def __init__(self, seed: int, sizes: Sequence[int], weights: Sequence[float] | Float[np.ndarray, " d"]) -> None:
        self._seed = seed
        self._sizes = np.asarray(sizes, np.int64)
        shares = np.asarray(weights, np.float64) / np.sum(weights)
        if any(share > 0 and size < 1 for share, size in zip(shares, self._sizes, strict=True)):
            raise ValueError("a dataset without windows cannot have a weight")
        # One cycle has as many positions as there are windows, if few: weights by size then give exact joint epochs.
        self._quotas = _quotas(shares, period=min(int(self._sizes.sum()), _MAX_SCHEDULE))
        self._schedule, self._rank = _schedule(self._quotas)

    def lookup(self, positions: _Integers) -> tuple[_Integers, _Integers]:
        """The dataset at each position (>= 0), and the window within that dataset."""
        dataset, epoch, index = self._locate(positions)
        return dataset, permuted(index, self._sizes[dataset], keys(self._seed, dataset, epoch))

    def epochs(self, positions: _Integers) -> _Integers:
        """The epoch of the dataset at each position."""
        return self._locate(positions)[1]

    def _locate(self, positions: _Integers) -> tuple[_Integers, _Integers, _Integers]:
        """The dataset at each position, the dataset's epoch, and the index within that epoch."""
        cycle, turn = np.divmod(np.asarray(positions, np.int64), len(self._schedule))
        dataset = self._schedule[turn]
        epoch, index = np.divmod(cycle * self._quotas[dataset] + self._rank[turn], self._sizes[dataset])
        return dataset, epoch, index

    def uniform(self, positions: _Integers, bound: _Integers, stream: int) -> _Integers:
        """A random integer in [0, bound) for each position, independent of the order and of other streams."""
        noise = keys(self._seed, np.full_like(positions, stream), positions)
        return (noise % np.maximum(bound, 1).astype(np.uint64)).astype(np.int64)

    def replacement(self, position: int, dataset: int, tries: int) -> int:
        """The window of a dataset that comes at a position where `tries` + 1 others could not be read.

        A hash of (seed, position, tries): it is the same on every host and leaves all other positions as they are.
        """
        noise = keys(self._seed, np.array([_REPLACEMENT_STREAM + tries]), np.array([position]))
        return int(noise[0] % np.uint64(self._sizes[dataset]))


def permuted(index: _Integers, size: _Integers, key: UInt64[np.ndarray, " n"]) -> _Integers:
    """The image of each index under the permutation of range(size) with this key, elementwise over three arrays."""
    left_size = np.maximum(np.ceil(np.sqrt(size)), 1).astype(np.uint64)
    right_size = -(-size // left_size.astype(np.int64)).astype(np.int64)
    right_size = np.maximum(right_size, 1).astype(np.uint64)
    result = _feistel(index.astype(np.uint64), left_size, right_size, key)
    outside = result >= size.astype(np.uint64)
    while outside.any():
        result[outside] = _feistel(result[outside], left_size[outside], right_size[outside], key[outside])
        outside = result >= size.astype(np.uint64)
    return result.astype(np.int64)


def keys(seed: int, stream: _Integers, counter: _Integers) -> UInt64[np.ndarray, " n"]:
    """A 64-bit hash of each (seed, stream, counter)."""
    seeded = _mix(np.array([seed % 2**64], np.uint64))
    return _mix(_mix(seeded ^ stream.astype(np.uint64)) ^ counter.astype(np.uint64))


def _feistel(
    value: UInt64[np.ndarray, " n"],
    left_size: UInt64[np.ndarray, " n"],
    right_size: UInt64[np.ndarray, " n"],
    key: UInt64[np.ndarray, " n"],
) -> UInt64[np.ndarray, " n"]:
    """A bijection of Z_(left_size * right_size): in turn, a hash of one half is added to the other."""
    left, right = np.divmod(value, right_size)
    round_keys = _mix(key + np.arange(_ROUNDS, dtype=np.uint64)[:, None])
    for left_key, right_key in zip(round_keys[::2], round_keys[1::2], strict=True):
        left = (left + _mix(right ^ left_key)) % left_size
        right = (right + _mix(left ^ right_key)) % right_size
    return left * right_size + right


def _mix(value: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """One step of SplitMix64 (Steele, Lea & Flood, 2014), modulo 2^64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _quotas(shares: Float[np.ndarray, " d"], period: int) -> Int[np.ndarray, " d"]:
    """Integers close to `shares * period` that sum to about `period`; at least 1 for every share above 0."""
    exact = shares * period
    quotas = np.where(shares > 0, np.maximum(np.floor(exact + 1e-9), 1), 0).astype(np.int64)
    missing = max(period - int(quotas.sum()), 0)
    quotas[np.argsort(quotas - exact, kind="stable")[:missing]] += 1
    return quotas // math.gcd(*quotas.tolist())


def _schedule(quotas: Int[np.ndarray, " d"]) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """The dataset of each turn in one cycle, spread evenly, and the rank of each turn among those of its dataset."""
    dataset = np.repeat(np.arange(len(quotas)), quotas)
    rank = np.concatenate([np.arange(quota) for quota in quotas])
    order = np.argsort((rank + 0.5) / quotas[dataset], kind="stable")
    return dataset[order], rank[order]
