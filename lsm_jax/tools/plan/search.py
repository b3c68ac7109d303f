"""Tries other meshes, batch sizes and rematerialisation on a topology, and returns the fastest plan that fits."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Any

from lsm_jax.config import Config, with_changes
from lsm_jax.errors import RunError, UserError
from lsm_jax.tools.plan.plan import make_plan
from lsm_jax.tools.plan.topologies import topology_devices

_REMAT = ("none", "dots", "full")
_ROWS_PER_DEVICE = (1, 2, 4)
_TRIAL_KEYS = (
    "mesh", "batch_size", "remat", "fits", "executed_per_useful", "step_seconds_bound", "mfu_bound",
    "windows_per_second_per_chip_bound",
)  # fmt: skip


def search(
    config: Config, topology: str, seconds: float, report: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Plans the configuration as it is, then variations of it.

    Args:
      seconds: no compilation begins later than this.
      report: called with a line for every trial.

    Returns:
      The plan that fits with the most windows per second and chip, or that of the configuration itself if none fits;
      and for every trial its settings and bounds, fastest first.

    Raises:
      UserError: as `make_plan`.
    """
    started = time.monotonic()
    best = plan = make_plan(config, topology)
    trials = [_summary(plan)]
    per_slice = len(topology_devices(topology)) // (config.mesh.tensor * config.mesh.slices)
    fsdp_sizes = sorted({1, math.gcd(per_slice, 8), math.gcd(per_slice, 16)})
    one_row_each = per_slice * config.mesh.slices * config.rows.windows_per_row * config.train.grad_accum_steps
    batch_sizes = [rows * one_row_each for rows in _ROWS_PER_DEVICE]
    finished: set[tuple[int, int]] = set()
    too_large: set[tuple[int, str]] = set()
    for fsdp, batch_size, remat in itertools.product(fsdp_sizes, batch_sizes, _REMAT):
        # More rematerialisation is only tried if a step does not fit with less, and larger batches only if smaller fit.
        if (fsdp, batch_size) in finished or (fsdp, remat) in too_large:
            continue
        if time.monotonic() - started > seconds:
            report(f"the time for the search is up after {len(trials)} trials; --seconds gives it more.")
            break
        trial = plan
        if (fsdp, batch_size, remat) != (plan["mesh"]["fsdp"], plan["batch_size"], plan["remat"]):
            changes = {"mesh.data": -1, "mesh.fsdp": fsdp, "train.batch_size": batch_size, "model.remat": remat}
            try:
                trial = make_plan(with_changes(config, changes), topology)
            except (UserError, RunError) as error:
                report(str(error))
                finished.add((fsdp, batch_size))
                continue
            trials.append(_summary(trial))
            report(f"{len(trials)}: {trials[-1]}")
        if trial["fits"]:
            finished.add((fsdp, batch_size))
        else:
            too_large.add((fsdp, remat))
        best = max(best, trial, key=_speed)
    return best, sorted(trials, key=_speed, reverse=True)


def _summary(plan: dict[str, Any]) -> dict[str, Any]:
    memory = plan.get("bytes_per_device")
    return {name: plan.get(name) for name in _TRIAL_KEYS} | {
        "bytes_per_device": sum(memory.values()) if memory else None
    }


def _speed(plan: dict[str, Any]) -> float:
    """The bound of windows per second and chip; 0 if the step does not fit."""
    return plan["windows_per_second_per_chip_bound"] if plan["fits"] else 0.0
