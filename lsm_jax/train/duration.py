"""Durations as people say them: steps, epochs, examples, or percent of the whole run."""

from __future__ import annotations

import dataclasses
import math
import re

from lsm_jax.config import Config
from lsm_jax.errors import UserError, nearest

_UNITS = ("steps", "epochs", "examples", "percent")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Turns durations into steps.

    Attributes:
      batch_size: windows of a global batch.
      epoch: windows of the training split.
      total: steps of the whole run; None before it is known.
    """

    batch_size: int
    epoch: int
    total: int | None = None

    @classmethod
    def of(cls, config: Config, epoch: int) -> Schedule:
        """The schedule of a configuration; UserError where `train.duration` is none."""
        schedule = cls(config.train.batch_size, epoch)
        total = schedule.steps("train.duration", config.train.duration)
        if total < 1:
            raise UserError(f"train.duration={config.train.duration!r} is no step at all; write '1000 steps'.")
        return dataclasses.replace(schedule, total=total)

    def steps(self, key: str, text: str) -> int:
        """Steps of the duration `text` of configuration key `key`; at least 1, except that 0 of anything is 0.

        Raises:
          UserError: not a duration, or percent where there is no whole yet.
        """
        match = re.fullmatch(r"\s*([0-9][0-9_.]*(?:e[0-9]+)?)\s*([a-z%]+)\s*", text)
        unit = match[2].rstrip("s").replace("%", "percent") if match else ""
        try:
            amount = float(match[1]) if match else math.nan
        except ValueError:
            amount = math.nan
        match unit:
            case "step":
                steps = amount
            case "epoch":
                steps = amount * self.epoch / self.batch_size
            case "example":
                steps = amount / self.batch_size
            case "percent" if self.total is not None:
                steps = amount * self.total / 100
            case _:
                steps = math.nan
        if not math.isfinite(steps):
            known = _UNITS if self.total is not None else _UNITS[:-1]
            hint = nearest(unit, known)
            raise UserError(f"{key}={text!r} is not a duration: write a number and {', '.join(known)}.{hint}")
        # Whole epochs must not gain a step because 0.1 + 0.2 > 0.3.
        return max(math.ceil(steps - 1e-6), 1) if steps > 0 else 0
