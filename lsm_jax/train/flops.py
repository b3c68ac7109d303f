"""The peak a device could reach, for MFU: from `chips`, or measured where that has none."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from lsm_jax.train.chips import chip_of

_SIDE = 1536


def total_peak(given: float) -> tuple[float, str]:
    """FLOP/s of all devices together, and where the figure is from.

    Args:
      given: FLOP/s of one device; 0 to look it up, or measure the largest matrix product.
    """
    devices, kind = jax.devices(), jax.devices()[0].device_kind
    if given > 0:
        return given * len(devices), "train.peak_flops"
    if chip := chip_of(kind):
        return chip.per_device().peak * len(devices), chip.source
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
