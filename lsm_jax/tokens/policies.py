"""The masks of training: which observed tokens are hidden from the model.

AIM (LSM-2, arXiv 2506.05321) draws one of three policies per window: random tokens 80 %, time slices 50 % (every
channel at random times), sensor slices 50 % (random channels all day). `gap` and `forecast` hide a block of time, as
the interpolation and extrapolation tasks do (`tasks`).

Shares are exact counts of eligible tokens, times or channels. With `masking.share_of` "grid" all are eligible (the
paper). With "observed", the default, only those the window recorded: otherwise a window of two channels would often
have both or neither hidden.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.config import MaskingConfig
from lsm_jax.errors import UserError, nearest
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.selection import order_keys, smallest_k_mask

Share = Float[Array, ""] | float
_GOLDEN = np.uint32(0x9E3779B9)  # 2^32 / golden ratio


def exact_share(key: PRNGKeyArray, eligible: Bool[Array, " n"], share: Share) -> Bool[Array, " n"]:
    """Exactly round(share * number eligible) of the eligible elements, uniformly at random."""
    scores = jnp.where(eligible, jax.random.uniform(key, eligible.shape), jnp.inf)
    count = jnp.round(share * eligible.sum()).astype(jnp.int32)
    return smallest_k_mask(order_keys(scores), count) & eligible


def _random(key: PRNGKeyArray, eligible: Bool[Array, "p g"], share: Share) -> Bool[Array, "p g"]:
    return exact_share(key, eligible.reshape(-1), share).reshape(eligible.shape)


def _time(key: PRNGKeyArray, eligible: Bool[Array, "p g"], share: Share) -> Bool[Array, "p g"]:
    return jnp.broadcast_to(exact_share(key, eligible.any(axis=1), share)[:, None], eligible.shape)


def _sensor(key: PRNGKeyArray, eligible: Bool[Array, "p g"], share: Share) -> Bool[Array, "p g"]:
    by_channel = jnp.broadcast_to(exact_share(key, eligible.any(axis=0), share)[None, :], eligible.shape)
    # A window of one channel would be hidden whole: hide part of its time instead.
    return jnp.where(eligible.any(axis=0).sum() > 1, by_channel, _time(key, eligible, share))


def _block_length(key: PRNGKeyArray, eligible: Bool[Array, "p g"], share: Share) -> tuple[Array, Array, Array]:
    """First eligible patch, one past the last, and a length: log-uniform from one patch to `share` of that span."""
    times = eligible.any(axis=1)
    first, end = jnp.argmax(times), times.shape[0] - jnp.argmax(times[::-1])
    longest = jnp.maximum(jnp.round(share * (end - first)), 1.0)
    length = jnp.floor((longest + 1.0) ** jax.random.uniform(key))  # k with probability ~ log((k + 1) / k)
    return first, end, jnp.minimum(length, longest).astype(jnp.int32)  # the power may round up past `longest`


def _gap(key: PRNGKeyArray, eligible: Bool[Array, "p g"], share: Share) -> Bool[Array, "p g"]:
    length_key, start_key = jax.random.split(key)
    first, end, length = _block_length(length_key, eligible, share)
    start = jax.random.randint(start_key, (), first, jnp.maximum(end - length, first) + 1)
    patch = jnp.arange(eligible.shape[0])
    return jnp.broadcast_to(((patch >= start) & (patch < start + length))[:, None], eligible.shape)


def _forecast(key: PRNGKeyArray, eligible: Bool[Array, "p g"], share: Share) -> Bool[Array, "p g"]:
    _, end, length = _block_length(key, eligible, share)
    return jnp.broadcast_to((jnp.arange(eligible.shape[0]) >= end - length)[:, None], eligible.shape)


POLICIES: Mapping[str, Callable[[PRNGKeyArray, Bool[Array, "p g"], Share], Bool[Array, "p g"]]] = {
    "random": _random,
    "time": _time,
    "sensor": _sensor,
    "gap": _gap,
    "forecast": _forecast,
}


@dataclasses.dataclass(frozen=True)
class PolicyMixture:
    """The configured mask policies.

    Raises:
      UserError: an unknown policy, or a share or weight out of range.
    """

    masking: MaskingConfig

    def __post_init__(self) -> None:
        for name, share, weight in self.masking.policies:
            if name not in POLICIES:
                raise UserError(f"masking policy {name!r} is unknown.{nearest(name, POLICIES)}")
            if not 0 < share <= 1 or weight < 0:
                raise UserError(f"masking policy {name!r}: share {share} must lie in (0, 1], weight {weight} be >= 0.")
        if not any(weight > 0 for _, _, weight in self.masking.policies):
            raise UserError("masking.policies: every weight is zero, so nothing would ever be hidden.")

    @property
    def by_share(self) -> tuple[tuple[str, float, float], ...]:
        """(name, share, weight) of the policies, from the one that hides least."""
        return tuple(sorted(self.masking.policies, key=lambda policy: policy[1]))

    @property
    def bounds(self) -> Float[np.ndarray, " m"]:
        """Upper end of each policy's interval of [0, 1], in the order of `by_share`."""
        weights = np.array([weight for _, _, weight in self.by_share])
        return np.cumsum(weights) / weights.sum()

    def hidden_shares(
        self, random: np.random.Generator, shape: tuple[int, ...], patches: int
    ) -> Float[np.ndarray, "*shape"]:
        """Samples the share of a window's tokens that a mask hides; for choosing row lengths.

        Args:
          shape: windows along the last axis have consecutive ids, like those of a row.
          patches: recorded patches of a window.
        """
        names, shares, _ = (np.array(column) for column in zip(*self.by_share, strict=True))
        starts = random.integers(2**32, size=(*shape[:-1], 1), dtype=np.uint32)
        draws = (starts + np.arange(shape[-1], dtype=np.uint32) * _GOLDEN) / 2.0**32
        policy = np.searchsorted(self.bounds[:-1], draws, side="right")
        # The length of a gap or forecast, as in `_block_length`.
        lengths = np.floor((np.maximum(np.round(shares[policy] * patches), 1.0) + 1.0) ** random.random(shape))
        return np.where(np.isin(names, ("gap", "forecast"))[policy], lengths / patches, shares[policy])


