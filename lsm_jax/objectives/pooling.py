"""From token embeddings to one vector: a named choice of what is averaged over what."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int

from lsm_jax.errors import UserError, nearest
from lsm_jax.tokens.grid import TokenGrid

POOLINGS = {
    "mean": "mean over tokens",
    "mean_sd": "mean and standard deviation over tokens",
    "channel": "mean of each channel (or channel group), one after the other",
    "channel_mean_sd": "mean and standard deviation over the tokens of each channel (or channel group)",
    "hour": "mean of each hour of the window, one after the other",
}
HOUR = 60  # minutes


class TokenEmbeddings(NamedTuple):
    """The encoder's output for the observed tokens of windows, as JAX or NumPy arrays.

    Attributes:
      vectors: the encoded tokens, float32.
      token: the index of each in the window's grid; patch `token // groups`, channel group `token % groups`.
      real: False in slots that hold no token.
    """

    vectors: Float[Any, "b s d"]
    token: Int[Any, "b s"]
    real: Bool[Any, "b s"]


def pool(
    tokens: TokenEmbeddings, grid: TokenGrid, pooling: str, empty: float = 0.0, windows: int = 1
) -> Float[Any, "w f"]:
    """One vector per window.

    Args:
      tokens: of windows, or of rows of several.
      pooling: a name of `POOLINGS`.
      empty: what a part without a token (a channel, an hour, a whole window) gets.
      windows: of a row; `token` then counts through the grids of all of them.
    """
    check_pooling(pooling)
    xp = tokens.vectors.__array_namespace__()
    part, parts = _parts(tokens.token % grid.size if windows > 1 else tokens.token, grid, pooling)
    if windows > 1:
        part = tokens.token // grid.size * parts + part
    member = tokens.real[:, None] & (part[:, None] == xp.arange(windows * parts)[:, None])
    count = member.sum(axis=2)[:, :, None]
    vectors = xp.where(tokens.real[:, :, None], tokens.vectors, 0)
    member = member.astype(vectors.dtype)
    pooled = member @ vectors / xp.maximum(count, 1)
    if pooling.endswith("mean_sd"):
        deviations = vectors - xp.swapaxes(member, 1, 2) @ pooled  # from the mean of a token's own part
        sd = xp.sqrt(member @ deviations**2 / xp.maximum(count, 1))
        pooled = xp.concatenate([pooled, sd], axis=2)
    return xp.where(count > 0, pooled, empty).reshape(windows * vectors.shape[0], -1).astype(vectors.dtype)


def check_pooling(pooling: str) -> None:
    """UserError for a name that is not in `POOLINGS`."""
    if pooling not in POOLINGS:
        raise UserError(f"there is no pooling {pooling!r}.{nearest(pooling, POOLINGS)} Known: {', '.join(POOLINGS)}.")


def _parts(token: Int[Any, "b s"], grid: TokenGrid, pooling: str) -> tuple[Int[Any, "b s"], int]:
    """The part that each token belongs to, and the number of parts."""
    if pooling.startswith("channel"):
        return token % grid.groups, grid.groups
    if pooling == "hour":
        return token // grid.groups * grid.patch_minutes // HOUR, -(-grid.window_minutes // HOUR)
    return token * 0, 1
