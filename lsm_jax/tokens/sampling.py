"""Unequal-probability sampling without replacement, and the inclusion probabilities to weight by their inverse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.tokens.selection import order_keys, smallest_k_mask

_ITERATIONS = 16  # each fixes at least one probability at 1, and usually many, until no other would exceed 1


def inclusion_probabilities(
    weights: Float[Array, " n"], eligible: Bool[Array, " n"], k: Int[Array, ""]
) -> Float[Array, " n"]:
    """Probability of each eligible element to be among `k`: proportional to its weight, at most 1; 0 for all others.

    Args:
      weights: above 0 where eligible.
    """
    weights = jnp.where(eligible, weights, 0)

    def step(_: int, probability: Float[Array, " n"]) -> Float[Array, " n"]:
        certain = probability >= 1
        rest = jnp.where(certain, 0, weights).sum()
        scale = (k - certain.sum()) / jnp.where(rest > 0, rest, 1)
        return jnp.where(certain, 1, jnp.minimum(weights * scale, 1))

    probability = jax.lax.fori_loop(0, _ITERATIONS, step, jnp.zeros_like(weights))
    return jnp.where(eligible & (k >= eligible.sum()), 1, probability)


def pareto_sample(key: PRNGKeyArray, probability: Float[Array, " n"], k: Int[Array, ""]) -> Bool[Array, " n"]:
    """Exactly `k` elements, each included with nearly its probability (Pareto sampling; Rosén, 1997)."""
    uniform = jax.random.uniform(key, probability.shape)
    rank = uniform / (1 - uniform) * (1 - probability) / jnp.where(probability > 0, probability, 1)
    return smallest_k_mask(order_keys(jnp.where(probability > 0, rank, jnp.inf)), k)
