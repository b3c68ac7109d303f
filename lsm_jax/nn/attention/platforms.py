"""What the program being traced will run on, and kernels interpreted where their hardware is not."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

_interpretation: contextvars.ContextVar[Any] = contextvars.ContextVar("interpretation", default=False)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: that of the mesh entered (`jax.sharding.use_abstract_mesh`), else of this process."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in {"cuda", "rocm"} else name


def interpretation() -> Any:
    """What `pallas_call` is to be told by `interpret=`; false unless `interpreted` is entered."""
    return _interpretation.get()


@contextlib.contextmanager
def interpreted(mode: Any = True) -> Iterator[None]:
    """Kernels traced inside run anywhere, slowly: for tests.

    Args:
      mode: what `pallas_call` is told by `interpret=`: true, or Pallas' `InterpretParams` for a TPU.
    """
    token = _interpretation.set(mode)
    try:
        yield
    finally:
        _interpretation.reset(token)
