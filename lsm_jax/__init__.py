"""Pre-training foundation models on wearable sensor data: LSM-1, LSM-2 and SensorLM in JAX."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`lsm_jax.load`, which imports JAX when it is first asked for."""
    if name == "load":
        # By its name: the package itself stands below all layers and depends on none.
        return importlib.import_module("lsm_jax.export.encoder").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
