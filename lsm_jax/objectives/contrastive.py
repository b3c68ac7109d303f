"""Contrastive losses, exact over the global batch, without the matrix of all pairs on any device.

Each device holds its own pairs, gathers the other side's embeddings (B x D, small) and scans over them in chunks. The
scores of a chunk are recomputed in the backward pass. Softmax: CLIP (Radford et al. 2021, arXiv:2103.00020). Sigmoid:
SigLIP (Zhai et al. 2023, arXiv:2303.15343), SensorLM's published variant (arXiv 2506.09108).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Shaped

from lsm_jax.sharding import BATCH_AXES

_CHUNK = 512  # the scores of a chunk are (pairs of a device) x this
_MASK_VALUE = -1e30  # a score whose exponential is exactly zero

Embeddings = tuple[Float[Array, "b d"], Float[Array, "b d"]]
Pairs = tuple[Float[Array, "b d"], Float[Array, "b d"], Bool[Array, " b"]]
Windows = tuple[Float[Array, "b d"], Int[Array, " b"], Int[Array, " b"], Bool[Array, " b"]]  # with number and person


def softmax_loss(
    sensor: Float[Array, "b d"],
    text: Float[Array, "b d"],
    valid: Bool[Array, " b"],
    scale: Float[Array, ""],
    batch_axes: tuple[str, ...] = (),
) -> Float[Array, ""]:
    """Cross entropy of each partner among all valid pairs, averaged over both directions and the valid pairs.

    Args:
      sensor, text: L2-normalised embeddings of the same windows.
      valid: pairs that count, also as negatives; windows without a caption do not.
      scale: inverse temperature.
      batch_axes: mesh axes the pairs are sharded over (`batch_mesh_axes`); empty on one device.
    """

    def local(mine: Pairs, everyone: Pairs, scale: Float[Array, ""]) -> Float[Array, ""]:
        sensor, text, valid = mine
        own = scale * (sensor * text).sum(axis=1)
        to_text = _logsumexp(scale * sensor, everyone[1], everyone[2])
        to_sensor = _logsumexp(scale * text, everyone[0], everyone[2])
        return jnp.where(valid, 0.5 * (to_text + to_sensor) - own, 0).sum()

    return _summed(local, (sensor, text, valid), (scale,), batch_axes) / jnp.maximum(valid.sum(), 1)


def sigmoid_loss(
    sensor: Float[Array, "b d"],
    text: Float[Array, "b d"],
    valid: Bool[Array, " b"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    batch_axes: tuple[str, ...] = (),
) -> Float[Array, ""]:
    """Binary cross entropy of all B x B pairs, summed and divided by the number of valid windows.

    Args: as `softmax_loss`; `bias` is added to every score.
    """

    def local(mine: Pairs, everyone: Pairs, scale: Float[Array, ""], bias: Float[Array, ""]) -> Float[Array, ""]:
        sensor, text, valid = mine
        own = scale * (sensor * text).sum(axis=1) + bias
        # Count every pair as a negative, then correct the positive: softplus(-s) = softplus(s) - s.
        as_negative = _softplus_sum(scale * sensor, everyone[1], everyone[2], bias)
        return jnp.where(valid, as_negative - own, 0).sum()

    return _summed(local, (sensor, text, valid), (scale, bias), batch_axes) / jnp.maximum(valid.sum(), 1)


def in_batch_accuracy(
    sensor: Float[Array, "b d"], text: Float[Array, "b d"], valid: Bool[Array, " b"], batch_axes: tuple[str, ...] = ()
) -> Float[Array, ""]:
    """Recall at 1: how often the partner scores highest among all valid ones, averaged over both directions.

    It has no gradient. Args: as `softmax_loss`.
    """

    def local(mine: Pairs, everyone: Pairs) -> Float[Array, ""]:
        sensor, text, valid = mine
        own = (sensor * text).sum(axis=1) + 1e-5  # the same cosine, summed in another order, differs a little
        correct = (own >= _max_score(sensor, everyone[1], everyone[2])).astype(jnp.float32)
        correct += own >= _max_score(text, everyone[0], everyone[2])
        return jnp.where(valid, 0.5 * correct, 0).sum()

    pairs = jax.tree.map(jax.lax.stop_gradient, (sensor, text, valid))
    return _summed(local, pairs, (), batch_axes) / jnp.maximum(valid.sum(), 1)


def same_person_loss(
    vectors: Float[Array, "b d"],
    person: Int[Array, " b"],
    valid: Bool[Array, " b"],
    scale: Float[Array, ""],
    batch_axes: tuple[str, ...] = (),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross entropy of each window's partners, the other windows of its person, among all other windows.

    The supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362, equation 2) with people as labels.

    Args:
      vectors: L2-normalised embeddings of windows.
      valid: windows that count, also as negatives.
      scale, batch_axes: as `softmax_loss`.

    Returns:
      The loss, and how often the most similar of all other windows is a partner (without a gradient). Both are means
      over the windows that have a partner, 0 where none has.
    """

    def local(mine: Windows, everyone: Windows, scale: Float[Array, ""]) -> Float[Array, " 3"]:
        others = _compare_with_others(mine, everyone, scale)
        counted = mine[3] & (others.partners > 0)
        losses = others.logsumexp() - others.partner_scores / jnp.maximum(others.partners, 1)
        correct = counted & (others.best_partner >= others.best_stranger)
        return jnp.stack([jnp.where(counted, losses, 0).sum(), correct.sum(), counted.sum()])

    windows = vectors, jnp.arange(len(vectors)), person, valid
    loss, correct, counted = _summed(local, windows, (scale,), batch_axes)
    return loss / jnp.maximum(counted, 1), correct / jnp.maximum(counted, 1)


