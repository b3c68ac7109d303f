"""The mesh of devices and where the global batch lies on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lsm_jax.config import Config, MeshConfig
from lsm_jax.errors import UserError
from lsm_jax.sharding import AXES, BATCH_AXES


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, tensor over `devices`, all there are by default.

    Args:
      config: the section `mesh`. Slices, which are joined by the data-centre network, divide the axis data, so that
        only gradients travel between them.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    slices = config.slices
    sizes = [getattr(config, axis) for axis in AXES]
    known = slices * math.prod(size for size in sizes if size != -1)
    asked = f"mesh of slices={slices}, " + ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if min(slices, *(abs(size) for size in sizes)) < 1 or min(sizes) < -1 or sizes.count(-1) > 1:
        raise UserError(f"{asked}: sizes are at least 1, and one may be -1, the rest of the devices.")
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if -1 in sizes or slices * math.prod(sizes) != len(devices):
        raise UserError(f"{asked} does not fit {len(devices)} devices; set --config.mesh.data=-1 and divisors of it.")
    kinds = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        return jax.make_mesh(tuple(sizes), AXES, axis_types=kinds, devices=devices)
    by_slice = {getattr(device, "slice_index", None) for device in devices}
    by_process = {device.process_index for device in devices}
    if slices not in {len(by_slice), len(by_process)}:
        raise UserError(f"{asked}: the devices are {len(by_slice)} slices of {len(by_process)} processes.")
    # Where the hardware knows no slices, hosts are what a network joins.
    grid = mesh_utils.create_hybrid_device_mesh(
        sizes, (slices, 1, 1), devices, process_is_granule=slices != len(by_slice)
    )
    return Mesh(grid, AXES, axis_types=kinds)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Windows spread over the axes of the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(mesh: Mesh, config: Config) -> None:
    """UserError unless every device gets the same number of whole rows in every micro-batch.

    Rows that span devices would be gathered, and every device would attend for all of them.

    Args:
      config: the whole configuration.
    """
    check_sizes(config)
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    accumulate, windows, batch_size = (
        config.train.grad_accum_steps,
        config.rows.windows_per_row,
        config.train.batch_size,
    )
    least = shards * accumulate * windows
    if batch_size % least:
        raise UserError(
            f"train.batch_size={batch_size} must be a multiple of {least}: mesh slices x data x fsdp = {shards}, "
            f"train.grad_accum_steps={accumulate}, rows.windows_per_row={windows}."
        )


def check_sizes(config: Config) -> None:
    """UserError where a count of windows or rows is none."""
    for section, key in (("train", "batch_size"), ("train", "grad_accum_steps"), ("rows", "windows_per_row")):
        if getattr(getattr(config, section), key) < 1:
            raise UserError(f"{section}.{key}={getattr(getattr(config, section), key)} must be at least 1.")


def loader_share(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """(index, count): which of the equal shares of the global batch this process must load.

    Processes that only differ along the axis tensor load the same windows.
    """
    rows: dict[int, set[int]] = {}
    places: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((batch_size,))
    for device, (windows, *_) in places.items():
        rows.setdefault(device.process_index, set()).update(range(*windows.indices(batch_size)))
    shares = sorted({tuple(sorted(mine)) for mine in rows.values()})
    if sum(map(len, shares)) != batch_size:
        raise UserError("mesh: the windows of a batch cannot be divided among processes; make mesh.tensor a divisor "
                        "or a multiple of the devices of a process.")  # fmt: skip
    return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def to_devices(mesh: Mesh, batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """This process's share of a batch, as its part of the global arrays."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, part, (batch_size, *part.shape[1:]))
        for name, part in batch.items()
    }
