"""The mesh of devices, how a CPU's cores become devices, and how the global batch is spread over the mesh.

XLA splits a single operation among cores only if it is large, so that with one device a second core adds little to the
step of a small model. Several CPU devices use all cores throughout (docs/reference/runs.md).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from lsm_jax.config import Config, MeshConfig
from lsm_jax.errors import UserError
from lsm_jax.sharding import AXES, BATCH_AXES


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data, fsdp and tensor over `devices` (default: all).

    Slices, which the data-centre network joins, divide the axis data, so that only gradients travel between them.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices, slices = jax.devices() if devices is None else devices, config.slices
    sizes = mesh_sizes(config, len(devices))
    each_slice = (sizes[0] // slices, *sizes[1:])
    axis_types = (AxisType.Auto,) * len(AXES)
    if slices == 1:
        # Axes of 4 and 2 on a square of 8 x 8 chips, for example, need a physical axis to be split.
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=axis_types)
    by_slice = {getattr(device, "slice_index", None) for device in devices}
    by_process = {device.process_index for device in devices}
    if slices not in {len(by_slice), len(by_process)}:
        raise UserError(f"{_mesh_text(config)}: the devices are {len(by_slice)} slices of {len(by_process)} processes.")
    # Hardware without slices (CPU, GPU): the network joins hosts.
    grid = mesh_utils.create_hybrid_device_mesh(
        each_slice, (slices, 1, 1), devices,
        process_is_granule=slices != len(by_slice), allow_split_physical_axes=True,
    )  # fmt: skip
    return Mesh(grid, AXES, axis_types=axis_types)


def mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
    """The size of each axis on so many devices; data counts all slices.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    slices, sizes = config.slices, [getattr(config, axis) for axis in AXES]
    fixed = slices * math.prod(size for size in sizes if size != -1)
    if min(slices, *(abs(size) for size in sizes)) < 1 or min(sizes) < -1 or sizes.count(-1) > 1:
        raise UserError(f"{_mesh_text(config)}: sizes are at least 1, and one may be -1, the rest of the devices.")
    if -1 in sizes and devices % fixed == 0:
        sizes[sizes.index(-1)] = devices // fixed
    if -1 in sizes or slices * math.prod(sizes) != devices:
        raise UserError(
            f"{_mesh_text(config)} does not fit {devices} devices; set --config.mesh.data=-1 and divisors of it."
        )
    return (slices * sizes[0], *sizes[1:])


def _mesh_text(config: MeshConfig) -> str:
    return f"mesh of slices={config.slices}, " + ", ".join(f"{axis}={getattr(config, axis)}" for axis in AXES)


def cpu_devices_for(config: Config) -> int:
    """How many CPU devices a run can use: the size of its mesh, or the most that share its rows evenly."""
    sizes = [getattr(config.mesh, axis) for axis in AXES]
    fixed = max(config.mesh.slices * math.prod(size for size in sizes if size > 0), 1)
    if -1 not in sizes:
        return fixed
    windows = max(config.train.grad_accum_steps * config.rows.windows_per_row, 1)
    return fixed * cores_for(config.train.batch_size // (windows * fixed), cores() // fixed)


def cores_for(shares: int, limit: int | None = None) -> int:
    """The largest divisor of `shares` that is at most `limit` (default: `cores()`); at least 1."""
    limit = cores() if limit is None else limit
    return max((number for number in range(1, limit + 1) if shares % number == 0), default=1)


def cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cores(devices: int) -> None:
    """Splits the CPU into this many devices. Call it before anything asks for a device.

    Does nothing if the user (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`) or a run of several processes has chosen already.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.values["jax_num_cpu_devices"] > 0 or jax.distributed.is_initialized():
        return
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        return  # a Python program that calls us has used a device already


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Windows spread over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_sizes(config: Config) -> None:
    """UserError if a number of windows or micro-batches is below 1."""
    counts = {"train.batch_size": config.train.batch_size, "train.grad_accum_steps": config.train.grad_accum_steps}
    for key, count in {**counts, "rows.windows_per_row": config.rows.windows_per_row}.items():
        if count < 1:
            raise UserError(f"{key}={count} must be at least 1.")


def check_batch(mesh: Mesh | AbstractMesh, config: Config) -> None:
    """UserError unless every device gets the same number of whole rows in every micro-batch.

    XLA would gather a row that spans devices, and every device would compute attention for all of it.
    """
    check_sizes(config)
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    accumulate, windows = config.train.grad_accum_steps, config.rows.windows_per_row
    divisor = shards * accumulate * windows
    if config.train.batch_size % divisor:
        raise UserError(
            f"train.batch_size={config.train.batch_size} must be a multiple of {divisor}: mesh slices x data x fsdp = "
            f"{shards}, train.grad_accum_steps={accumulate}, rows.windows_per_row={windows}."
        )


def loader_share(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """(index, count): which of `count` equal parts of the global batch this process loads.

    Processes that differ along the axis tensor only load the same windows.

    Raises:
      UserError: the mesh does not divide the windows among processes.
    """
    rows: dict[int, set[int]] = {}
    indices: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((batch_size,))
    for device, (windows, *_) in indices.items():
        rows.setdefault(device.process_index, set()).update(range(*windows.indices(batch_size)))
    shares = sorted({tuple(sorted(share)) for share in rows.values()})
    if sum(map(len, shares)) != batch_size:
        raise UserError("mesh: the windows of a batch cannot be divided among processes; make mesh.tensor a divisor "
                        "or a multiple of the devices of a process.")  # fmt: skip
    return shares.index(tuple(sorted(rows[jax.process_index()]))), len(shares)


def to_devices(mesh: Mesh, batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """The global batch on the devices, from this process's part of it."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, part, (batch_size, *part.shape[1:]))
        for name, part in batch.items()
    }
