"""The robustness suite: how much probes lose when sensors, hours or random half-hours are missing at test time.

Probes of the probe suite are fitted to full recordings and scored on the same test examples twice, in full and reduced.
LSM-2 (arXiv 2506.05321) removes sensors and hours likewise; which ones is not published.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from lsm_jax.data.loader import Batch, WindowInfo
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import Dataset
from lsm_jax.evals.probe import OURS, RANDOM, Features, Networks, Probe
from lsm_jax.evals.probe_features import ENGINEERED
from lsm_jax.evals.probe_fit import Fold, linear_probe
from lsm_jax.evals.probe_scores import difference, replicates
from lsm_jax.evals.probe_tasks import Task
from lsm_jax.evals.removals import Removal, reduced, removals
from lsm_jax.evals.result import Row
from lsm_jax.evals.statistics import index_of, score_and_interval
from lsm_jax.objectives.base import NetworkObjective

METHODS = (OURS, RANDOM, "engineered_linear")
_FEATURES = {OURS: OURS, RANDOM: RANDOM, "engineered_linear": ENGINEERED}
_WHOLE_UNITS = ("person", "window")


class ReducedFeatures(dict[str, np.ndarray]):
    """Features of a task's examples by name.

    Attributes:
      reduced: by removal the features of the examples that are scored.
    """

    reduced: dict[Removal, Features]


@dataclasses.dataclass(frozen=True)
class Robustness(Probe):
    """Drops of probes that are fitted to full recordings.

    Hours are only taken away for tasks about whole windows: without a span's own minutes there is nothing to score.

    Attributes:
      methods: of `METHODS`.
      kinds: what is taken away, of `Removal.KINDS`.
      removal: what the batches lack; the suite sets it.
    """

    name: ClassVar[str] = "robustness"
    known_methods: ClassVar[tuple[str, ...]] = METHODS

    methods: tuple[str, ...] = METHODS
    kinds: tuple[str, ...] = Removal.KINDS
    removal: Removal | None = dataclasses.field(default=None, repr=False)

    def _batches(self, spec: DataSpec, dataset: Dataset) -> Iterator[tuple[Batch, list[WindowInfo]]]:
        batches = super()._batches(spec, dataset)
        yield from reduced(batches, spec.channels, self.removal, self.seed) if self.removal else batches

    def _with_features(
        self,
        spec: DataSpec,
        dataset: Dataset,
        tasks: Sequence[Task],
        objective: NetworkObjective,
        encoders: Mapping[str, Any],
    ) -> Iterator[tuple[Task, Features]]:
        """Each task with its features, in full and reduced. Tasks that cannot be scored are not reduced."""
        full = list(super()._with_features(spec, dataset, tasks, objective, encoders))
        by_task = {task.name: ReducedFeatures(features) for task, features in full}
        for own in by_task.values():
            own.reduced = {}
        scored = [task.only(self._scored(task)) for task, _ in full if self._folds(task)[0]]
        channels = [name for name in spec.channels if name in dataset.channels]
        for removal in removals(channels):
            suited = [task for task in scored if _suits(removal, task, channels)]
            if removal.kind in self.kinds and suited:
                less = dataclasses.replace(self, removal=removal)
                for task, features in super(Robustness, less)._with_features(
                    spec, dataset, suited, objective, encoders
                ):
                    kept = {name: features[name].astype(np.float32) for name in {*encoders, ENGINEERED}}
                    by_task[task.name].reduced[removal] = kept
        yield from ((task, by_task[task.name]) for task, _ in full)

    def _scored(self, task: Task) -> Bool[np.ndarray, " n"]:
        """The examples that are scored, in some fold."""
        return np.isin(np.arange(len(task)), np.concatenate([fold.test for fold in self._folds(task)[0]]))

    def _score(self, task: Task, features: Features, networks: Networks) -> tuple[dict[str, list[Row]], list[str]]:  # noqa: ARG002
        """Rows of `results` and `comparisons`, and sentences about what is left out; `networks` has none here."""
        folds, notes = self._folds(task)
        if not folds or not isinstance(features, ReducedFeatures):
            return {}, notes
        scored = np.concatenate([fold.test for fold in folds])
        person = index_of(task.participant[scored])
        people, shared = int(person.max()) + 1, {"task": task.name, "unit": task.unit}
        size = {"examples": len(scored), "people": people}
        results: list[Row] = []
        comparisons: list[Row] = []
        drops: dict[tuple[str, Removal], Float[np.ndarray, " r"]] = {}
        for method in self.methods:
            full, *less = (
                next(iter(replicates(
                    scores, task.target[scored], len(task.classes), person, self.seed, headline_only=True
                ).items()))
                for scores in self._scores(_FEATURES[method], task, features, folds)
            )  # fmt: skip
            metric = full[0]
            for removal, (_, values) in zip(features.reduced, less, strict=True):
                drops[method, removal] = difference(metric, full[1], values)
                drop, interval = score_and_interval(drops[method, removal], people)
                value, full_value = (score_and_interval(each, people)[0] for each in (values, full[1]))
                numbers = {"value": value, "full_value": full_value, "drop": drop, "ci95": interval}
                named = {"removal": removal.name, "kind": removal.kind, "metric": metric, "method": method}
                results.append(shared | named | numbers | size)
        for method, removal in drops if OURS in self.methods else ():
            margin, interval = score_and_interval(drops[method, removal] - drops[OURS, removal], people)
            if method != OURS and margin is not None:
                named = {"removal": removal.name, "kind": removal.kind, "metric": metric, "method": method}
                row: Row = {"difference": margin, "ci95": interval, "above": margin > 0}
                row["sure"] = interval is not None and interval[0] > 0
                comparisons.append(shared | named | row | size)
        return {"results": results, "comparisons": comparisons}, notes

    def _scores(
        self, name: str, task: Task, features: ReducedFeatures, folds: Sequence[Fold]
    ) -> list[Float[np.ndarray, "n k"]]:
        """Scores of the test examples in full, then for each removal, by one probe for all of them."""
        place = np.cumsum(self._scored(task)) - 1
        by_fold = []
        for fold in folds:
            less = [part[name][place[fold.test]] for part in features.reduced.values()]
            added = len(task) + np.arange(len(less) * len(fold.test))
            everything = np.concatenate([features[name], *less])
            scores = linear_probe(everything, task, fold._replace(test=np.concatenate([fold.test, added])))
            by_fold.append(scores.reshape(1 + len(less), len(fold.test), -1))
        return list(np.concatenate(by_fold, axis=1))

    def _summary(self, parts: Mapping[str, Sequence[Row]]) -> list[str]:
        """Mean drops, and how often the pre-trained encoder's is smaller."""
        sentences = [
            "probes learn from full recordings; a drop is the full score minus that of the same test examples reduced."
        ]
        for kind in self.kinds:
            rows = [row for row in parts["results"] if row["kind"] == kind and row["drop"] is not None]
            means = (
                f"{method} {np.mean([row['drop'] for row in rows if row['method'] == method]):.3f}"
                for method in self.methods
                if any(row["method"] == method for row in rows)
            )
            if rows:
                sentences.append(f"mean drop without {'a sensor' if kind == 'sensor' else kind}: {', '.join(means)}.")
        for method in self.methods:
            rows = [row for row in parts["comparisons"] if row["method"] == method]
            if rows:
                above, sure = (sum(row[key] for row in rows) for key in ("above", "sure"))
                sentences.append(
                    f"{OURS} loses less than {method} in {above} of {len(rows)} tasks and removals, in {sure} with an "
                    "interval above 0."
                )
        return sentences


def _suits(removal: Removal, task: Task, channels: Sequence[str]) -> bool:
    """Whether something is taken away from a task that leaves something: its hidden channels nobody reads anyway."""
    if removal.kind == "hours" and task.unit not in _WHOLE_UNITS:
        return False
    return removal in removals(name for name in channels if name not in task.hidden)
