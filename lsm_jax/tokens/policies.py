"""Artificial masks: which tokens training hides, with exact counts.

AIM (LSM-2, section 3 of SPEC) draws one of three policies per window: random tokens 80 %, time slices
50 % (every channel at chosen times), sensor slices 50 % (chosen channels all day). `gap` and `forecast`
hide a stretch of time, as the interpolation and extrapolation tasks do.

Counts are exact shares of a pool of units. The pool `grid` is every unit of the window, the paper's
reading; the pool `observed`, our default, counts only units this window recorded, so that a device
with two channels has one of them hidden rather than, half of the time, both or none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.errors import UserError, nearest
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.selection import lowest, order_keys

POOLS = ("observed", "grid")
Share = Float[Array, ""] | float
_GOLDEN = np.uint32(0x9E3779B9)  # 2^32 / golden ratio


def exact_share(key: PRNGKeyArray, eligible: Bool[Array, " n"], share: Share) -> Bool[Array, " n"]:
    """Exactly round(share * number eligible) of the eligible units, uniformly at random."""
    scores = jnp.where(eligible, jax.random.uniform(key, eligible.shape), jnp.inf)
    count = jnp.round(share * eligible.sum()).astype(jnp.int32)
    return lowest(order_keys(scores), count) & eligible


def _random(key: PRNGKeyArray, pool: Bool[Array, "p g"], share: Share) -> Bool[Array, "p g"]:
    return exact_share(key, pool.reshape(-1), share).reshape(pool.shape)


def _time(key: PRNGKeyArray, pool: Bool[Array, "p g"], share: Share) -> Bool[Array, "p g"]:
    return jnp.broadcast_to(exact_share(key, pool.any(axis=1), share)[:, None], pool.shape)


def _sensor(key: PRNGKeyArray, pool: Bool[Array, "p g"], share: Share) -> Bool[Array, "p g"]:
    by_channel = jnp.broadcast_to(exact_share(key, pool.any(axis=0), share)[None, :], pool.shape)
    # A window of one channel has nothing to infer it from: hide half of its time instead.
    return jnp.where(pool.any(axis=0).sum() > 1, by_channel, _time(key, pool, share))


def _span(pool: Bool[Array, "p g"]) -> tuple[Array, Array]:
    """First and one past the last recorded patch."""
    recorded = pool.any(axis=1)
    patches = recorded.shape[0]
    return jnp.argmax(recorded), patches - jnp.argmax(recorded[::-1])


def _stretch(key: PRNGKeyArray, pool: Bool[Array, "p g"], share: Share) -> tuple[Array, Array, Array]:
    """The recorded span and a length: log-uniform from one patch to `share` of the span, rounded to whole patches."""
    first, end = _span(pool)
    longest = jnp.maximum(jnp.round(share * (end - first)), 1.0)
    length = jnp.floor((longest + 1.0) ** jax.random.uniform(key))  # k of log((k + 1) / k) of all draws
    return first, end, jnp.minimum(length, longest).astype(jnp.int32)  # a power may be rounded up past `longest`


def _gap(key: PRNGKeyArray, pool: Bool[Array, "p g"], share: Share) -> Bool[Array, "p g"]:
    length_key, start_key = jax.random.split(key)
    first, end, length = _stretch(length_key, pool, share)
    start = jax.random.randint(start_key, (), first, jnp.maximum(end - length, first) + 1)
    patch = jnp.arange(pool.shape[0])
    return jnp.broadcast_to(((patch >= start) & (patch < start + length))[:, None], pool.shape)


def _forecast(key: PRNGKeyArray, pool: Bool[Array, "p g"], share: Share) -> Bool[Array, "p g"]:
    _, end, length = _stretch(key, pool, share)
    return jnp.broadcast_to((jnp.arange(pool.shape[0]) >= end - length)[:, None], pool.shape)


POLICIES: Mapping[str, Callable[[PRNGKeyArray, Bool[Array, "p g"], Share], Bool[Array, "p g"]]] = {
    "random": _random,
    "time": _time,
    "sensor": _sensor,
    "gap": _gap,
    "forecast": _forecast,
}


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of mask policies.

    Attributes:
      policies: (name, share hidden, weight) of each; weights need not sum to one.
      share_of: `observed` or `grid`, what the shares are counted over.
    """

    policies: tuple[tuple[str, float, float], ...] = (("random", 0.8, 1.0), ("time", 0.5, 1.0), ("sensor", 0.5, 1.0))
    share_of: str = "observed"

    def __post_init__(self) -> None:
        for name, share, weight in self.policies:
            if name not in POLICIES:
                raise UserError(f"masking policy {name!r} is unknown.{nearest(name, POLICIES)}")
            if not 0 < share <= 1 or weight < 0:
                raise UserError(f"masking policy {name!r}: share {share} must lie in (0, 1], weight {weight} be >= 0.")
        if self.share_of not in POOLS:
            raise UserError(f"masking.share_of={self.share_of!r} is unknown; choose one of {', '.join(POOLS)}.")
        if not any(weight > 0 for _, _, weight in self.policies):
            raise UserError("masking.policies: every weight is zero, so nothing would ever be hidden.")

    @property
    def bounds(self) -> Float[np.ndarray, " m"]:
        """Where in [0, 1] the draws of each policy end; neighbours hide about alike."""
        weights = np.array([weight for _, _, weight in self.by_share])
        return np.cumsum(weights) / weights.sum()

    @property
    def by_share(self) -> tuple[tuple[str, float, float], ...]:
        """The policies from the one that hides least."""
        return tuple(sorted(self.policies, key=lambda policy: policy[1]))

    def hidden_shares(
        self, random: np.random.Generator, shape: tuple[int, ...], patches: int
    ) -> Float[np.ndarray, "*shape"]:
        """Shares of a window's tokens that masks of this mixture hide, as windows of `patches` draw them.

        Windows along the last axis are numbered one after the other, as those of a row are.
        """
        names, shares, _ = (np.array(column) for column in zip(*self.by_share, strict=True))
        starts = random.integers(2**32, size=(*shape[:-1], 1), dtype=np.uint32)
        draws = (starts + np.arange(shape[-1], dtype=np.uint32) * _GOLDEN) / 2.0**32
        drawn = np.searchsorted(self.bounds[:-1], draws, side="right")
        # The length of a gap or forecast, as `_stretch` draws it.
        lengths = np.floor((np.maximum(np.round(shares[drawn] * patches), 1.0) + 1.0) ** random.random(shape))
        return np.where(np.isin(names, ("gap", "forecast"))[drawn], lengths / patches, shares[drawn])


