"""The generative suite: reconstruction of hidden tokens, compared with baselines, on people not trained on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from lsm_jax.channels import CLIPPED_AT_ZERO, REGISTRY
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import Dataset
from lsm_jax.errors import RunError, UserError
from lsm_jax.evals.baselines import CellIndex, predict_fills
from lsm_jax.evals.imputers import BASELINES, Cohort, People, fit_cohort, fit_people, predict_fitted
from lsm_jax.evals.result import EvalResult, Row
from lsm_jax.evals.statistics import bootstrap, score_and_interval, weighted_ratio
from lsm_jax.evals.suite import Suite, corrupt_records, unique_names
from lsm_jax.evals.task_batches import (
    Pairs,
    WindowStack,
    by_person,
    model_batch,
    other_days,
    person_stacks,
    scored_cells,
    task_pairs,
)
from lsm_jax.objectives import masked
from lsm_jax.tokens.tasks import GENERATIVE_TASKS, MARKS, Task
from lsm_jax.train.run import Run

MODEL_METHODS: tuple[str, ...] = ("model", "model_swapped_encoder", "context_only")
METHODS: tuple[str, ...] = (*MODEL_METHODS, *BASELINES)
_MEASURES = ("mse", "mae", "mse_natural", "mae_natural")
_PAIRS = 4  # pairs of a window and a task for each window of `batch_size`: together they fill rows
_COHORT_WINDOWS = 3000  # a mean by time of day hardly changes with more


@dataclasses.dataclass(frozen=True)
class Generative(Suite):
    """Scores a run and the baselines on every recorded cell that each task hides.

    `max_windows` takes people whole.

    Attributes:
      tasks: what is hidden.
      mask_channels: see `task_pairs`.
    """

    name: ClassVar[str] = "generative"
    objectives: ClassVar[tuple[str, ...]] = ("masked_reconstruction", "imputed_reconstruction")

    tasks: tuple[Task, ...] = GENERATIVE_TASKS
    mask_channels: int = 0

    def run(self, run: Run, datasets: Sequence[Dataset]) -> EvalResult:
        """See `Suite.run`. The baseline `cohort_time_of_day` is learnt from each dataset's training split."""
        objective, named = masked(run.objective), unique_names(datasets)
        sources = {name: dataset.nonempty_source(self.split) for name, dataset in named.items()}
        count = itertools.count()
        people = {
            name: {participant: next(count) for participant in sorted({*source.participants})}
            for name, source in sources.items()
        }
        sums = ErrorSums(self.tasks, sum(map(len, people.values())), run.spec.channels, run.spec.mean, run.spec.sd)
        total = sum(len(by_person(source, self.max_windows)) for source in sources.values())
        done = dict.fromkeys(sources, 0)
        marks = any(task.name in MARKS for task in self.tasks)
        for name, source in sources.items():
            cohort = _training_cohort(named[name], run.spec)
            for windows in person_stacks(source, run.spec, people[name], self.max_windows, marks=marks):
                fits = fit_people(windows, cohort)
                for pairs in task_pairs(
                    windows,
                    self.tasks,
                    objective.tokens,
                    self.seed,
                    self.batch_size * _PAIRS,
                    self.mask_channels,
                ):
                    _score_pairs(sums, run, windows, pairs, fits, cohort)
                done[name] += len(windows.values)
                self.report(sum(done.values()), total)
        self._check(sums, run, list(named))
        result = self._result(sums, run, people, done)
        return dataclasses.replace(result, notes=[*result.notes, *corrupt_records(datasets)])

    def _check(self, sums: ErrorSums, run: Run, names: Sequence[str]) -> None:
        if not sums.cells.any():
            raise UserError(
                f"split {self.split!r} of {', '.join(names)} has no window in which a task could hide something: "
                f"does it share no channel with the run ({', '.join(run.spec.channels)})?"
            )
        if not np.isfinite(sums.errors).all():
            raise RunError(
                f"the model of step {run.step} reconstructs values that are not finite; it cannot be scored."
            )

    def _result(
        self, sums: ErrorSums, run: Run, people: dict[str, dict[str, int]], windows: dict[str, int]
    ) -> EvalResult:
        members = {name: np.array(list(index.values())) for name, index in people.items()}
        scored = {
            name: {"windows": windows[name], "people": int(sums.cells[:, index].any(axis=(0, 2)).sum())}
            for name, index in members.items()
        }
        return EvalResult(
            suite=self.name,
            results=sums.rows(self.seed),
            comparisons=sums.comparisons(self.seed),
            encoder=sums.encoder_contributions(self.seed),
            by_dataset=[
                {"dataset": name, **row}
                for name, index in members.items()
                for row in sums.comparisons(self.seed, index)
                if row["channel"] == "all"
            ],
            notes=[
                *(
                    f"{name}: {counts['windows']} windows, {counts['people']} people."
                    for name, counts in scored.items()
                ),
                "Mean squared error of z-scored values over every recorded cell of hidden tokens; the lowest is bold.",
                "*Ahead* is 1 - model / best baseline, with its 95 % interval over people.",
                "*Encoder* is 1 - model / the same model given the encoder's output of another day "
                "(`model_swapped_encoder`). `context_only` has no encoder output at all.",
            ],
            # `lsm compare` pairs runs with equal cells (channels hidden together, asked for or not) and equal units.
            provenance=self.provenance(
                run,
                datasets=scored,
                mask_channels=self.mask_channels or masked(run.objective).tokens.patch_channels,
                normalisation={
                    name: [float(run.spec.mean[column]), float(run.spec.sd[column])]
                    for column, name in enumerate(run.spec.channels)
                    if sums.cells[:, :, column].any()
                },
            ),
            by_person=sums.by_person(people),
        )


