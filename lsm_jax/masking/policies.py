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
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from lsm_jax.errors import UserError, nearest
from lsm_jax.masking.selection import lowest, order_keys
from lsm_jax.masking.tokens import TokenGrid

POOLS = ("observed", "grid")
Share = Float[Array, ""] | float


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
    """The recorded span and a length up to `share` of it, at least one patch, short ones likelier."""
    first, end = _span(pool)
    longest = jnp.maximum(share * (end - first), 1.0)
    return first, end, jnp.ceil(longest ** jax.random.uniform(key)).astype(jnp.int32)


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
      pool: `observed` or `grid`, what the shares are counted over.
    """

    policies: tuple[tuple[str, float, float], ...] = (("random", 0.8, 1.0), ("time", 0.5, 1.0), ("sensor", 0.5, 1.0))
    pool: str = "observed"

    def __post_init__(self) -> None:
        for name, share, weight in self.policies:
            if name not in POLICIES:
                raise UserError(f"masking policy {name!r} is unknown.{nearest(name, POLICIES)}")
            if not 0 < share <= 1 or weight < 0:
                raise UserError(f"masking policy {name!r}: share {share} must lie in (0, 1], weight {weight} be >= 0.")
        if self.pool not in POOLS:
            raise UserError(f"masking.pool={self.pool!r} is unknown; choose one of {', '.join(POOLS)}.")
        if not any(weight > 0 for _, _, weight in self.policies):
            raise UserError("masking.policies: every weight is zero, so nothing would ever be hidden.")

    def hidden_shares(
        self, random: np.random.Generator, shape: tuple[int, ...], patches: int
    ) -> Float[np.ndarray, "*shape"]:
        """Shares of a window's tokens that masks of this mixture hide, as windows of `patches` draw them."""
        names, shares, weights = (np.array(column) for column in zip(*self.policies, strict=True))
        drawn = random.choice(len(names), shape, p=weights / weights.sum())
        # The length of a gap or forecast is log-uniform up to its share of the window.
        lengths = np.maximum(shares[drawn] * patches, 1.0) ** random.random(shape)
        return np.where(np.isin(names, ("gap", "forecast"))[drawn], lengths / patches, shares[drawn])


def artificial_mask(
    key: PRNGKeyArray, observed: Bool[Array, " n"], grid: TokenGrid, mixture: Mixture
) -> Bool[Array, " n"]:
    """The artificial mask of one window: a policy drawn by weight, its tokens by exact count.

    Args:
      key: the window's own key, so that masks do not depend on batch, host or mesh.
      observed: which tokens were recorded (the complement of the inherited mask).

    Returns:
      True where a token is hidden for training. Under the pool `grid` it may cover missing tokens too.
    """
    choice_key, mask_key = jax.random.split(key)
    pool = observed.reshape(grid.patches, grid.groups)
    if mixture.pool == "grid":
        pool = jnp.ones_like(pool)
    names, shares, weights = zip(*mixture.policies, strict=True)
    choice = jax.random.categorical(choice_key, jnp.log(jnp.array(weights)))
    share = jnp.array(shares)[choice]
    # A policy listed with several shares is drawn once: choosing tokens is what masks cost.
    kinds = list(dict.fromkeys(names))
    masks = jnp.stack([POLICIES[kind](mask_key, pool, share) for kind in kinds])
    return masks[jnp.array([kinds.index(name) for name in names])[choice]].reshape(-1)