def policy_draws(key: PRNGKeyArray, window_id: Int[Array, " b"]) -> Float[Array, " b"]:
    """A number in [0, 1) for each window that chooses its policy: multiples of the golden ratio from a random start.

    Each is uniform. Those of windows numbered one after the other lie as evenly as may be (Weyl's sequence: the widest
    gap is at most 2.62 times the narrowest), so that the windows of a row draw each policy about as often as its weight
    says, and rows hide alike.

    Args:
      key: of the step.
      window_id: numbers of the windows, one after the other along a row.
    """
    start = jax.random.bits(key, (), jnp.uint32)
    turned = start + window_id.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    return (turned >> 8).astype(jnp.float32) / 2.0**24  # 24 bits, since float32 would round more of them up to 1


def artificial_mask(
    key: PRNGKeyArray, draw: Float[Array, ""], observed: Bool[Array, " n"], grid: TokenGrid, mixture: Mixture
) -> Bool[Array, " n"]:
    """The artificial mask of one window: a policy by its weight, its tokens by exact count.

    Args:
      key: the window's own key, so that masks do not depend on host or mesh.
      draw: in [0, 1), chooses the policy.
      observed: which tokens were recorded (the complement of the inherited mask).

    Returns:
      True where a token is hidden for training. Under the pool `grid` it may cover missing tokens too.
    """
    pool = observed.reshape(grid.patches, grid.groups)
    if mixture.share_of == "grid":
        pool = jnp.ones_like(pool)
    names, shares, _ = zip(*mixture.by_share, strict=True)
    choice = (draw >= jnp.asarray(mixture.bounds[:-1])).sum()
    share = jnp.array(shares)[choice]
    # A policy listed with several shares is drawn once: choosing tokens is what masks cost.
    kinds = list(dict.fromkeys(names))
    masks = jnp.stack([POLICIES[kind](key, pool, share) for kind in kinds])
    return masks[jnp.array([kinds.index(name) for name in names])[choice]].reshape(-1)
