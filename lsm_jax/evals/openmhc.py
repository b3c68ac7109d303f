"""OpenMHC's imputation track: six mask scenarios, and skill against the last observation carried forward.

Stanford's OpenMHC (19 channels of Apple's HealthKit) publishes masks and metric; both are done anew here on a run's own
channels and tokens, so that numbers compare methods on one dataset, and not with OpenMHC's leaderboard.

The skill of a method at a task is 1 - R. R is the geometric mean over people of the ratio of mean absolute errors,
method by last observation, each ratio clipped to 0.01 ... 100. The skill of several tasks, which are scenarios and
channels, takes the geometric mean of their R. 0 is as good as the last observation, 1 is perfect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from lsm_jax.evals.generative import METHODS, ErrorSums, Generative
from lsm_jax.evals.result import EvalResult, Row
from lsm_jax.evals.statistics import bootstrap, score_and_interval
from lsm_jax.tokens.tasks import OPENMHC_SCENARIOS, Task
from lsm_jax.train.run import Run

_REFERENCE = "last"
_LIMITS = (0.01, 100.0)
_REASONS = {
    "sleep_gap": "no window has a logged sleep with recorded channels besides those of sleep",
    "workout_gap": "no window has a logged workout with a recorded channel of heart rate or energy",
    "intensity_failure": "no window has a heart rate above 160 bpm",
}


@dataclasses.dataclass(frozen=True)
class OpenMHC(Generative):
    """The generative suite with OpenMHC's scenarios and its skill score."""

    name: ClassVar[str] = "openmhc"

    tasks: tuple[Task, ...] = OPENMHC_SCENARIOS

    def _result(
        self, sums: ErrorSums, run: Run, people: dict[str, dict[str, int]], windows: dict[str, int]
    ) -> EvalResult:
        """The generative suite's rows with `skill` and its interval, and rows of the task `overall`."""
        result = super()._result(sums, run, people, windows)
        skills = {(row["task"], row["channel"], row["method"]): row for row in skill_rows(sums, self.seed)}
        rows = [{**row, **skills[(row["task"], row["channel"], row["method"])]} for row in result.results]
        overall = [row for row in skills.values() if row["task"] == "overall"]
        notes = [
            *result.notes[: len(people)],
            "Skill against the last observation carried forward, with its 95 % interval over people: 1 - the geometric "
            "mean of ratios of mean absolute errors.",
            "*Ahead* is in squared error: 1 - model / best baseline, with its 95 % interval over people.",
            *_empty_scenarios(sums, people),
        ]
        return dataclasses.replace(result, results=[*rows, *overall], notes=notes)


def _empty_scenarios(sums: ErrorSums, people: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """A sentence for every dataset and scenario in which nothing was hidden."""
    for name, index in people.items():
        cells = sums.cells[:, list(index.values())].sum(axis=(1, 2))
        for task, count in zip(sums.tasks, cells, strict=True):
            if not count:
                yield f"{name}: {task.name} is left out, because {_REASONS.get(task.name, 'no window suits it')}."


def skill_rows(sums: ErrorSums, seed: int) -> list[Row]:
    """`skill` and `ci95_skill` by task, channel and method; channel `all` and task `overall` are geometric means.

    A person counts for a channel where the last observation has an error. The rows of `overall` have no errors.
    """
    reference = sums.errors[:, :, METHODS.index(_REFERENCE), :, 1]
    counts = reference > 0
    ratio = np.divide(
        sums.errors[..., 1], reference[:, :, None], out=np.ones_like(sums.errors[..., 1]), where=counts[:, :, None]
    )
    logs = np.log(np.clip(ratio, *_LIMITS)) * counts[:, :, None]

    def mean_logs(weights: Float[np.ndarray, "r p"]) -> Float[np.ndarray, "r t m c"]:
        total = np.einsum("rp,tpmc->rtmc", weights, logs, optimize=True)
        people = np.einsum("rp,tpc->rtc", weights, counts, optimize=True)[:, :, None]
        return np.divide(total, people, out=np.full(total.shape, np.nan), where=people > 0)

    replicates = bootstrap(mean_logs, np.arange(counts.shape[1]), seed)
    together = np.moveaxis(replicates, 2, 1).reshape(*replicates.shape[:1], len(METHODS), -1)
    rows: list[Row] = []
    for number, task in enumerate(sums.tasks):
        for column, channel in enumerate(sums.columns):
            every = slice(None) if channel == "all" else slice(column, column + 1)
            shared: Row = {"task": task.name, "setting": task.setting, "channel": channel}
            people = int(counts[number, :, every].any(axis=1).sum())
            rows += _skills(shared, replicates[:, number, :, every], people)
    everyone, windows = int(counts.any(axis=(0, 2)).sum()), int(sums.windows[:, :, -1].max(axis=0).sum())
    shared = {"task": "overall", "setting": "all", "channel": "all", "windows": windows, "people": everyone}
    return [*rows, *_skills(shared, together, everyone)]


def _skills(shared: Row, logs: Float[np.ndarray, "r m k"], people: int) -> Iterator[Row]:
    """A row per method, of the mean over what is defined of k logarithms."""
    defined = ~np.isnan(logs)
    count = defined.sum(axis=2)
    mean = np.divide(np.where(defined, logs, 0).sum(axis=2), count, out=np.full(count.shape, np.nan), where=count > 0)
    for number, method in enumerate(METHODS):
        skill, interval = score_and_interval(1 - np.exp(mean[:, number]), people)
        yield {**shared, "method": method, "skill": skill, "ci95_skill": interval}
