"""The nearest visible patches before and after a token, in its own channel."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.rows import Rows


class Neighbour(NamedTuple):
    """The neighbour of each target token on one side.

    Attributes:
      token_index: its index as in `Rows.token_index`; of any token where there is no neighbour.
      patch: its patch in the window; -1 or P where there is none.
      exists: whether there is one.
    """

    token_index: Int[Array, "r q"]
    patch: Int[Array, "r q"]
    exists: Bool[Array, "r q"]


def patch_of(targets: Rows, grid: TokenGrid) -> Int[Array, "r q"]:
    """The patch of each target token within its window."""
    return (targets.token_index % grid.size) // grid.groups


def nearest(
    visible: Bool[Array, "b n"], targets: Rows, grid: TokenGrid, count: int
) -> tuple[list[Neighbour], list[Neighbour]]:
    """The `count` nearest visible patches before and after each target token, nearest first; never the token itself."""
    batch = visible.shape[0]
    index = jnp.arange(grid.patches, dtype=jnp.int32)[None, :, None]
    by_patch = visible.reshape(batch, grid.patches, grid.groups)
    # For each patch the last visible one up to it, and the first from it on.
    last = jax.lax.cummax(jnp.where(by_patch, index, -1), axis=1).reshape(batch, -1)
    first = jax.lax.cummin(jnp.where(by_patch, index, grid.patches), axis=1, reverse=True).reshape(batch, -1)
    base = targets.token_index // grid.size * grid.size + targets.token_index % grid.groups

    def token_at(patch: Int[Array, "r q"]) -> Int[Array, "r q"]:
        return base + jnp.clip(patch, 0, grid.patches - 1) * grid.groups

    def take(table: Int[Array, "b n"], patch: Int[Array, "r q"]) -> Int[Array, "r q"]:
        return dataclasses.replace(targets, token_index=token_at(patch)).take(table)

    back = ahead = patch_of(targets, grid)
    before, after = [], []
    for _ in range(count):
        back = jnp.where(back > 0, take(last, back - 1), -1)
        ahead = jnp.where(ahead < grid.patches - 1, take(first, ahead + 1), grid.patches)
        before.append(Neighbour(token_at(back), back, back >= 0))
        after.append(Neighbour(token_at(ahead), ahead, ahead < grid.patches))
    return before, after