def _score_pairs(sums: ErrorSums, run: Run, windows: WindowStack, pairs: Pairs, fits: People, cohort: Cohort) -> None:
    """Adds one batch of (window, task) pairs to the sums."""
    objective = masked(run.objective)
    visible, cells = scored_cells(windows, pairs, objective.tokens)
    batch, hidden = model_batch(windows, pairs, visible)
    with ThreadPoolExecutor(1) as thread:  # the baselines are computed while the devices work
        reconstructed = thread.submit(objective.ablate_encoder, run.params, batch, hidden, other_days(pairs))
        values, bins = windows.values[pairs.window], windows.bins[pairs.window]
        people = fits[pairs.window]
        predictions = dict(predict_fills(values, visible, cells, people.at_minutes(bins), cohort.profile[bins]))
        predictions |= predict_fitted(values, visible, bins, cells, cohort, people)
        for method, predicted in zip(MODEL_METHODS, reconstructed.result(), strict=True):
            predictions[method] = predicted[tuple(cells)]
    sums.add(values[tuple(cells)], predictions, cells, pairs.task, windows.person[pairs.window])


def _training_cohort(dataset: Dataset, spec: DataSpec) -> Cohort:
    """What the baselines learn from a dataset's training split."""
    source = dataset.source("train")
    person = {participant: index for index, participant in enumerate(sorted({*source.participants}))}
    return fit_cohort(person_stacks(source, spec, person, _COHORT_WINDOWS), len(spec.channels))


