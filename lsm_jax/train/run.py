"""A run on disk, opened for what comes after training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from lsm_jax import objectives
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.objectives import Objective
from lsm_jax.train.checkpoints import damage, restore_clock, restore_parameters, steps
from lsm_jax.train.workdir import CHECKPOINTS, SPEC, read_config, run_captions


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished or unfinished run.

    Attributes:
      config, spec: what was trained, and on which channels with which normalisation.
      objective: as in training.
      params: float32 parameters on this machine's first device, averaged ones (EMA) where the run keeps them.
      step: of the checkpoint they are from.
      tokenizer: what the run's texts are made of; None for a run without texts.
      minutes: that the run had taken by then, compilation and evaluation included; an export does not say.
    """

    config: Config
    spec: DataSpec
    objective: Objective
    params: Any
    step: int
    minutes: float = 0.0
    tokenizer: Tokenizer | None = None

    @property
    def words(self) -> Tokenizer:
        """The tokenizer; UserError for a run without texts."""
        if self.tokenizer is None:
            raise UserError(
                f"a run of objective {self.config.objective.name!r} knows no text; use one of configs/sensorlm.py."
            )
        return self.tokenizer


def load_run(workdir: Path | str, step: int | None = None, objective: Objective | None = None) -> Run:
    """Opens a run at a checkpoint, the newest whole one by default. Changes nothing on disk.

    Args:
      objective: of another checkpoint of the same run: what it compiled serves again.

    Raises:
      UserError: not a run, or no such checkpoint, or it is damaged.
    """
    workdir = Path(workdir)
    config = read_config(workdir)
    spec = DataSpec.load(workdir / SPEC)
    objective = objective or objectives.build(config, spec)
    folder = workdir / CHECKPOINTS
    chosen = _choose(folder, step)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        jax.eval_shape(objective.init, jax.random.key(0)),
    )
    checkpoint = folder / str(chosen)
    params = restore_parameters(checkpoint, shapes)
    captions = run_captions(workdir, config)
    minutes = sum(restore_clock(checkpoint).values()) / 60
    return Run(config, spec, objective, params, chosen, minutes, captions.tokenizer if captions else None)


def whole_steps(workdir: Path | str) -> list[int]:
    """Steps of the checkpoints of a run that can be restored, in order.

    Raises:
      UserError: there is none.
    """
    folder = Path(workdir) / CHECKPOINTS
    found = [step for step in sorted(steps(folder)) if damage(folder / str(step)) is None]
    if not found:
        raise UserError(f"{folder} has no whole checkpoint.")
    return found


def _choose(folder: Path, step: int | None) -> int:
    saved = sorted(steps(folder), reverse=True)
    if step is not None and step not in saved:
        listed = ", ".join(map(str, saved[::-1])) or "none"
        raise UserError(f"{folder} has no checkpoint of step {step}; it has {listed}.")
    wanted = saved if step is None else [step]
    faults = []
    for candidate in wanted:
        fault = damage(folder / str(candidate))
        if fault is None:
            return candidate
        faults.append(f"{candidate} is damaged ({fault})")
    raise UserError(f"{folder} has no whole checkpoint" + (f": {'; '.join(faults)}." if faults else " yet."))
