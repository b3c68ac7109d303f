"""Tries meshes, batches and rematerialisation policies on a topology, and keeps what would train fastest."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from lsm_jax.config import Config, with_changes
from lsm_jax.errors import RunError, UserError
from lsm_jax.tools.plan.plan import make_plan
from lsm_jax.tools.plan.topologies import topology_devices

_REMAT = ("none", "dots", "full")
_ROWS_PER_SHARE = (1, 2, 4)


def search(
    config: Config, topology: str, seconds: float, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Plans the configuration as it is, then variations, until none is left or the time is up.

    Args:
      seconds: no further compilation is begun after these.

    Returns:
      The plan that fits with the most windows per second and chip (the configuration's own where none fits), and an
      entry per trial: its settings, whether it fits, and its bounds.

    Raises:
      UserError: as `make_plan`.
    """
    started = time.monotonic()
    best = plan = make_plan(config, topology)
    trials = [_entry(plan)]
    # Policies that recompute are only worth a try where there is too little memory without.
    too_large: set[tuple[int, int, int]] = set() if plan["fits"] else {_settings(plan)}
    for fsdp, batch_size, remat in _variations(config, len(topology_devices(topology))):
        if time.monotonic() - started > seconds:
            say(f"the time for the search is up after {len(trials)} trials; --seconds gives it more.")
            break
        tried = (fsdp, batch_size, _REMAT.index(remat))
        if tried == _settings(plan) or (tried[2] and (*tried[:2], tried[2] - 1) not in too_large):
            continue
        if any(known[0] == fsdp and known[1] <= batch_size and known[2] >= tried[2] for known in too_large):
            too_large.add(tried)
            continue
        try:
            trial = make_plan(_changed(config, fsdp, batch_size, remat), topology)
        except (UserError, RunError) as error:
            say(str(error))
            continue
        trials.append(_entry(trial))
        say(f"{len(trials)}: {trials[-1]}")
        if not trial["fits"]:
            too_large.add(tried)
        elif not best["fits"] or _speed(trial) > _speed(best):
            best = trial
    return best, sorted(trials, key=_speed, reverse=True)


def _variations(config: Config, devices: int) -> Iterator[tuple[int, int, str]]:
    """(fsdp, batch size, remat), what recomputes nothing first; tensor and slices stay as they are."""
    share = devices // (config.mesh.tensor * config.mesh.slices)
    fsdp = sorted({1, math.gcd(share, 8), math.gcd(share, 16)})
    shards = share * config.mesh.slices * config.rows.windows_per_row * config.train.grad_accum_steps
    sizes = [rows * shards for rows in _ROWS_PER_SHARE]
    return ((width, size, remat) for remat, width, size in itertools.product(_REMAT, fsdp, sizes))


def _changed(config: Config, fsdp: int, batch_size: int, remat: str) -> Config:
    changes = {"mesh.data": -1, "mesh.fsdp": fsdp, "train.batch_size": batch_size, "model.remat": remat}
    return with_changes(config, changes)


def _settings(plan: dict[str, Any]) -> tuple[int, int, int]:
    return plan["mesh"]["fsdp"], plan["batch_size"], _REMAT.index(plan["remat"])


def _entry(plan: dict[str, Any]) -> dict[str, Any]:
    """What a trial comes to in a line."""
    kept = ("mesh", "batch_size", "remat", "fits", "executed_per_useful", "step_seconds_bound", "mfu_bound",
            "windows_per_second_per_chip_bound")  # fmt: skip
    needed = plan.get("bytes_per_device")
    return {name: plan.get(name) for name in kept} | {"bytes_per_device": sum(needed.values()) if needed else None}


def _speed(plan: dict[str, Any]) -> float:
    """Windows per second and chip at most; nothing where it does not fit."""
    return plan["windows_per_second_per_chip_bound"] if plan["fits"] else 0.0
