"""The generative suite: a run against every baseline, on people it was never trained on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lsm_jax.data.loader import evaluation_batches
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import Dataset, WindowSource
from lsm_jax.errors import RunError, UserError
from lsm_jax.evals.baselines import predict_baselines
from lsm_jax.evals.pairs import (
    ByPerson,
    Pairs,
    Windows,
    model_batch,
    person_chunks,
    scored_cells,
    task_pairs,
)
from lsm_jax.evals.profiles import cohort_profile, person_profiles, time_bins
from lsm_jax.evals.results import Results, provenance
from lsm_jax.evals.scores import Scores
from lsm_jax.objectives import masked
from lsm_jax.tokens.tasks import GENERATIVE_TASKS, Task
from lsm_jax.train.run import Run

# A profile by time of day is settled long before this many windows; more would only take longer.
_COHORT_WINDOWS = 3000
_CHUNK_WINDOWS = 256

Progress = Callable[[int, int], None]


def evaluate_generative(
    run: Run,
    datasets: Mapping[str, Dataset],
    *,
    split: str = "test",
    tasks: Sequence[Task] = GENERATIVE_TASKS,
    max_windows: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Results:
    """Scores a run and the baselines on every recorded cell that each task hides.

    Args:
      run: from `load_run`; its objective must have `reconstruct` and `tokens`.
      datasets: by name; windows are laid out on the run's channels and z-scored with its normalisation.
      split: whose windows are scored; baselines learn the cohort's time of day from `train`.
      max_windows: at most this many windows of each data set, of people taken whole; a quick look.
      seed: of masks and bootstrap.
      batch_size: windows per model call, at most; those with very many tokens come in smaller batches.
      progress: told the windows done and in all.

    Raises:
      UserError: no window of `split` shares a recorded channel with the run, or the objective cannot reconstruct.
      RunError: the model's reconstructions are not finite.
    """
    objective = masked(run.objective)
    grid = objective.tokens
    people = _number_people({name: dataset.held_out(split) for name, dataset in datasets.items()})
    scores = Scores.empty(tasks, sum(map(len, people.values())), run.spec.channels, run.spec.mean, run.spec.sd)
    total = sum(len(ByPerson(dataset.source(split), max_windows)) for dataset in datasets.values())
    done = dict.fromkeys(datasets, 0)
    for name, dataset in datasets.items():
        cohort = training_cohort(dataset, run.spec)
        for windows in person_chunks(dataset.source(split), run.spec, people[name], max_windows):
            profile = person_profiles(windows.values, windows.observed, windows.bins, windows.person, cohort)
            for pairs in task_pairs(windows, tasks, grid, seed, batch_size, objective.max_context_tokens):
                score_pairs(scores, run, windows, pairs, profile, cohort)
            done[name] += len(windows.values)
            if progress:
                progress(sum(done.values()), max(total, sum(done.values())))
    _check(scores, run, split, datasets)
    settings = {"split": split, "seed": seed, "max_windows": max_windows}
    return _results(scores, run, settings, people, done)


def named(datasets: Iterable[Dataset]) -> dict[str, Dataset]:
    """Data sets by name; of several with one name the later ones are numbered."""
    by_name: dict[str, Dataset] = {}
    for dataset in datasets:
        alike = sum(other.name == dataset.name for other in by_name.values())
        by_name[f"{dataset.name}-{alike + 1}" if alike else dataset.name] = dataset
    return by_name


def score_pairs(
    scores: Scores,
    run: Run,
    windows: Windows,
    pairs: Pairs,
    profile: np.ndarray,
    cohort: np.ndarray,
) -> None:
    """Adds one batch of (window, task) pairs to `scores`."""
    objective = masked(run.objective)
    visible, cells = scored_cells(windows, pairs, objective.tokens)
    # The call returns at once; the baselines are made while the device reconstructs.
    batch, hidden = model_batch(windows, pairs, visible)
    reconstructed = objective.reconstruct(run.params, batch, hidden)
    values, bins = windows.values[pairs.window], windows.bins[pairs.window]
    of_person = np.take_along_axis(profile[pairs.window], bins[:, :, None], axis=1)
    predictions = dict(predict_baselines(values, visible, cells, of_person, cohort[bins]))
    predictions["model"] = np.asarray(reconstructed)[tuple(cells)]
    scores.add(values[tuple(cells)], predictions, cells, pairs.task, windows.person[pairs.window])


def training_cohort(dataset: Dataset, spec: DataSpec) -> np.ndarray:
    """The time-of-day mean of the training split of a data set, [bins, C], z-scored."""
    batches = evaluation_batches(dataset.source("train"), spec, _CHUNK_WINDOWS, _COHORT_WINDOWS)
    parts = (
        (batch["values"], batch["observed"], time_bins(batch["start_minute"], spec.window_minutes))
        for batch, _ in batches
    )
    return cohort_profile(parts, len(spec.channels))


def _results(
    scores: Scores,
    run: Run,
    settings: Mapping[str, Any],
    people: Mapping[str, Mapping[str, int]],
    windows: Mapping[str, int],
) -> Results:
    members = {name: np.array(list(numbers.values())) for name, numbers in people.items()}
    seed = settings["seed"]
    scored = {
        name: {"windows": windows[name], "people": int(scores.cells[:, indices].any(axis=(0, 2)).sum())}
        for name, indices in members.items()
    }
    return Results(
        suite="generative",
        results=scores.rows(seed),
        comparisons=scores.comparisons(seed),
        by_dataset=[
            {"dataset": name, **row}
            for name, indices in members.items()
            for row in scores.comparisons(seed, indices)
            if row["channel"] == "all"
        ],
        provenance={**provenance(run), **settings, "datasets": scored},
    )


def _check(scores: Scores, run: Run, split: str, datasets: Iterable[str]) -> None:
    if not scores.cells.any():
        raise UserError(
            f"split {split!r} of {', '.join(datasets)} has no window in which a task could hide something: "
            f"does it share no channel with the run ({', '.join(run.spec.channels)})?"
        )
    if not np.isfinite(scores.errors).all():
        raise RunError(f"the model of step {run.step} reconstructs values that are not finite; it cannot be scored.")


def _number_people(sources: Mapping[str, WindowSource]) -> dict[str, dict[str, int]]:
    """A number for every participant of every data set, from 0 on."""
    count = itertools.count()
    return {
        name: {participant: next(count) for participant in sorted({*source.participants})}
        for name, source in sources.items()
    }
