"""The logical axes of every parameter: one table from parameter paths to names of axes.

Sharding, weight decay and Muon follow from it. `embed -> fused heads head` is a kernel from the axis on the left to the
axes on the right. Without an arrow it is a bias, a scale or an embedding, which are not decayed. Parameters under
`blocks` have one more axis in front, `layers`. A parameter without a rule is an error; it would be unsharded on a pod.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Axes of the mesh. Devices hold different windows and rows, except within a tensor group.
AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
HEAD_AXIS = "tensor"

# The first rule whose pattern matches the end of the path applies. `*` is any number of unsharded axes.
RULES: tuple[tuple[str, str], ...] = (
    (r"(memory_)?attention/query_key_value/kernel", "embed -> fused heads head"),
    (r"(memory_)?attention/query_key_value/bias", "fused heads head"),
    (r"(memory_)?attention/key_value/kernel", "embed -> fused heads head"),
    (r"(memory_)?attention/key_value/bias", "fused heads head"),
    (r"(memory_)?attention/query/kernel", "embed -> heads head"),
    (r"(memory_)?attention/query/bias", "heads head"),
    (r"(memory_)?attention/output/kernel", "heads head -> embed"),
    (r"feed_forward/expand/kernel", "embed -> hidden"),
    (r"feed_forward/expand/bias", "hidden"),
    (r"feed_forward/contract/kernel", "hidden -> embed"),
    (r"token_embedding", "vocabulary embed"),
    (r"(embedding|sensor_embedding|position_embedding|time_proj|queries)", "rows embed"),
    (r"cross_channel_proj", "rows cells embed"),
    (r"channel_mix", "rows rows embed"),
    (r"kernel", "embed -> width"),  # every other matrix
    (r"(mask_token|center|query)", "*"),
    (r"(bias|scale|log_scale)", "*"),
)

LARGE = 2**20  # values of a parameter that should not be whole on every device of a mesh that shards parameters

# All other axes are unsharded.
MESH_AXES: Mapping[str, str] = {"embed": "fsdp", "hidden": "tensor", "heads": "tensor", "vocabulary": "tensor"}


@dataclasses.dataclass(frozen=True)
class Axes:
    """The named axes of a parameter.

    Attributes:
      names: one per axis.
      inputs, outputs: indices of the axes a kernel maps from and to; empty if it is not a kernel.
    """

    names: tuple[str, ...]
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()

    @property
    def is_kernel(self) -> bool:
        return bool(self.inputs)


def axes_of(path: str, shape: tuple[int, ...]) -> Axes:
    """The axes of the parameter at `path`.

    Raises:
      ValueError: no rule covers it, or the rule is for another number of axes.
    """
    rule = next((rule for pattern, rule in RULES if re.search(rf"(^|/){pattern}$", path)), None)
    if rule is None:
        raise ValueError(f"no rule in sharding.py covers the parameter {path} of shape {shape}: add one.")
    layers = ("layers",) if "/blocks/" in f"/{path}" else ()
    left, _, right = rule.partition(" -> ")
    inputs, outputs = left.split(), right.split()
    if inputs == ["*"]:
        return Axes(layers + ("unsharded",) * (len(shape) - len(layers)))
    names = (*layers, *inputs, *outputs)
    if len(names) != len(shape):
        raise ValueError(f"the parameter {path} has shape {shape}, but its rule in sharding.py is {names}.")
    if not outputs:
        return Axes(names)
    first = len(layers) + len(inputs)
    output_axes = [axis for axis, name in enumerate(names) if axis >= first and name != "fused"]
    return Axes(names, tuple(range(len(layers), first)), tuple(output_axes))


def named_parameters(tree: Any) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of every leaf: `encoder/stack/blocks/attention/query/kernel`."""
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield path_name(keys), leaf


def path_name(keys: tuple[Any, ...]) -> str:
    """A tree path as text."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def parameter_shardings(mesh: Mesh, shapes: Any) -> Any:
    """A sharding per parameter. An axis that is not divisible by its mesh axis is not sharded."""

    def sharding(keys: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*mesh_axes(mesh.shape, path_name(keys), leaf.shape)))

    return jax.tree_util.tree_map_with_path(sharding, shapes)


def mesh_axes(mesh_shape: Mapping[str, int], path: str, shape: tuple[int, ...]) -> list[str | None]:
    """The axis of the mesh over which each axis of a parameter is split; None where it is not."""
    spread = [MESH_AXES.get(name) for name in axes_of(path, shape).names]
    return [axis if axis and size % mesh_shape[axis] == 0 else None for axis, size in zip(spread, shape, strict=True)]


def sharding_table(mesh_shape: Mapping[str, int], shapes: Any) -> str:
    """One line per parameter: its shape, its named axes with the parts they are split into, its size on a device."""
    rows = [("parameter", "shape", "axes (and how many parts over which axis of the mesh)", "on a device")]
    total = here = 0
    for path, leaf in named_parameters(shapes):
        split = mesh_axes(mesh_shape, path, leaf.shape)
        parts = [(axis, mesh_shape[axis]) for axis in split if axis]
        axes = [
            f"{name} ({mesh_shape[axis]} {axis})" if axis and mesh_shape[axis] > 1 else name
            for name, axis in zip(axes_of(path, leaf.shape).names, split, strict=True)
        ]
        own = leaf.size // math.prod(count for _, count in parts)
        rows.append((path, " x ".join(map(str, leaf.shape)), " x ".join(axes), f"{own:,}"))
        total, here = total + leaf.size, here + own
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"{total:,} parameters, {here:,} on a device"])


def replicated_sentences(mesh_shape: Mapping[str, int], shapes: Any) -> list[str]:
    """A sentence for each large parameter that every device holds whole although the mesh could split it."""
    axes = [axis for axis in ("fsdp", "tensor") if mesh_shape[axis] > 1]
    sentences = []
    for path, leaf in named_parameters(shapes):
        split = {axis for axis in mesh_axes(mesh_shape, path, leaf.shape) if axis}
        if axes and leaf.size >= LARGE and not split.intersection(axes):
            sizes = " and ".join(f"{axis} {mesh_shape[axis]}" for axis in axes)
            named = ", ".join(
                f"{name} {size}" for name, size in zip(axes_of(path, leaf.shape).names, leaf.shape, strict=True)
            )
            sentences.append(
                f"WARNING: every device holds all {leaf.size:,} values of {path} ({named}): the mesh has {sizes}, but "
                "the table in sharding.py splits no axis of it, or its sizes do not divide. Choose a mesh that does."
            )
    return sentences


def mirrored_shardings(mesh: Mesh, shapes: Any, parameter_shapes: Any, shardings: Any) -> Any:
    """Shardings of optimizer state: moments like their parameters, everything else replicated."""
    by_path = {
        path: (leaf.shape, sharding)
        for (path, leaf), sharding in zip(named_parameters(parameter_shapes), jax.tree.leaves(shardings), strict=True)
    }

    def sharding(keys: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        suffixes = (path_name(keys[first:]) for first in range(len(keys)))
        matches = (by_path[suffix] for suffix in suffixes if suffix in by_path)
        return next((found for shape, found in matches if shape == leaf.shape), NamedSharding(mesh, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(sharding, shapes)