def _summed(
    local: Callable[..., Float[Array, "*s"]], members: Any, scalars: tuple[Array, ...], batch_axes: tuple[str, ...]
) -> Float[Array, "*s"]:
    """`local(mine, everyone, *scalars)` summed over devices; `members` are arrays over pairs or windows."""
    if not batch_axes:
        return local(members, members, *scalars)

    def on_device(members: Any, *scalars: Array) -> Float[Array, "*s"]:
        gather = functools.partial(jax.lax.all_gather, axis_name=batch_axes, tiled=True)
        return jax.lax.psum(local(members, jax.tree.map(gather, members), *scalars), batch_axes)

    by_batch, replicated = PartitionSpec(batch_axes), PartitionSpec()
    in_specs = (by_batch, *(replicated for _ in scalars))
    return jax.shard_map(on_device, in_specs=in_specs, out_specs=replicated, check_vma=False)(members, *scalars)


def batch_mesh_axes(windows: int) -> tuple[str, ...]:
    """The axes of the current mesh that the batch is sharded over; none on a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return ()
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    return axes if windows % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def _logsumexp(queries: Float[Array, "b d"], keys: Float[Array, "n d"], valid: Bool[Array, " n"]) -> Float[Array, " b"]:
    """Log-sum-exp of every query's scores with all valid keys, online over chunks of keys."""

    def step(
        carry: tuple[Float[Array, " b"], Float[Array, " b"]], chunk: tuple[Float[Array, "c d"], Bool[Array, " c"]]
    ) -> tuple[tuple[Float[Array, " b"], Float[Array, " b"]], None]:
        highest, total = carry
        scores = jnp.where(chunk[1], queries @ chunk[0].T, _MASK_VALUE)
        higher = jnp.maximum(highest, jax.lax.stop_gradient(scores.max(axis=1)))
        return (higher, total * jnp.exp(highest - higher) + jnp.exp(scores - higher[:, None]).sum(axis=1)), None

    start = jnp.full(len(queries), 0.5 * _MASK_VALUE), jnp.zeros(len(queries))
    (highest, total), _ = jax.lax.scan(jax.checkpoint(step), start, _chunks(keys, valid))
    return highest + jnp.log(jnp.maximum(total, jnp.finfo(jnp.float32).tiny))


