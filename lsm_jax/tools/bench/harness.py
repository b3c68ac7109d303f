"""Times contenders in turns, A B C A B C, and writes what was measured as one JSON file.

Clocks change and other work comes and goes. What disturbs one round disturbs every contender in it, so contenders are
compared within a race only. Each runs once before anything is timed; figures are medians with quartiles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsm_jax.errors import UserError, nearest
from lsm_jax.nn.attention import platform as jax_platform
from lsm_jax.tools.bench.settings import BenchSettings
from lsm_jax.train.mesh import cores_for

_LIBRARIES = ("lsm_jax", "jax", "jaxlib", "flax", "numpy", "grain", "array_record", "torch")


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
      name: unique in a race.
      run: does the work of a round and returns when it is complete; round 0 is the warm-up.
      prepare, finish: done before and after a round, not timed.
      cpu_clock: processor seconds so far, of all threads of the process that does the work.
    """

    name: str
    run: Callable[[int], Any]
    prepare: Callable[[int], Any] = lambda _: None
    finish: Callable[[], Any] = lambda: None
    cpu_clock: Callable[[], float] = time.process_time


@dataclasses.dataclass(frozen=True)
class Timings:
    """A contender's timed rounds, in order: wall time and processor time.

    Attributes:
      returned: what `run` returned, that of the warm-up first.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    returned: list[Any] = dataclasses.field(default_factory=list)

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def cpu_median(self) -> float:
        return float(np.median(self.cpu_seconds))


def race(
    contenders: Sequence[Contender],
    rounds: int,
    budget: float = float("inf"),
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    untimed: int = 0,
) -> dict[str, Timings]:
    """Times contenders in turns.

    Args:
      rounds: how often each is timed.
      budget: seconds; no round begins that would probably end later, but one always does.
      progress: called with the runs done and the runs to do.
      untimed: additional runs at the beginning of every turn. While the others ran, a virtual machine may have taken
        a contender's memory back.

    Returns:
      Timings by name, equally many for every contender.
    """
    timings = {contender.name: Timings() for contender in contenders}
    if len(timings) < len(contenders):
        raise ValueError("two contenders of one name")
    for contender in contenders:
        _run_once(contender, 0, timings[contender.name], clock)
    begun = clock()
    for number in range(1, rounds + 1):
        spent = clock() - begun
        if number > 1 and spent * number / (number - 1) > budget:
            break
        for index, contender in enumerate(contenders, start=1):
            for _ in range(untimed):
                _run_once(contender, number, Timings(), clock)
            _run_once(contender, number, timings[contender.name], clock)
            if progress:
                progress((number - 1) * len(contenders) + index, rounds * len(contenders))
    return timings


def _run_once(contender: Contender, number: int, timings: Timings, clock: Callable[[], float]) -> None:
    contender.prepare(number)
    cpu, begun = contender.cpu_clock(), clock()
    returned = contender.run(number)
    seconds = clock() - begun
    cpu = contender.cpu_clock() - cpu
    contender.finish()
    timings.returned.append(returned)
    if number:
        timings.seconds.append(seconds)
        timings.cpu_seconds.append(cpu)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum, quartiles and number of the values (at least one)."""
    lower, median, upper = map(float, np.percentile(values, [25, 50, 75]))
    return {
        "median": median, "minimum": float(min(values)), "lower_quartile": lower, "upper_quartile": upper,
        "rounds": len(values),
    }  # fmt: skip


def times_faster(baseline: Timings, contender: Timings) -> dict[str, float]:
    """The ratio of a baseline's median wall time to a contender's of the same race.

    The quartiles are of the ratios of single rounds, in which whatever slowed a whole round cancels.
    """
    lower, upper = map(float, np.percentile(np.array(baseline.seconds) / contender.seconds, [25, 75]))
    return {"ratio": baseline.median / contender.median, "lower_quartile": lower, "upper_quartile": upper}


def report_row(
    columns: Mapping[str, Any], name: str, baselines: Mapping[str, str], timings: Mapping[str, Timings]
) -> dict[str, Any]:
    """A contender's row of the report: the given columns, the spread of its wall time, and its baselines.

    Args:
      name: the contender, in `timings`.
      baselines: names of contenders by their label in the report. Those that did not take part are left out.
    """
    return {
        **columns,
        "spread": spread(timings[name].seconds),
        "times_faster_than": {
            label: times_faster(timings[other], timings[name])
            for label, other in baselines.items()
            if other in timings and other != name
        },
    }


def check_names(only: Sequence[str], names: Sequence[str]) -> None:
    """UserError if `--only` has a name that is no contender."""
    for name in only:
        if name not in names:
            raise UserError(f"--only {name}: no such contender.{nearest(name, names)} Known: {', '.join(names)}.")


def why_no_torch() -> str:
    """Why PyTorch, an optional baseline, cannot take part; empty if it can."""
    if util.find_spec("torch") is None:
        return "PyTorch is not installed (pip install torch)."
    match jax_platform():
        case "cpu":
            return ""
        case "gpu":
            import torch

            return "" if torch.cuda.is_available() else "this PyTorch finds no CUDA device."
        case other:
            return f"PyTorch is a baseline on CPUs and NVIDIA GPUs, not on a {other}."


def torch_device() -> str:
    """PyTorch's name for the platform on which JAX computes."""
    return "cuda" if jax_platform() == "gpu" else "cpu"


def bench_devices(shares: int) -> list[jax.Device]:
    """Where JAX's contenders compute: one accelerator, as PyTorch has, or CPU devices that divide `shares` evenly."""
    devices = jax.devices()
    return devices[: cores_for(shares, len(devices)) if jax_platform() == "cpu" else 1]


def product_precision(dtype: str) -> str:
    """What JAX rounds the factors of matrix products to: GPUs and TPUs do not multiply float32 exactly by default."""
    return {"gpu": "tf32", "tpu": "bfloat16"}.get(jax_platform(), dtype) if dtype == "float32" else dtype


def machine() -> dict[str, Any]:
    """The machine. Other work shares it if `load_average` is above 0 at the start."""
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


def write_report(
    file: Path,
    machine_before: Mapping[str, Any],
    settings: BenchSettings,
    results: Sequence[Mapping[str, Any]],
    **further: Any,
) -> dict[str, Any]:
    """Writes a JSON report and returns it; `machine_before` is what `machine` returned before the first run."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):  # not installed, or run from a checkout
            versions[name] = metadata.version(name)
    content = {
        "machine": {**machine_before, "load_average_after": os.getloadavg()[0]},
        "versions": versions,
        "settings": dataclasses.asdict(settings),
        **further,
        "results": results,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
