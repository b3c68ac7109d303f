"""Draws in which some come up more often than others, and by how much: what is weighed by that stands for all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.tokens.selection import lowest, order_keys

_ROUNDS = 16  # each finds at least one more chance to be 1, most find many, until none is left to find


def chances(odds: Float[Array, " n"], chosen: Bool[Array, " n"], count: Int[Array, ""]) -> Float[Array, " n"]:
    """Chances of the chosen to be among `count` drawn: in proportion to their odds, none above 1; 0 for all others.

    Args:
      odds: above 0 where chosen.
    """
    odds = jnp.where(chosen, odds, 0)

    def settle(_: int, chance: Float[Array, " n"]) -> Float[Array, " n"]:
        sure = chance >= 1
        rest = jnp.where(sure, 0, odds).sum()
        scale = (count - sure.sum()) / jnp.where(rest > 0, rest, 1)
        return jnp.where(sure, 1, jnp.minimum(odds * scale, 1))

    settled = jax.lax.fori_loop(0, _ROUNDS, settle, jnp.zeros_like(odds))
    return jnp.where(chosen & (count >= chosen.sum()), 1, settled)


def draw(key: PRNGKeyArray, chance: Float[Array, " n"], count: Int[Array, ""]) -> Bool[Array, " n"]:
    """Exactly `count` elements, each drawn with nearly its chance (Pareto sampling; Rosén, 1997)."""
    drawn = jax.random.uniform(key, chance.shape)
    rank = drawn / (1 - drawn) * (1 - chance) / jnp.where(chance > 0, chance, 1)
    return lowest(order_keys(jnp.where(chance > 0, rank, jnp.inf)), count)
