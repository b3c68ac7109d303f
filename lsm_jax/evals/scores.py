"""Errors kept per task, person, method and channel, and what they sum up to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lsm_jax.channels import CLIPPED_AT_ZERO, REGISTRY
from lsm_jax.evals.baselines import BASELINES, Cells
from lsm_jax.evals.statistics import person_draws, pooled_mean_interval, relative_improvement_interval
from lsm_jax.tokens.tasks import Task

METHODS: tuple[str, ...] = ("model", *BASELINES)
_MEASURES = ("mse", "mae", "mse_natural", "mae_natural")


@dataclasses.dataclass
class Scores:
    """Sums of errors.

    Attributes:
      errors: [tasks, people, methods, channels, 4]: sums of squared and absolute error, z-scored, then natural.
      cells: [tasks, people, channels]: recorded hidden cells scored.
      windows: [tasks, people, channels + 1]: windows with such cells; the last column is any channel.
    """

    tasks: tuple[Task, ...]
    channels: tuple[str, ...]
    mean: Float[np.ndarray, " c"]
    sd: Float[np.ndarray, " c"]
    errors: Float[np.ndarray, "k p m c 4"]
    cells: Float[np.ndarray, "k p c"]
    windows: Float[np.ndarray, "k p c+1"]

    @classmethod
    def empty(
        cls, tasks: Sequence[Task], people: int, channels: Sequence[str], mean: np.ndarray, sd: np.ndarray
    ) -> Scores:
        count = len(channels)
        return cls(
            tasks=tuple(tasks),
            channels=tuple(channels),
            mean=np.asarray(mean, np.float32),
            sd=np.asarray(sd, np.float32),
            errors=np.zeros((len(tasks), people, len(METHODS), count, len(_MEASURES))),
            cells=np.zeros((len(tasks), people, count)),
            windows=np.zeros((len(tasks), people, count + 1)),
        )

    def add(
        self,
        truth: Float[np.ndarray, " n"],
        predictions: Mapping[str, Float[np.ndarray, " n"]],
        cells: Cells,
        task: Int[np.ndarray, " b"],
        person: Int[np.ndarray, " b"],
    ) -> None:
        """Adds a batch: z-scored truth and predictions at `cells`, whose windows belong to `task` and `person`."""
        shape = (len(task), len(self.channels))
        slot = cells.window * shape[1] + cells.channel

        def total(weights: np.ndarray | None) -> np.ndarray:
            return np.bincount(slot, weights, minlength=shape[0] * shape[1]).reshape(shape)

        counts = total(None)
        np.add.at(self.cells, (task, person), counts)
        touched = np.concatenate([counts > 0, (counts > 0).any(axis=1, keepdims=True)], axis=1)
        np.add.at(self.windows, (task, person), touched)
        truth_natural = self._natural(truth, cells.channel)
        floor = np.array([0.0 if name in CLIPPED_AT_ZERO else -np.inf for name in self.channels])[cells.channel]
        for number, method in enumerate(METHODS):
            wrong = predictions[method].astype(np.float64) - truth
            wrong_natural = np.maximum(self._natural(predictions[method], cells.channel), floor) - truth_natural
            measures = (wrong**2, np.abs(wrong), wrong_natural**2, np.abs(wrong_natural))
            sums = np.stack([total(measure) for measure in measures], axis=-1)
            np.add.at(self.errors[:, :, number], (task, person), sums)

    def _natural(self, scaled: np.ndarray, channel: np.ndarray) -> np.ndarray:
        return scaled.astype(np.float64) * self.sd[channel] + self.mean[channel]

    def rows(self, seed: int) -> list[dict[str, Any]]:
        """`results`: one row per task, channel (`all` is the total) and method."""
        return [row for number in range(len(self.tasks)) for row in self._task_rows(number, seed)]

    def _task_rows(self, number: int, seed: int) -> list[dict[str, Any]]:
        errors, cells, windows = self._of_task(number)
        draws = person_draws(len(cells), seed)
        interval = pooled_mean_interval(errors[..., 0], cells[:, None, :], draws)
        totals, counted = errors.sum(axis=0), cells.sum(axis=0)
        rows: list[dict[str, Any]] = []
        for column, channel in enumerate((*self.channels, "all")):
            if not counted[column]:
                continue
            for place, method in enumerate(METHODS):
                measures = dict(zip(_MEASURES, (totals[place, column] / counted[column]).tolist(), strict=True))
                if channel == "all":  # units differ between channels
                    measures |= {"mse_natural": None, "mae_natural": None}
                rows.append(
                    {
                        "task": self.tasks[number].name,
                        "setting": self.tasks[number].setting,
                        "channel": channel,
                        "method": method,
                        **measures,
                        "unit": REGISTRY[channel].unit if channel in REGISTRY else None,
                        "ci95": _pair(interval[:, place, column]),
                        "windows": int(windows[:, column].sum()),
                        "people": int((cells[:, column] > 0).sum()),
                        "cells": int(counted[column]),
                    }
                )
        return rows

    def comparisons(self, seed: int, people: np.ndarray | None = None) -> list[dict[str, Any]]:
        """The model against the best baseline of each task and channel, the same people drawn for both.

        Args:
          people: only these people (indices), e.g. those of one data set.
        """
        return [row for number in range(len(self.tasks)) for row in self._task_comparisons(number, seed, people)]

    def _task_comparisons(self, number: int, seed: int, people: np.ndarray | None) -> list[dict[str, Any]]:
        errors, cells, windows = self._of_task(number, people)
        draws = person_draws(len(cells), seed)
        squared, counted = errors[..., 0], cells.sum(axis=0)
        best = squared[:, 1:].sum(axis=0).argmin(axis=0) + 1
        everyone = np.arange(squared.shape[2])
        of_best = squared[:, best, everyone]
        interval = relative_improvement_interval(squared[:, 0], of_best, cells, draws)
        rows = []
        for column, channel in enumerate((*self.channels, "all")):
            total_best, total_model = of_best[:, column].sum(), squared[:, 0, column].sum()
            if counted[column] and total_best > 0:
                rows.append(
                    {
                        "task": self.tasks[number].name,
                        "setting": self.tasks[number].setting,
                        "channel": channel,
                        "baseline": METHODS[best[column]],
                        "model_mse": float(total_model / counted[column]),
                        "baseline_mse": float(total_best / counted[column]),
                        "improvement": float(1 - total_model / total_best),
                        "ci95": _pair(interval[:, column]),
                        "windows": int(windows[:, column].sum()),
                        "people": int((cells[:, column] > 0).sum()),
                    }
                )
        return rows

    def _of_task(self, number: int, people: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Errors [p, m, c + 1, 4], cells and windows [p, c + 1] of the people scored; the last column is the total."""
        chosen = np.arange(self.cells.shape[1]) if people is None else people
        # Drawing people without a single cell would only widen the intervals by chance.
        chosen = chosen[self.cells[number, chosen].any(axis=1)]
        errors, cells = self.errors[number, chosen], self.cells[number, chosen]
        return (
            np.concatenate([errors, errors.sum(axis=2, keepdims=True)], axis=2),
            np.concatenate([cells, cells.sum(axis=1, keepdims=True)], axis=1),
            self.windows[number, chosen],
        )


def _pair(interval: np.ndarray) -> list[float] | None:
    return None if np.isnan(interval).any() else [float(interval[0]), float(interval[1])]
