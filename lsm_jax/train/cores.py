"""The cores of a CPU as devices, so that a step runs on all of them from its first operation to its last.

XLA shares single operations among cores, and only those large enough to be worth it: with one device a second core adds
nothing to attention by blocks, and less than it could to a small model's step (docs/training.md).
"""

from __future__ import annotations

import math
import os

import jax

from lsm_jax.config import Config
from lsm_jax.sharding import AXES


def devices_for(config: Config) -> int:
    """How many devices of a CPU a run can use: what its mesh asks for, or the most that share its rows evenly."""
    sizes = [getattr(config.mesh, axis) for axis in AXES]
    asked = max(config.mesh.slices * math.prod(size for size in sizes if size > 0), 1)
    if -1 not in sizes:
        return asked
    windows = max(config.train.grad_accum_steps * config.rows.windows_per_row, 1)
    return asked * cores_for(config.train.batch_size // (windows * asked), cores() // asked)


def cores_for(shares: int, limit: int | None = None) -> int:
    """The most cores, of all this process may run on, that divide `shares`; at least one."""
    limit = cores() if limit is None else limit
    return max((number for number in range(1, limit + 1) if shares % number == 0), default=1)


def cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_cores(devices: int) -> None:
    """Splits the CPU into as many devices; must come before anything asks for one.

    Left as it is where the user (`JAX_NUM_CPU_DEVICES`, `XLA_FLAGS`) or a process of several has chosen.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.values["jax_num_cpu_devices"] > 0 or jax.distributed.is_initialized():
        return
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        return  # devices were asked for before, by whoever called us from Python
