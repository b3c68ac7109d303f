"""The peak a device could reach, for MFU: from a table, or measured where there is no entry."""

from __future__ import annotations

import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

# Dense bfloat16 FLOP/s of one JAX device, from the vendors' data sheets; the first name in `device_kind` counts.
PEAKS: Mapping[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 1154e12,  # a chip is two devices of half its 2307
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
}
_SIDE = 1536


def total_peak(given: float) -> tuple[float, str]:
    """FLOP/s of all devices together, and where the figure is from.

    Args:
      given: FLOP/s of one device; 0 to look it up, or measure the largest matrix product.
    """
    devices, kind = jax.devices(), jax.devices()[0].device_kind
    if given > 0:
        return given * len(devices), "train.peak_flops"
    for name, peak in PEAKS.items():
        if name.lower() in kind.lower():
            return peak * len(devices), f"data sheet of {name}"
    measured = _measured()
    # Devices a CPU is split into share its cores, so one of them reaches what all of them do.
    share = jax.process_count() if jax.default_backend() == "cpu" else len(devices)
    return measured * share, f"measured: float32 {_SIDE} x {_SIDE} matrix product on {kind}"


def _measured(repeats: int = 5) -> float:
    matrix = jnp.ones((_SIDE, _SIDE), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - begin)
    return 2.0 * _SIDE**3 / best
