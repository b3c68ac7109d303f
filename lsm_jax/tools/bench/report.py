"""What a measurement leaves: one JSON file that says on what, with what and how it was measured."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

from lsm_jax.nn.attention import platform as computes_on

_LIBRARIES = ("lsm_jax", "jax", "jaxlib", "flax", "numpy", "grain", "array_record", "torch")


def machine() -> dict[str, Any]:
    """The machine and how busy it is: `load_average` above 0 at the start means that other work shares it."""
    import jax

    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": _cpu_name(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "tunables": {name: os.environ[name] for name in ("GLIBC_TUNABLES", "XLA_FLAGS") if name in os.environ},
        "load_average": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Releases of Python and of the libraries that are installed and matter to speed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # not there, or run from a folder of sources
            found[name] = metadata.version(name)
    return found


def no_torch() -> str:
    """Why PyTorch, an optional baseline, cannot take part; empty where it can."""
    if util.find_spec("torch") is None:
        return "PyTorch is not installed (pip install torch)."
    here = computes_on()
    if here == "gpu":
        import torch

        return "" if torch.cuda.is_available() else "this PyTorch finds no CUDA device."
    return "" if here == "cpu" else f"PyTorch is compared with on CPUs and NVIDIA GPUs, not on a {here}."


def torch_device() -> str:
    """PyTorch's name for what JAX computes on here, where `no_torch` finds nothing amiss."""
    return {"gpu": "cuda"}.get(computes_on(), "cpu")


def write_report(
    file: Path,
    measured_on: Mapping[str, Any],
    settings: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    **further: Any,
) -> None:
    """Writes a report; `measured_on` is what `machine` said before the first run."""
    content = {
        "machine": {**measured_on, "load_average_after": os.getloadavg()[0]},
        "versions": versions(),
        "settings": settings,
        **further,
        "results": results,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