def policy_draws(key: PRNGKeyArray, window_id: Int[Array, " b"]) -> Float[Array, " b"]:
    """A uniform number in [0, 1) per window that chooses its policy: multiples of the golden ratio from a random start.

    Numbers of consecutive windows are evenly spaced (a Weyl sequence), so the windows of a row draw each policy about
    as often as its weight says, and rows have similar numbers of visible tokens.

    Args:
      key: of the step.
      window_id: consecutive along a row.
    """
    start = jax.random.bits(key, (), jnp.uint32)
    sequence = start + window_id.astype(jnp.uint32) * jnp.uint32(_GOLDEN)
    return (sequence >> 8).astype(jnp.float32) / 2.0**24  # 24 bits: float32 would round more of them up to 1


def artificial_mask(
    key: PRNGKeyArray, draw: Float[Array, ""], observed: Bool[Array, " n"], grid: TokenGrid, mixture: PolicyMixture
) -> Bool[Array, " n"]:
    """The artificial mask of one window: True where a token is hidden for training.

    Args:
      key: the window's own key, so that masks do not depend on host or mesh.
      draw: in [0, 1), chooses the policy.
      observed: the observed tokens (the complement of the inherited mask). With `share_of` "grid" the result may
        include others.
    """
    eligible = observed.reshape(grid.patches, grid.groups)
    if mixture.masking.share_of == "grid":
        eligible = jnp.ones_like(eligible)
    names, shares, _ = zip(*mixture.by_share, strict=True)
    choice = (draw >= jnp.asarray(mixture.bounds[:-1])).sum()
    share = jnp.array(shares)[choice]
    # A policy listed with several shares is computed once: selecting tokens is the expensive part.
    kinds = list(dict.fromkeys(names))
    masks = jnp.stack([POLICIES[kind](key, eligible, share) for kind in kinds])
    return masks[jnp.array([kinds.index(name) for name in names])[choice]].reshape(-1)
