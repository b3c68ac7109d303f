"""Contrastive losses, exact over the global batch, without the matrix of all pairs on any device.

Each device holds its own pairs, gathers the other side's embeddings (B x D, small) and walks over them in
chunks; a chunk's scores are made again in the backward pass rather than kept. Softmax: CLIP (Radford et al. 2021,
arXiv:2103.00020). Sigmoid: SigLIP (Zhai et al. 2023, arXiv:2303.15343), SensorLM's published variant (SPEC section 4).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

_CHUNK = 512  # scores of a chunk are (pairs of a device) x this
_NEVER = -1e30  # a score whose exponential is exactly zero

Pairs = tuple[Float[Array, "b d"], Float[Array, "b d"], Bool[Array, " b"]]


def softmax_loss(
    sensor: Float[Array, "b d"],
    text: Float[Array, "b d"],
    valid: Bool[Array, " b"],
    scale: Float[Array, ""],
    batch_axes: tuple[str, ...] = (),
) -> Float[Array, ""]:
    """Mean of both directions' cross entropy of finding the partner among all valid pairs.

    Args:
      sensor, text: L2-normalised embeddings of the same windows.
      valid: pairs that count; a window without a caption has no text and is nobody's negative.
      scale: inverse temperature.
      batch_axes: mesh axes the pairs are spread over; empty on one device.
    """

    def local(mine: Pairs, everyone: Pairs, scale: Float[Array, ""]) -> Float[Array, ""]:
        sensor, text, valid = mine
        own = scale * (sensor * text).sum(axis=1)
        to_text = _log_sum(scale * sensor, everyone[1], everyone[2])
        to_sensor = _log_sum(scale * text, everyone[0], everyone[2])
        return jnp.where(valid, 0.5 * (to_text + to_sensor) - own, 0).sum()

    return _mean_over_pairs(local, (sensor, text, valid), (scale,), batch_axes)


def sigmoid_loss(
    sensor: Float[Array, "b d"],
    text: Float[Array, "b d"],
    valid: Bool[Array, " b"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    batch_axes: tuple[str, ...] = (),
) -> Float[Array, ""]:
    """Each of all B x B pairs told apart on its own, summed and divided by the number of valid windows.

    Args: as `softmax_loss`; `bias` is added to every score.
    """

    def local(mine: Pairs, everyone: Pairs, scale: Float[Array, ""], bias: Float[Array, ""]) -> Float[Array, ""]:
        sensor, text, valid = mine
        own = scale * (sensor * text).sum(axis=1) + bias
        # Every pair as if it were a negative, then the true one set right: softplus(-s) = softplus(s) - s.
        as_negative = _softplus_sum(scale * sensor, everyone[1], everyone[2], bias)
        return jnp.where(valid, as_negative - own, 0).sum()

    return _mean_over_pairs(local, (sensor, text, valid), (scale, bias), batch_axes)


def in_batch_accuracy(
    sensor: Float[Array, "b d"], text: Float[Array, "b d"], valid: Bool[Array, " b"], batch_axes: tuple[str, ...] = ()
) -> Float[Array, ""]:
    """Share of windows whose partner scores highest among all valid ones, the mean of both directions. Not to train on.

    Args: as `softmax_loss`.
    """

    def local(mine: Pairs, everyone: Pairs) -> Float[Array, ""]:
        sensor, text, valid = mine
        own = (sensor * text).sum(axis=1) + 1e-5  # added up in another order, the same cosine is a little off
        found = (own >= _highest(sensor, everyone[1], everyone[2])).astype(jnp.float32)
        found += own >= _highest(text, everyone[0], everyone[2])
        return jnp.where(valid, 0.5 * found, 0).sum()

    pairs = jax.tree.map(jax.lax.stop_gradient, (sensor, text, valid))
    return _mean_over_pairs(local, pairs, (), batch_axes)


def _mean_over_pairs(
    local: Callable[..., Float[Array, ""]], pairs: Pairs, scalars: tuple[Array, ...], batch_axes: tuple[str, ...]
) -> Float[Array, ""]:
    """`local(mine, everyone, *scalars)` on every device, added up and divided by the number of valid pairs."""
    if not batch_axes:
        return local(pairs, pairs, *scalars) / jnp.maximum(pairs[2].sum(), 1)

    def on_device(pairs: Pairs, *scalars: Array) -> Float[Array, ""]:
        gather = functools.partial(jax.lax.all_gather, axis_name=batch_axes, tiled=True)
        everyone = jax.tree.map(gather, pairs)
        total = jax.lax.psum(local(pairs, everyone, *scalars), batch_axes)
        return total / jnp.maximum(everyone[2].sum(), 1)

    spread, whole = PartitionSpec(batch_axes), PartitionSpec()
    sharded = jax.shard_map(on_device, in_specs=(spread, *(whole for _ in scalars)), out_specs=whole, check_vma=False)
    return sharded(pairs, *scalars)


def _log_sum(queries: Float[Array, "b d"], keys: Float[Array, "n d"], valid: Bool[Array, " n"]) -> Float[Array, " b"]:
    """log sum exp of every query's scores with all valid keys."""

    def visit(
        carry: tuple[Float[Array, " b"], Float[Array, " b"]], chunk: tuple[Float[Array, "c d"], Bool[Array, " c"]]
    ) -> tuple[tuple[Float[Array, " b"], Float[Array, " b"]], None]:
        highest, total = carry
        scores = jnp.where(chunk[1], queries @ chunk[0].T, _NEVER)
        higher = jnp.maximum(highest, jax.lax.stop_gradient(scores.max(axis=1)))
        return (higher, total * jnp.exp(highest - higher) + jnp.exp(scores - higher[:, None]).sum(axis=1)), None

    start = jnp.full(len(queries), 0.5 * _NEVER), jnp.zeros(len(queries))
    (highest, total), _ = jax.lax.scan(jax.checkpoint(visit), start, _chunks(keys, valid))
    return highest + jnp.log(jnp.maximum(total, jnp.finfo(jnp.float32).tiny))


