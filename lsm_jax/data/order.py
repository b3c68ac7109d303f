"""The data order: which window stands at which position, as a pure function of (seed, position).

Nothing is stored and nothing is drawn in sequence: position `p` of the endless stream of windows is looked up by
arithmetic, so resuming costs nothing, and the global batch `[p, p + batch_size)` is the same whether one host takes
all of it or eight take their rows of it.

Several datasets are interleaved by a fixed schedule whose quotas are their weights; a dataset's k-th place in it
takes the (k mod n)-th element of a permutation of its n windows, a new one each epoch k // n. Every window of a
dataset therefore comes exactly once in each of the dataset's epochs. The permutation is a Feistel network over
Z_a x Z_b with a*b just above n, walking on where it lands outside (Black & Rogaway, "Ciphers with arbitrary finite
domains", 2002). It is written out here, and tested against stored values, because a run that resumes under another
release of a library must meet the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt64

_ROUNDS = 16  # with 8, some orders of five windows came a fifth more often than others
_LONGEST_SCHEDULE = 2**16  # weights are kept to this resolution
_CROP = 2**32  # a stream of random numbers beside the datasets' own

_Integers = Int[np.ndarray, " n"]


class DataOrder:
    """The endless order of windows of one or several datasets.

    Args:
      seed: another seed, another order.
      sizes: number of windows of each dataset.
      weights: share of positions each dataset gets; 0 leaves it out.
    """

    def __init__(self, seed: int, sizes: Sequence[int], weights: Sequence[float] | Float[np.ndarray, " d"]) -> None:
        self._seed = seed
        self._sizes = np.asarray(sizes, np.int64)
        shares = np.asarray(weights, np.float64) / np.sum(weights)
        if any(share > 0 and size < 1 for share, size in zip(shares, self._sizes, strict=True)):
            raise ValueError("a dataset without windows cannot have a weight")
        # As long as all the windows together, where that is short: then weights by size give exact epochs over all.
        self._quotas = _quotas(shares, period=min(int(self._sizes.sum()), _LONGEST_SCHEDULE))
        self._schedule, self._rank = _schedule(self._quotas)

    def lookup(self, positions: _Integers) -> tuple[_Integers, _Integers]:
        """The dataset and the window within it at these positions (>= 0)."""
        dataset, epoch, index = self._drawn(positions)
        return dataset, permuted(index, self._sizes[dataset], keys(self._seed, dataset, epoch))

    def epochs(self, positions: _Integers) -> _Integers:
        """The epoch, of its dataset, that each of these positions lies in."""
        return self._drawn(positions)[1]

    def _drawn(self, positions: _Integers) -> tuple[_Integers, _Integers, _Integers]:
        """Dataset, its epoch, and the place within that epoch."""
        cycle, place = np.divmod(np.asarray(positions, np.int64), len(self._schedule))
        dataset = self._schedule[place]
        epoch, index = np.divmod(cycle * self._quotas[dataset] + self._rank[place], self._sizes[dataset])
        return dataset, epoch, index

    def uniform(self, positions: _Integers, bound: _Integers) -> _Integers:
        """A random integer in [0, bound) for each position, independent of the order: where to crop a window."""
        noise = keys(self._seed, np.full_like(positions, _CROP), positions)
        return (noise % np.maximum(bound, 1).astype(np.uint64)).astype(np.int64)


def permuted(index: _Integers, size: _Integers, key: UInt64[np.ndarray, " n"]) -> _Integers:
    """Where a keyed permutation of range(size) sends each index; element by element of the three arrays."""
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
    """A 64-bit key for each (seed, stream, counter)."""
    seeded = _mix(np.array([seed % 2**64], np.uint64))
    return _mix(_mix(seeded ^ stream.astype(np.uint64)) ^ counter.astype(np.uint64))


def _feistel(
    value: UInt64[np.ndarray, " n"],
    left_size: UInt64[np.ndarray, " n"],
    right_size: UInt64[np.ndarray, " n"],
    key: UInt64[np.ndarray, " n"],
) -> UInt64[np.ndarray, " n"]:
    """A bijection of Z_(left_size * right_size): each half is shifted by a hash of the other, in turn."""
    left, right = np.divmod(value, right_size)
    round_keys = _mix(key + np.arange(_ROUNDS, dtype=np.uint64)[:, None])
    for left_key, right_key in zip(round_keys[::2], round_keys[1::2], strict=True):
        left = (left + _mix(right ^ left_key)) % left_size
        right = (right + _mix(left ^ right_key)) % right_size
    return left * right_size + right


def _mix(value: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """SplitMix64 (Steele, Lea & Flood, 2014): the increment, then its finaliser; wraps modulo 2^64."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _quotas(shares: Float[np.ndarray, " d"], period: int) -> Int[np.ndarray, " d"]:
    """Whole numbers near `shares * period` that sum to about `period`, at least 1 for every share above 0."""
    exact = shares * period
    quotas = np.where(shares > 0, np.maximum(np.floor(exact + 1e-9), 1), 0).astype(np.int64)
    short = max(period - int(quotas.sum()), 0)
    quotas[np.argsort(quotas - exact, kind="stable")[:short]] += 1
    return quotas // math.gcd(*quotas.tolist())


def _schedule(quotas: Int[np.ndarray, " d"]) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"]]:
    """One cycle of datasets, each spread evenly over it, and each place's rank among its dataset's places."""
    dataset = np.repeat(np.arange(len(quotas)), quotas)
    rank = np.concatenate([np.arange(quota) for quota in quotas])
    order = np.argsort((rank + 0.5) / quotas[dataset], kind="stable")
    return dataset[order], rank[order]
