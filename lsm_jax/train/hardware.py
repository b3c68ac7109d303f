"""Hardware: published figures of chips, measured peaks, compiler options by platform."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

_GIB = 2**30
_CLOUD_TPU = "docs.cloud.google.com/tpu/docs"
_DATA_SHEET = "NVIDIA data sheet"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one accelerator chip, for MFU and `lsm plan`.

    Attributes:
      name: as in the names of topologies.
      kinds: prefixes of JAX's `device_kind`.
      peak: dense bfloat16 FLOP/s.
      memory: bytes of high-bandwidth memory.
      memory_bandwidth: bytes per second to and from it.
      link_bandwidth: bytes per second out of the chip over all its fast links (ICI, NVLink), one way.
      network_bandwidth: the same between hosts, for chips whose fast links end at the host; 0 for others.
      devices: JAX devices per chip.
      source: where the figures are published.
    """

    name: str
    kinds: tuple[str, ...]
    peak: float
    memory: int
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    devices: int
    source: str

    def per_device(self) -> Chip:
        """The figures of one JAX device: a chip of two devices counts as two chips of half the size."""
        return dataclasses.replace(
            self,
            peak=self.peak / self.devices,
            memory=self.memory // self.devices,
            memory_bandwidth=self.memory_bandwidth / self.devices,
            link_bandwidth=self.link_bandwidth / self.devices,
            network_bandwidth=self.network_bandwidth / self.devices,
            devices=1,
        )


# TPU links: v4 and v5e have the 2400 and 1600 Gbit/s of older pages, which are one way; the others have half of what
# the pages call bidirectional. GPU networks are those of NVIDIA's DGX hosts: 200 Gbit/s per A100, 400 from H100 on.
CHIPS: tuple[Chip, ...] = (
    Chip("v4", ("TPU v4",), 275e12, 32 * _GIB, 1228e9, 300e9, 0, 1, f"{_CLOUD_TPU}/v4"),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * _GIB, 819e9, 200e9, 0, 1, f"{_CLOUD_TPU}/v5e"),
    Chip("v5p", ("TPU v5",), 459e12, 95 * _GIB, 2765e9, 600e9, 0, 1, f"{_CLOUD_TPU}/v5p"),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * _GIB, 1638e9, 400e9, 0, 1, f"{_CLOUD_TPU}/v6e"),
    Chip("tpu7x", ("TPU7x",), 2307e12, 192 * _GIB, 7380e9, 600e9, 0, 2, f"{_CLOUD_TPU}/tpu7x"),
    Chip("a100", ("NVIDIA A100-SXM4-80GB",), 312e12, 85_100_068_864, 2039e9, 300e9, 25e9, 1, f"{_DATA_SHEET} A100"),
    Chip("a100-40gb", ("NVIDIA A100",), 312e12, 42_297_786_368, 1555e9, 300e9, 25e9, 1, f"{_DATA_SHEET} A100"),
    Chip("h100", ("NVIDIA H100 80GB HBM3",), 989e12, 84_942_979_072, 3352e9, 450e9, 50e9, 1, f"{_DATA_SHEET} H100 SXM"),
    Chip("h100-pcie", ("NVIDIA H100",), 756e12, 85_899_345_920, 2039e9, 64e9, 50e9, 1, f"{_DATA_SHEET} H100 PCIe"),
    Chip("h100-nvl", ("NVIDIA H100 NVL",), 835e12, 94 * _GIB, 3900e9, 300e9, 50e9, 1, f"{_DATA_SHEET} H100 NVL"),
    Chip("h200", ("NVIDIA H200",), 989e12, 151_397_597_184, 4800e9, 450e9, 50e9, 1, f"{_DATA_SHEET} H200"),
    Chip("h200-nvl", ("NVIDIA H200 NVL",), 835e12, 151_397_597_184, 4800e9, 450e9, 50e9, 1, f"{_DATA_SHEET} H200 NVL"),
    Chip("b200", ("NVIDIA B200",), 2250e12, 191_514_411_008, 7672e9, 900e9, 50e9, 1, f"{_DATA_SHEET} DGX B200"),
    Chip("l4", ("NVIDIA L4",), 121e12, 24 * _GIB, 300e9, 32e9, 0, 1, f"{_DATA_SHEET} L4"),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip with the longest prefix of a JAX `device_kind`; None if the table has none."""
    # No digit may follow a prefix: an L40S is not an L4.
    matching = [
        (len(kind), chip) for chip in CHIPS for kind in chip.kinds if re.match(rf"{kind}(?!\d)", device_kind, re.I)
    ]
    return max(matching, key=lambda entry: entry[0], default=(0, None))[1]


def total_peak(peak_flops: float) -> tuple[float, str]:
    """FLOP/s of all devices together, and where the figure comes from.

    Args:
      peak_flops: FLOP/s of one device; 0 takes the published figure, or measures a large matrix product.
    """
    devices, kind = jax.devices(), jax.devices()[0].device_kind
    if peak_flops > 0:
        return peak_flops * len(devices), "train.peak_flops"
    if chip := chip_of(kind):
        return chip.per_device().peak * len(devices), chip.source
    # The devices of a CPU share its cores, so that one of them alone reaches the speed of all.
    count = jax.process_count() if jax.default_backend() == "cpu" else len(devices)
    # A smaller product takes a GPU less time than the call does.
    size, dtype = (1536, "float32") if jax.default_backend() == "cpu" else (8192, "bfloat16")
    return _measured_peak(size, dtype) * count, f"measured: {dtype} {size} x {size} matrix product on {kind}"


def _measured_peak(size: int, dtype: str, repeats: int = 5) -> float:
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best


_COMPILER_OPTIONS: Mapping[str, Mapping[str, bool | int | float | str]] = {
    # Gradients are summed layer by layer in the backward scan. These options overlap the sums with computation.
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "tpu": {
        # If the sums of a layer were combined into one, it would wait for the last gradient and overlap nothing.
        "xla_jf_crs_combiner_threshold_in_bytes": 2**17,
        "xla_enable_async_all_reduce": True,
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        "xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions": True,
        # Elementwise work hides a sum less reliably than a matrix product does. With 0 the scheduler prefers products.
        "xla_lhs_loop_fusion_latency_multiplier": 0.0,
    },
}


def compiler_options(platform: str) -> dict[str, bool | int | float | str]:
    """XLA options for `compile(compiler_options=...)` on a JAX platform; shared by `lsm train` and `lsm plan`."""
    return dict(_COMPILER_OPTIONS.get(platform, {}))