class ErrorSums:
    """Accumulates errors over batches. Everything is a sum, so batches and their order do not matter.

    Attributes:
      errors: [tasks, people, methods, channels, 4]: sums of squared and absolute error, z-scored, then natural units.
      cells: [tasks, people, channels]: scored cells.
      windows: [tasks, people, channels + 1]: windows with scored cells; the last column is any channel.
    """

    def __init__(
        self, tasks: Sequence[Task], people: int, channels: Sequence[str], mean: np.ndarray, sd: np.ndarray
    ) -> None:
        self.tasks, self.columns = tuple(tasks), (*channels, "all")
        self._mean, self._sd = np.asarray(mean, np.float32), np.asarray(sd, np.float32)
        self._floor = np.array([0.0 if name in CLIPPED_AT_ZERO else -np.inf for name in channels])
        self.errors = np.zeros((len(tasks), people, len(METHODS), len(channels), len(_MEASURES)))
        self.cells = np.zeros((len(tasks), people, len(channels)))
        self.windows = np.zeros((len(tasks), people, len(channels) + 1))

    def add(
        self,
        truth: Float[np.ndarray, " n"],
        predictions: Mapping[str, Float[np.ndarray, " n"]],
        cells: CellIndex,
        task: Int[np.ndarray, " b"],
        person: Int[np.ndarray, " b"],
    ) -> None:
        """Adds a batch of b windows.

        Args:
          truth, predictions: z-scored, at `cells`; predictions by method.
          task, person: indices, of each window.
        """
        shape = (len(task), self.cells.shape[2])
        slot = cells.window * shape[1] + cells.channel

        def total(weights: np.ndarray | None) -> np.ndarray:
            return np.bincount(slot, weights, minlength=shape[0] * shape[1]).reshape(shape)

        counts = total(None)
        np.add.at(self.cells, (task, person), counts)
        touched = np.concatenate([counts > 0, (counts > 0).any(axis=1, keepdims=True)], axis=1)
        np.add.at(self.windows, (task, person), touched)
        truth_natural = self._natural(truth, cells.channel)
        for number, method in enumerate(METHODS):
            error = predictions[method].astype(np.float64) - truth
            # Negative steps and the like do not exist: SensorLM's code clips them, too.
            natural = np.maximum(self._natural(predictions[method], cells.channel), self._floor[cells.channel])
            error_natural = natural - truth_natural
            measures = (error**2, np.abs(error), error_natural**2, np.abs(error_natural))
            sums = np.stack([total(measure) for measure in measures], axis=-1)
            np.add.at(self.errors[:, :, number], (task, person), sums)

    def _natural(self, scaled: np.ndarray, channel: np.ndarray) -> np.ndarray:
        return scaled.astype(np.float64) * self._sd[channel] + self._mean[channel]

    def rows(self, seed: int) -> list[Row]:
        """`results`: one row per task, channel (`all` is the total) and method."""
        rows = []
        for shared, column, errors, cells in self._totals():
            replicates = bootstrap(weighted_ratio(errors[..., 0], cells[:, None]), np.arange(len(cells)), seed)
            means = errors.sum(axis=0) / cells.sum()
            for number, method in enumerate(METHODS):
                measures = dict(zip(_MEASURES, means[number].tolist(), strict=True))
                if column == "all":  # units differ between channels
                    measures |= {"mse_natural": None, "mae_natural": None}
                _, interval = score_and_interval(replicates[:, number], shared["people"])
                unit = REGISTRY[column].unit if column in REGISTRY else None
                numbers = {"method": method, **measures, "unit": unit, "ci95": interval, "cells": int(cells.sum())}
                rows.append({**shared, **numbers})
        return rows

    def by_person(self, people: Mapping[str, Mapping[str, int]]) -> list[Row]:
        """The model's squared errors and the scored cells of every person, by data set; see `EvalResult.by_person`."""
        errors, cells = self.errors[:, :, 0, :, 0].sum(axis=2), self.cells.sum(axis=2)
        return [
            {
                "dataset": dataset,
                "participant": participant,
                "scores": {
                    f"{task.name} {task.setting}": [float(errors[number, index]), int(cells[number, index])]
                    for number, task in enumerate(self.tasks)
                    if cells[number, index]
                },
            }
            for dataset, numbered in people.items()
            for participant, index in numbered.items()
            if cells[:, index].any()
        ]

    def comparisons(self, seed: int, people: np.ndarray | None = None) -> list[Row]:
        """The model against the best baseline of each task and channel, paired: the same people drawn for both.

        Args:
          people: only these people (indices), for example those of one dataset.
        """
        rows = []
        for shared, _, errors, cells in self._totals(people):
            squared = errors[..., 0]
            first = len(MODEL_METHODS)
            best = int(squared[:, first:].sum(axis=0).argmin()) + first
            rows += _compared(squared[:, 0], squared[:, best], METHODS[best], shared, cells, seed)
        return rows

    def encoder_contributions(self, seed: int) -> list[Row]:
        """The model against itself with another day's encoder output, and without any, as `comparisons`."""
        return [
            row
            for shared, column, errors, cells in self._totals()
            if column == "all"
            for number, method in enumerate(MODEL_METHODS[1:], start=1)
            for row in _compared(errors[:, 0, 0], errors[:, number, 0], method, shared, cells, seed)
        ]

    def _totals(self, people: np.ndarray | None = None) -> Iterator[tuple[Row, str, np.ndarray, np.ndarray]]:
        """For each task and channel with cells: shared keys, channel, errors [p, m, 4] and cells [p] of its people."""
        chosen = np.arange(self.cells.shape[1]) if people is None else people
        for number, task in enumerate(self.tasks):
            # Drawing people without a single cell would only widen the intervals by chance.
            scored = chosen[self.cells[number, chosen].any(axis=1)]
            for column, channel in enumerate(self.columns):
                every = slice(None) if channel == "all" else slice(column, column + 1)
                errors, cells = self.errors[number, scored, :, every].sum(axis=2), self.cells[number, scored, every]
                cells = cells.sum(axis=1)
                if cells.any():
                    yield {
                        "task": task.name, "setting": task.setting, "channel": channel,
                        "windows": int(self.windows[number, scored, column].sum()), "people": int((cells > 0).sum()),
                    }, channel, errors, cells  # fmt: skip


def _compared(
    model: Float[np.ndarray, " p"],
    reference: Float[np.ndarray, " p"],
    method: str,
    shared: Row,
    cells: Float[np.ndarray, " p"],
    seed: int,
) -> list[Row]:
    """The row of one comparison of squared errors by person; none where the reference has no error."""
    if not reference.sum():
        return []
    ratio = bootstrap(weighted_ratio(model, reference), np.arange(len(cells)), seed)
    _, interval = score_and_interval(1 - ratio, shared["people"])
    numbers = {"baseline": method, "improvement": float(1 - model.sum() / reference.sum()), "ci95": interval}
    numbers |= {"model_mse": float(model.sum() / cells.sum()), "baseline_mse": float(reference.sum() / cells.sum())}
    return [{**shared, **numbers}]
