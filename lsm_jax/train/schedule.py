"""When things happen in a run: durations ("10 epochs", "5 percent") as steps."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable

from lsm_jax.config import Config
from lsm_jax.errors import UserError, nearest

_UNITS = ("steps", "epochs", "examples", "percent")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


@dataclasses.dataclass(frozen=True)
class TrainSchedule:
    """Length and cadences of a run. All cadences are in steps; 0 is never.

    Attributes:
      batch_size: windows of a global batch.
      epoch: windows of the training split.
      total: steps of the whole run; 0 while it is not known.
      save_seconds: time between checkpoints; 0 if they are saved by steps.
      validation_batches: batches of the validation split that one evaluation takes.
    """

    batch_size: int
    epoch: int
    total: int = 0
    log_every: int = 0
    save_every: int = 0
    save_seconds: float = 0.0
    evaluate_every: int = 0
    suites_every: int = 0
    validation_batches: int = 0

    @classmethod
    def from_config(cls, config: Config, epoch: int, held_out: int = 0) -> TrainSchedule:
        """Reads the durations of a configuration.

        Args:
          epoch, held_out: windows of the training and validation splits.

        Raises:
          UserError: a duration cannot be read, or `train.duration` is zero.
        """
        total = cls(config.train.batch_size, epoch).steps("train.duration", config.train.duration)
        if total < 1:
            raise UserError(
                f"train.duration={config.train.duration!r} is zero steps; give at least one, for example '1000 steps'."
            )
        schedule = cls(config.train.batch_size, epoch, total)
        save_seconds = seconds(config.checkpoint.every)
        return dataclasses.replace(
            schedule,
            log_every=schedule.steps("train.log_every", config.train.log_every),
            save_every=0 if save_seconds is not None else schedule.steps("checkpoint.every", config.checkpoint.every),
            save_seconds=save_seconds or 0.0,
            evaluate_every=schedule.steps("evaluate.every", config.evaluate.every),
            suites_every=schedule.steps("evaluate.suites_every", config.evaluate.suites_every),
            validation_batches=min(config.evaluate.batches, math.ceil(held_out / config.train.batch_size) or 1),
        )

    def steps(self, key: str, text: str) -> int:
        """Steps of the duration `text` of configuration key `key`: at least 1, except that 0 of any unit is 0.

        Raises:
          UserError: not a duration, or percent while the length of the run is not known.
        """
        match = re.fullmatch(r"\s*([0-9][0-9_.]*(?:e[0-9]+)?)\s*([a-z%]+)\s*", text)
        unit = match[2].rstrip("s").replace("%", "percent") if match else ""
        steps_per_unit = {"step": 1.0, "epoch": self.epoch / self.batch_size, "example": 1 / self.batch_size}
        if self.total:
            steps_per_unit["percent"] = self.total / 100
        try:
            steps = float(match[1]) * steps_per_unit[unit] if match else math.nan
        except (ValueError, KeyError):
            steps = math.nan
        if not math.isfinite(steps):
            units = [*_UNITS] if self.total else [*_UNITS[:-1]]
            units += [f"{name}s" for name in _SECONDS] if key == "checkpoint.every" else []
            hint = nearest(unit, units)
            raise UserError(f"{key}={text!r} is not a duration: write a number and {', '.join(units)}.{hint}")
        # Rounding errors of floats (0.1 + 0.2 > 0.3) must not add a step to a whole number of epochs.
        return max(math.ceil(steps - 1e-6), 1) if steps > 0 else 0

    def logs(self, step: int) -> bool:
        """Whether metrics are written after this many steps."""
        return step == self.total or _is_due(step, self.log_every)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is saved after this many steps."""
        return step == self.total or _is_due(step, self.save_every)

    def evaluates(self, step: int) -> bool:
        """Whether the validation loss is computed after this many steps."""
        every = self.evaluate_every if self.validation_batches else 0
        return every > 0 and (step == self.total or _is_due(step, every))

    def runs_suites(self, step: int) -> bool:
        """Whether evaluation suites are run after this many steps."""
        return self.suites_every > 0 and (step == self.total or _is_due(step, self.suites_every))


def seconds(text: str) -> float | None:
    """Seconds of a time such as "10 minutes"; None if the text is none."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(second|minute|hour)s?\s*", text)
    return float(match[1]) * _SECONDS[match[2]] if match else None


class SaveTimer:
    """Says when checkpoints are due by time. All processes call it at every step and get the same answers.

    Only the first process reads its clock, and it tells the others. It does so at few steps: 1, 2, 4, 8, ... after a
    save, or sooner if the time is up before.

    Args:
      every: seconds between saves; 0 is never.
      agree: gives every process the number of the first one.
      now: seconds; tests pass their own.
    """

    def __init__(self, every: float, agree: Callable[[int], int], now: Callable[[], float] = time.monotonic) -> None:
        self._every, self._agree, self._now = every, agree, now
        self._saved_at, self._steps, self._next_look = now(), 0, 1

    def due(self) -> bool:
        """Whether to save after this step."""
        if self._every <= 0:
            return False
        self._steps += 1
        if self._steps < self._next_look:
            return False
        left = self._every - (self._now() - self._saved_at)
        steps_left = left * self._steps / max(self._every - left, 1e-9)
        ahead = self._agree(max(1, min(int(steps_left), self._steps)) if left > 0 else 0)
        self._next_look = self._steps + ahead
        return ahead == 0

    def restart(self) -> None:
        """Call it at every save."""
        self._saved_at, self._steps, self._next_look = self._now(), 0, 1


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