def _softplus_sum(
    queries: Float[Array, "b d"], keys: Float[Array, "n d"], valid: Bool[Array, " n"], bias: Float[Array, ""]
) -> Float[Array, " b"]:
    """Sum of softplus of every query's scores with all valid keys."""

    def visit(
        total: Float[Array, " b"], chunk: tuple[Float[Array, "c d"], Bool[Array, " c"]]
    ) -> tuple[Float[Array, " b"], None]:
        scores = queries @ chunk[0].T + bias
        return total + jnp.where(chunk[1], jax.nn.softplus(scores), 0).sum(axis=1), None

    total, _ = jax.lax.scan(jax.checkpoint(visit), jnp.zeros(len(queries)), _chunks(keys, valid))
    return total


def _highest(queries: Float[Array, "b d"], keys: Float[Array, "n d"], valid: Bool[Array, " n"]) -> Float[Array, " b"]:
    """The highest of every query's scores with all valid keys.

    In full float32, to be compared with a partner's: by default TPUs multiply in bfloat16 and recent GPUs in TF32, and
    the partner's own score comes out of that too high half of the time.
    """

    def visit(
        highest: Float[Array, " b"], chunk: tuple[Float[Array, "c d"], Bool[Array, " c"]]
    ) -> tuple[Float[Array, " b"], None]:
        scores = jnp.where(chunk[1], jnp.matmul(queries, chunk[0].T, precision="highest"), _NEVER)
        return jnp.maximum(highest, scores.max(axis=1)), None

    highest, _ = jax.lax.scan(visit, jnp.full(len(queries), _NEVER), _chunks(keys, valid))
    return highest


def _chunks(keys: Float[Array, "n d"], valid: Bool[Array, " n"]) -> tuple[Float[Array, "c k d"], Bool[Array, "c k"]]:
    """Keys in chunks of at most `_CHUNK`, the last filled with invalid ones."""
    size = min(_CHUNK, len(keys))
    spare = -len(keys) % size
    return (
        jnp.pad(keys, ((0, spare), (0, 0))).reshape(-1, size, keys.shape[1]),
        jnp.pad(valid, (0, spare)).reshape(-1, size),
    )
