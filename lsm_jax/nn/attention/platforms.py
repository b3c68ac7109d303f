"""The platform a program is traced for, and Pallas kernels interpreted where their hardware is missing."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

_interpret: contextvars.ContextVar[Any] = contextvars.ContextVar("interpret", default=False)


def platform() -> str:
    """`cpu`, `gpu` (NVIDIA), `rocm` (AMD) or `tpu`, of the mesh of `use_abstract_mesh`, else of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    if device.platform in {"gpu", "cuda", "rocm"}:  # JAX says gpu for NVIDIA and AMD
        is_amd = device.platform == "rocm" or device.device_kind.startswith(("AMD", "gfx"))
        return "rocm" if is_amd else "gpu"
    return str(device.platform)


def interpret_mode() -> Any:
    """The `interpret=` argument of `pallas_call`: false unless `interpret_kernels` is entered."""
    return _interpret.get()


@contextlib.contextmanager
def interpret_kernels(mode: Any = True) -> Iterator[None]:
    """Interprets the Pallas kernels traced inside, so that they run on any platform. Slow; for tests.

    Args:
      mode: the `interpret=` argument of `pallas_call`: true, or `pltpu.InterpretParams` to simulate a TPU.
    """
    token = _interpret.set(mode)
    try:
        yield
    finally:
        _interpret.reset(token)
