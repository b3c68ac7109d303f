"""Ahead-of-time compilation targets: JAX compiles for these devices without having them.

A TPU topology is `v5e:16x16`, chips along each axis of the torus; a GPU topology is `h100:2x8`, two hosts of eight.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies

from lsm_jax.errors import UserError, nearest
from lsm_jax.train.hardware import CHIPS, Chip

GPUS = ("a100", "h100", "h200", "b200")
# Some sizes of each kind, from the smallest to the largest; libtpu decides which others exist.
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "v4": ("v4:2x2x1", "v4:4x4x4", "v4:8x8x16"),
    "v5e": ("v5e:1x1", "v5e:2x2", "v5e:2x4", "v5e:4x4", "v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"),
    "v5p": ("v5p:2x2x1", "v5p:2x2x2", "v5p:4x4x4", "v5p:8x8x8", "v5p:8x8x16", "v5p:16x16x24"),
    "v6e": ("v6e:1x1", "v6e:2x2", "v6e:2x4", "v6e:4x4", "v6e:4x8", "v6e:8x8", "v6e:8x16", "v6e:16x16"),
    "tpu7x": ("tpu7x:2x2x1", "tpu7x:2x2x2", "tpu7x:4x4x4", "tpu7x:8x8x16"),
    **{name: (f"{name}:1x1", f"{name}:1x8", f"{name}:2x8", f"{name}:16x8") for name in GPUS},
}

# Without these libtpu queries a metadata server of the cloud and waits. They do not choose the topology.
_LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

# (multiprocessors, float32 units of each, GHz, L2 bytes, shared memory of each and at most per block, compute
# capability): NVIDIA's architecture white papers and CUDA's table of compute capabilities.
_GPU_CORES: Mapping[str, tuple[int, int, float, int, int, int, str]] = {
    "a100": (108, 64, 1.41, 41_943_040, 167_936, 166_912, "major: 8"),
    "h100": (132, 128, 1.98, 52_428_800, 233_472, 232_448, "major: 9 feature_extension: ACCELERATED_FEATURES"),
    "h200": (132, 128, 1.98, 52_428_800, 233_472, 232_448, "major: 9 feature_extension: ACCELERATED_FEATURES"),
    "b200": (148, 128, 1.965, 132_644_864, 233_472, 232_448, "major: 10 feature_extension: ACCELERATED_FEATURES"),
}


def topology_devices(name: str) -> list[jax.Device]:
    """Devices for a mesh to compile for; nothing can run on them.

    Raises:
      UserError: no such topology (the message lists examples), or its compiler is not installed.
    """
    kind, shape = split_name(name)
    if not installed(kind):
        compiler = "JAX's CUDA plugin" if kind in GPUS else "libtpu"
        raise UserError(
            f"{compiler} is not installed, which compiles for {kind} without one at hand. Install it beside lsm_jax: "
            "`launch/install pods`, or `pip install -e '.[pods]'` in the checkout (1.2 GB)."
        )
    if kind in GPUS:
        layout = f"{shape[0]}x1x{shape[1]}"
        target = {"topology": layout, "target_config": gpu_target(chip_named(kind))}
        return list(topologies.get_topology_desc(platform="cuda", topology_name=layout, **target).devices)
    for variable, value in _LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}  # one device, not two, per chip
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name.lower(), **options).devices)
    except jax.errors.JaxRuntimeError as error:
        examples = ", ".join(EXAMPLES[kind])
        raise UserError(f"no topology {name!r} ({str(error).splitlines()[0]}). Known: {examples}.") from None


def split_name(name: str) -> tuple[str, tuple[int, ...]]:
    """`v5e:16x16` as ("v5e", (16, 16)); UserError if it is not the name of a topology."""
    matched = re.fullmatch(r"([\w-]+):(\d+(?:x\d+)*)", name.lower())
    kind = matched[1] if matched else ""
    if not matched or kind not in EXAMPLES:
        known = [example for examples in EXAMPLES.values() for example in examples]
        raise UserError(f"no topology {name!r}.{nearest(name, known)} Known: {', '.join(known)} and sizes between.")
    shape = tuple(map(int, matched[2].split("x")))
    axes = EXAMPLES[kind][0].count("x", len(kind)) + 1
    if len(shape) != axes or 0 in shape:
        raise UserError(f"no topology {name!r}: {kind} has {axes} axes, as in {', '.join(EXAMPLES[kind])}.")
    return kind, shape


def chip_named(kind: str) -> Chip:
    """The chip of a topology's kind."""
    return next(chip for chip in CHIPS if chip.name == kind)


def installed(kind: str) -> bool:
    """Whether the compiler for a topology's kind is installed (`launch/install pods`)."""
    module = "jax_plugins.xla_cuda12" if kind in GPUS else "libtpu"
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # jax_plugins itself is missing
        return False


def gpu_target(chip: Chip) -> str:
    """The description of a GPU for XLA's compiler: the text of a GpuTargetConfigProto."""
    cores, units, clock, cache, shared, shared_block, capability = _GPU_CORES[chip.name]
    return f"""
      platform_name: "CUDA"
      device_description_str: "{chip.kinds[0]}"
      dnn_version_info {{ major: 9 minor: 10 }}
      gpu_device_info {{
        name: "{chip.kinds[0]}"
        cuda_compute_capability {{ {capability} }}
        core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock} l2_cache_size: {cache}
        device_memory_size: {chip.memory} memory_bandwidth: {int(chip.memory_bandwidth)}
        shared_memory_per_core: {shared}
        shared_memory_per_block: 49152 shared_memory_per_block_optin: {shared_block}
        registers_per_core_limit: 65536 registers_per_block_limit: 65536
        threads_per_core_limit: 2048 threads_per_block_limit: 1024 threads_per_warp: 32
        thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
        block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
        driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
      }}"""