class _Others(NamedTuple):
    """How each window compares with all others: a running log-sum-exp of scores, and what is known of its partners."""

    highest: Float[Array, " b"]
    exponentials: Float[Array, " b"]  # sum of exp(score - highest)
    partner_scores: Float[Array, " b"]  # their sum
    partners: Float[Array, " b"]  # their number
    best_partner: Float[Array, " b"]
    best_stranger: Float[Array, " b"]

    def logsumexp(self) -> Float[Array, " b"]:
        return self.highest + jnp.log(jnp.maximum(self.exponentials, jnp.finfo(jnp.float32).tiny))


def _compare_with_others(mine: Windows, everyone: Windows, scale: Float[Array, ""]) -> _Others:
    """Scores of each window of `mine` with all valid windows but itself, online over chunks."""
    queries, own, own_person, _ = scale * mine[0], mine[1][:, None], mine[2][:, None], mine[3]

    def step(found: _Others, chunk: Windows) -> tuple[_Others, None]:
        vectors, number, person, valid = chunk
        other = valid & (number != own)
        partner = other & (person == own_person)
        scores = jnp.where(other, queries @ vectors.T, _MASK_VALUE)
        fixed = jax.lax.stop_gradient(scores)
        highest = jnp.maximum(found.highest, fixed.max(axis=1))
        kept = found.exponentials * jnp.exp(found.highest - highest)
        return _Others(
            highest,
            kept + jnp.exp(scores - highest[:, None]).sum(axis=1),
            found.partner_scores + jnp.where(partner, scores, 0).sum(axis=1),
            found.partners + partner.sum(axis=1),
            jnp.maximum(found.best_partner, jnp.where(partner, fixed, _MASK_VALUE).max(axis=1)),
            jnp.maximum(found.best_stranger, jnp.where(partner, _MASK_VALUE, fixed).max(axis=1)),
        ), None

    zeros, lowest = jnp.zeros(len(queries), queries.dtype), jnp.full(len(queries), 0.5 * _MASK_VALUE, queries.dtype)
    start = _Others(lowest, zeros, zeros, zeros, 2 * lowest, 2 * lowest)
    return jax.lax.scan(jax.checkpoint(step), start, _chunks(*everyone))[0]


def _softplus_sum(
    queries: Float[Array, "b d"], keys: Float[Array, "n d"], valid: Bool[Array, " n"], bias: Float[Array, ""]
) -> Float[Array, " b"]:
    """Sum of softplus of every query's scores with all valid keys."""

    def step(
        total: Float[Array, " b"], chunk: tuple[Float[Array, "c d"], Bool[Array, " c"]]
    ) -> tuple[Float[Array, " b"], None]:
        scores = queries @ chunk[0].T + bias
        return total + jnp.where(chunk[1], jax.nn.softplus(scores), 0).sum(axis=1), None

    total, _ = jax.lax.scan(jax.checkpoint(step), jnp.zeros(len(queries)), _chunks(keys, valid))
    return total


def _max_score(queries: Float[Array, "b d"], keys: Float[Array, "n d"], valid: Bool[Array, " n"]) -> Float[Array, " b"]:
    """The highest of every query's scores with all valid keys.

    In full float32, to compare with the partner's score. By default TPUs multiply in bfloat16 and recent GPUs in TF32:
    half of the time the partner's own score would be rounded up and exceed itself.
    """

    def step(
        highest: Float[Array, " b"], chunk: tuple[Float[Array, "c d"], Bool[Array, " c"]]
    ) -> tuple[Float[Array, " b"], None]:
        scores = jnp.where(chunk[1], jnp.matmul(queries, chunk[0].T, precision="highest"), _MASK_VALUE)
        return jnp.maximum(highest, scores.max(axis=1)), None

    highest, _ = jax.lax.scan(step, jnp.full(len(queries), _MASK_VALUE), _chunks(keys, valid))
    return highest


def _chunks(*arrays: Shaped[Array, "n ..."]) -> Any:
    """Arrays of keys in chunks of at most `_CHUNK`; the last is padded with zeros, so that its keys are invalid."""
    size = min(_CHUNK, len(arrays[0]))
    spare = -len(arrays[0]) % size
    return tuple(
        jnp.pad(array, ((0, spare), *((0, 0),) * (array.ndim - 1))).reshape(-1, size, *array.shape[1:])
        for array in arrays
    )
