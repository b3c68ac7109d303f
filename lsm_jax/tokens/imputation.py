"""Filled windows, as LSM-1 sees them (arXiv 2410.13638): gaps are imputed before training.

Within a channel, a gap between two recorded minutes takes the line between them, and a gap at the start or end of the
window the nearest recorded value. A channel without a recorded minute takes its training mean, which is 0 in z-scores.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def filled(values: Float[Array, "b t c"], observed: Bool[Array, "b t c"]) -> Float[Array, "b t c"]:
    """The values with every unobserved cell imputed from observed cells of its channel; all others are not read."""
    steps, length = jnp.arange(values.shape[1], dtype=jnp.int32)[:, None], values.shape[1]
    before = jax.lax.cummax(jnp.where(observed, steps, -1), axis=1)
    after = jax.lax.cummin(jnp.where(observed, steps, length), axis=1, reverse=True)
    recorded = jnp.where(observed, values, 0)
    left = jnp.take_along_axis(recorded, jnp.maximum(before, 0), axis=1)
    right = jnp.take_along_axis(recorded, jnp.minimum(after, length - 1), axis=1)
    share = (steps - before) / jnp.maximum(after - before, 1)
    ends = jnp.where(before < 0, right, left)  # both are 0 in a channel without observed cells
    return jnp.where((before >= 0) & (after < length), left + share * (right - left), ends)


def impute(batch: Mapping[str, Array]) -> dict[str, Array]:
    """The batch with every cell filled and called observed.

    A window without any observed cell stays as it is: there is nothing to learn from it.
    """
    observed = jnp.asarray(batch["observed"])
    recorded = jnp.broadcast_to(observed.any(axis=(1, 2), keepdims=True), observed.shape)
    return {**batch, "values": filled(jnp.asarray(batch["values"]), observed), "observed": recorded}
