"""The probe suite: what labels and events can be read from frozen embeddings, beside what they are read from otherwise.

Probes learn from people whom nobody scores: on the splits of a dataset, or on person-grouped folds over everyone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeGuard

import jax
import numpy as np
from jaxtyping import Float

from lsm_jax.data.loader import Batch, WindowInfo
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import SPLITS, Dataset
from lsm_jax.errors import UserError, nearest
from lsm_jax.evals.probe_features import ENGINEERED, PROFILE, by_example, head_outputs, span_features
from lsm_jax.evals.probe_fit import (
    Fold,
    Scores,
    class_blind,
    few_people,
    linear_probe,
    pca_probe,
    person_folds,
    split_fold,
    tree_probe,
)
from lsm_jax.evals.probe_network import NetworkProbe
from lsm_jax.evals.probe_scores import HEADLINES, difference, replicates
from lsm_jax.evals.probe_tasks import Hidden, LoggedWindow, Task, make_tasks
from lsm_jax.evals.result import EvalResult, Row
from lsm_jax.evals.statistics import index_of, score_and_interval
from lsm_jax.evals.suite import Suite, corrupt_records, unique_names
from lsm_jax.objectives.base import NetworkObjective, Objective
from lsm_jax.objectives.pooling import check_pooling
from lsm_jax.objectives.supervised import Supervised
from lsm_jax.train.run import Run

OURS, RANDOM, REFERENCE = "pretrained", "random_encoder", "class_blind"
METHODS = (OURS, RANDOM, "engineered_linear", "engineered_trees", "pca")
NETWORKS = ("pretrained_attentive", "fine_tuned", "scratch")  # slow: only where they are asked for
OWN_HEAD = "own_head"  # of a supervised run, on the task that it has learnt
_PROBES: Mapping[str, tuple[Callable[..., Scores], str]] = {
    OURS: (linear_probe, OURS),
    RANDOM: (linear_probe, RANDOM),
    "engineered_linear": (linear_probe, ENGINEERED),
    "engineered_trees": (tree_probe, ENGINEERED),
    "pca": (pca_probe, PROFILE),
}
_FEW = (OURS, RANDOM, "engineered_linear")
SHOTS = (5, 10, 20, 50)
_DRAWS = 3
_MIN_EXAMPLES = 10
_MIN_FOLDS = 3

Networks = Mapping[str, NetworkProbe]
Features = Mapping[str, Float[np.ndarray, "n f"]]


@dataclasses.dataclass(frozen=True)
class Probe(Suite):
    """Probes of every label and event of the datasets.

    Attributes:
      methods: of `METHODS` and `NETWORKS`; `class_blind` is always there, and `OWN_HEAD` for a supervised run.
      folds: 0: learn from the training split, tune on the validation split, score the split. Otherwise so many
        person-grouped folds over all people, each scored once; the encoder may have seen their recordings. A label
        that it has learnt is not scored so.
      pooling: of token embeddings over a window, an event or a span.
      shots: numbers of labelled people of the few-shot curves.
      spans_per_person: of a task about spans at most this many of a person, drawn at random from their classes in
        turn; 0: all.
    """

    name: ClassVar[str] = "probe"
    objectives: ClassVar[tuple[str, ...]] = (
        "masked_reconstruction", "imputed_reconstruction", "simclr", "supervised", "clip", "siglip", "cap", "coca",
    )  # fmt: skip

    known_methods: ClassVar[tuple[str, ...]] = (*METHODS, *NETWORKS, OWN_HEAD)

    methods: tuple[str, ...] = METHODS
    folds: int = 0
    pooling: str = "channel_mean_sd"
    shots: tuple[int, ...] = SHOTS
    spans_per_person: int = 50

    def run(self, run: Run, datasets: Sequence[Dataset]) -> EvalResult:
        """See `Suite.run`. A task or dataset that cannot be scored is a note; UserError where none can be."""
        objective = self._checked(run)
        if self._adds_own_head(objective):
            return dataclasses.replace(self, methods=(*self.methods, OWN_HEAD)).run(run, datasets)
        untrained = jax.jit(objective.init)(jax.random.key(self.seed))
        encoders = {OURS: run.params, RANDOM: untrained}
        used = {OURS if name == OWN_HEAD else name for name in self.methods}
        encoders = {name: params for name, params in encoders.items() if name in used}
        parts: dict[str, list[Row]] = {"results": [], "comparisons": [], "details": []}
        notes: list[str] = []
        for name, dataset in unique_names(datasets).items():
            try:
                tasks, left_out = self._tasks(run, dataset)
            except UserError as error:
                notes.append(str(error))
                continue
            notes += [f"{name}: {sentence}" for sentence in left_out]
            networks = self._networks(run, dataset, objective, untrained)
            for task, features in self._with_features(run.spec, dataset, tasks, objective, encoders):
                rows, sentences = self._score(task, features, networks)
                if OWN_HEAD in self.methods and OWN_HEAD not in features and _has_learnt(objective, task):
                    learnt = "classes" if objective.classes else "a number"
                    sentences = [*sentences, f"{OWN_HEAD} is left out: it has learnt the label as {learnt}."]
                notes += [f"{name}: {task.name}: {sentence}" for sentence in sentences]
                for part, found in rows.items():
                    parts[part] += [{"dataset": name, **row} for row in found]
        if not parts["results"]:
            raise UserError("no task can be scored. " + " ".join(notes))
        notes += corrupt_records(datasets)
        settings = {name: getattr(self, name) for name in ("methods", "folds", "pooling", "spans_per_person")}
        made_with = self.provenance(run, **settings)
        notes = [self._protocol(run), *self._summary(parts), *notes]
        return EvalResult(self.name, provenance=made_with, notes=notes, **parts)

    def _checked(self, run: Run) -> NetworkObjective:
        """The run's objective; UserError where it or a setting does not suit the suite."""
        for method in self.methods:
            if method not in self.known_methods:
                raise UserError(
                    f"--methods: the suite {self.name} has no method {method!r}.{nearest(method, self.known_methods)} "
                    f"Known: {', '.join(self.known_methods)}."
                )
        if self.folds and self.folds < _MIN_FOLDS:
            raise UserError(f"--folds {self.folds}: give 0 for the dataset's splits, or at least {_MIN_FOLDS}.")
        if self.spans_per_person < 0:
            raise UserError(
                f"--spans-per-person {self.spans_per_person}: give a number of spans, or 0 for all of them."
            )
        check_pooling(self.pooling)
        if not isinstance(run.objective, NetworkObjective):
            raise UserError(f"a run of objective {run.config.objective.name!r} has no token embeddings to probe.")
        return run.objective

    def _adds_own_head(self, objective: NetworkObjective) -> bool:
        """Whether the head of a supervised run is to be scored and is not among the methods yet.

        It has learnt the labels of all training people, so it is not scored on folds of everyone.

        Raises:
          UserError: it is asked for where there is none, or on folds.
        """
        if OWN_HEAD not in self.methods:
            return isinstance(objective, Supervised) and OWN_HEAD in self.known_methods and not self.folds
        if not isinstance(objective, Supervised):
            raise UserError(f"--methods {OWN_HEAD}: the run has no head; train one with configs/finetune.py.")
        if self.folds:
            raise UserError(
                f"--methods {OWN_HEAD} with --folds {self.folds}: the head would be scored on people whose labels it "
                "has learnt. Leave out --folds."
            )
        return False

    def _protocol(self, run: Run) -> str:
        """Who teaches the probes, who is scored, and what the encoder knows of them."""
        if not self.folds:
            tuning = "a fifth of its people" if self.split == "validation" else "validation people"
            return f"probes learn from the training split, are tuned on {tuning} and score {self.split}."
        sentence = (
            f"{self.folds} person-grouped folds over all people: the encoder may have seen these people's recordings "
            "(transductive)"
        )
        if run.objective.frozen:
            return f"{sentence}. It comes from {run.config.model.encoder_from}: see there what else it has learnt."
        if isinstance(run.objective, Supervised):
            return f"{sentence} and has learnt {run.objective.task} of those it was trained on."
        if run.tokenizer is not None:
            return f"{sentence} and their captions, which name what they did: scores are too high."
        return f"{sentence}, never their labels."

    def _batches(self, spec: DataSpec, dataset: Dataset) -> Iterator[tuple[Batch, list[WindowInfo]]]:
        """The windows of all splits, in the order in which tasks count them."""
        for split in SPLITS:
            yield from self.batches(spec, dataset.source(split))

    def _tasks(self, run: Run, dataset: Dataset) -> tuple[list[Task], list[str]]:
        """The tasks of a dataset and sentences about what makes none; UserError where the dataset cannot be used."""
        if not {*dataset.channels} & {*run.spec.channels}:
            raise UserError(f"{dataset.path}: has none of the run's channels ({', '.join(run.spec.channels)}).")
        people = {split: {*dataset.source(split).participants} for split in SPLITS}
        twice = {person for a in SPLITS for b in SPLITS if a < b for person in people[a] & people[b]}
        if twice:
            raise UserError(
                f"{dataset.path}: {len(twice)} people are in two splits, so that probes would be scored on people they "
                "have learnt from. Write the dataset again: `lsm ingest` and `lsm synth` keep people apart."
            )
        windows = [
            LoggedWindow.of(info.window, split)
            for split in SPLITS
            for _, infos in self.batches(run.spec, dataset.source(split))
            for info in infos
        ]
        tasks, notes = make_tasks(windows, self.spans_per_person, self.seed)
        if self.folds and not run.objective.frozen:
            notes += [
                f"{task.name} is left out: the encoder has learnt it from training people, whom --folds would score."
                for task in tasks
                if _has_learnt(run.objective, task)
            ]
            tasks = [task for task in tasks if not _has_learnt(run.objective, task)]
        if not tasks and not notes:
            notes = ["there is nothing to predict: it has neither labels nor events."]
        return tasks, notes

    def _networks(self, run: Run, dataset: Dataset, objective: NetworkObjective, untrained: Any) -> Networks:
        """The networks to train, with all windows of the dataset in memory; none where no method needs them."""
        named = [name for name in self.methods if name in NETWORKS]
        if not named:
            return {}
        parts = [
            {name: part[: len(infos)] for name, part in batch.items()}
            for batch, infos in self._batches(run.spec, dataset)
        ]
        windows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {
            name: NetworkProbe(
                objective, windows, untrained if name == "scratch" else run.params, name == NETWORKS[0], self.seed
            )
            for name in named
        }

    def _with_features(
        self,
        spec: DataSpec,
        dataset: Dataset,
        tasks: Sequence[Task],
        objective: NetworkObjective,
        encoders: Mapping[str, Any],
    ) -> Iterator[tuple[Task, Features]]:
        """Each task with the features of its examples. Windows are read once for each set of hidden channels."""
        sets: list[Hidden] = list(dict.fromkeys(task.hidden for task in tasks))
        for hidden in sets:
            same = [task for task in tasks if task.hidden == hidden]
            spans, place = np.unique(np.concatenate([task.spans for task in same]), axis=0, return_inverse=True)
            batches = self._batches(spec, dataset)
            of_spans = span_features(batches, spans, objective, encoders, self.pooling, spec, hidden)
            places = np.split(place.reshape(-1), np.cumsum([len(task.spans) for task in same])[:-1])
            for task, own in zip(same, places, strict=True):
                features = {name: by_example(x[own], task.example, len(task)) for name, x in of_spans.items()}
                if (
                    OWN_HEAD in self.methods
                    and _has_learnt(objective, task)
                    and bool(objective.classes) == bool(task.classes)  # or it learnt classes as a number
                ):
                    outputs = head_outputs(self._batches(spec, dataset), task, objective, encoders[OURS])
                    features[OWN_HEAD] = by_example(outputs, task.example, len(task))
                yield task, features

    def _score(self, task: Task, features: Features, networks: Networks) -> tuple[dict[str, list[Row]], list[str]]:
        """Rows of `results`, `comparisons` and `details`, and sentences about what is left out."""
        folds, notes = self._folds(task)
        if not folds:
            return {}, notes
        features = {name: x[:, ~np.isnan(x).all(axis=0)] for name, x in features.items()}
        scored = np.concatenate([fold.test for fold in folds])
        person = index_of(task.participant[scored])
        people = int(person.max()) + 1
        shared: Row = {"task": task.name, "unit": task.unit}
        size = {"examples": len(scored), "people": people}

        def measured(scores: Sequence[Scores], headline_only: bool = False) -> dict[str, Float[np.ndarray, " r"]]:
            stacked, target = np.concatenate(scores), task.target[scored]
            return replicates(stacked, target, len(task.classes), person, self.seed, headline_only=headline_only)

        def fitted(name: str) -> Iterator[Scores]:
            for number, fold in enumerate(folds):
                self.report(number, len(folds), f"{self.name} of {task.name}, {name}: folds")
                network = networks.get(name)
                yield network.scores(task, fold) if network else _scores(name, features, task, fold)

        scores = {name: list(fitted(name)) for name in self.methods if name != OWN_HEAD or name in features}
        scores[REFERENCE] = class_blind(task, folds)
        measures = {name: measured(of_folds) for name, of_folds in scores.items()}
        results = [
            shared | {"metric": metric, "method": method} | _value(values, people) | size
            for metric in measures[REFERENCE]
            for method, by_metric in measures.items()
            for values in [by_metric[metric]]
        ]
        return {
            "results": results,
            "comparisons": [shared | row | size for row in _comparisons(measures, people)],
            "details": [shared | row | size for row in self._few_shots(task, features, folds, measured, people)],
        }, notes

    def _folds(self, task: Task) -> tuple[list[Fold], list[str]]:
        """The folds, none where the task cannot be scored; and sentences about that and about what is left out."""
        if problem := self._problem(task):
            return [], [problem]
        folds = list(person_folds(task, self.folds, self.seed)) if self.folds else [self._split_fold(task)]
        folds, notes = _known_classes(task, folds)
        problem = next((found for fold in folds if (found := self._fold_problem(task, fold))), None)
        if problem:
            return [], [*notes, problem]
        if not all(len(fold.tune) for fold in folds):
            notes += [
                "there is one person to learn from, so nobody tunes: regularisation is medium, no tree is left out."
            ]
        return folds, notes

    def _split_fold(self, task: Task) -> Fold:
        return split_fold(task, self.split, self.seed)

    def _problem(self, task: Task) -> str | None:
        """Why a task cannot be scored at all."""
        people = len({*task.participant.tolist()})
        if len(task) < _MIN_EXAMPLES or people < max(self.folds, 2):
            return (
                f"{len(task)} examples of {people} people are too few; a probe takes {_MIN_EXAMPLES} examples of "
                f"{max(self.folds, 2)} people."
            )
        return None

    def _fold_problem(self, task: Task, fold: Fold) -> str | None:
        """Why a task cannot be scored on these people."""
        where = "of a fold" if self.folds else f"of the {self.split} split"
        for name, part in ((f"example {where}", fold.test), ("example to learn from", fold.train)):
            held = {*task.target[part].tolist()}
            if not held:
                return f"there is no {name}."
            if task.classes and len(held) < 2 and (not self.folds or part is fold.train):
                return f"every {name} is {task.classes[int(held.pop())]!r}, so there is nothing to tell apart."
        return None

    def _few_shots(
        self, task: Task, features: Features, folds: Sequence[Fold], measured: Any, people: int
    ) -> Iterator[Row]:
        """The headline metric of probes that learn from few people, the mean of some draws of them."""
        for shots in self.shots:
            draws = [
                [
                    few_people(task, fold.train, shots, (self.seed, shots, draw, number))
                    for number, fold in enumerate(folds)
                ]
                for draw in range(_DRAWS)
            ]
            if any(not len(chosen) for draw in draws for chosen in draw):
                continue
            for method in [each for each in _FEW if each in self.methods]:
                each = []
                for number, draw in enumerate(draws):
                    self.report(number, len(draws), f"{self.name} of {task.name}, {method}, {shots} people: draws")
                    few = [fold._replace(train=chosen) for fold, chosen in zip(folds, draw, strict=True)]
                    each.append(measured([_scores(method, features, task, fold, refit=False) for fold in few], True))
                for metric in each[0]:
                    together = np.mean([draw[metric] for draw in each], axis=0)
                    yield {"metric": metric, "method": method, "shots": shots} | _value(together, people)

    def _summary(self, parts: Mapping[str, Sequence[Row]]) -> list[str]:
        """In how many tasks the pre-trained encoder is ahead of each other method."""
        sentences = []
        for method in (*self.methods, REFERENCE):
            rows = [row for row in parts["comparisons"] if row["method"] == method and row["metric"] in HEADLINES]
            if rows:
                above, sure = (sum(row[key] for row in rows) for key in ("above", "sure"))
                sentences.append(
                    f"{OURS} is above {method} in {above} of {len(rows)} tasks, in {sure} with an interval above 0."
                )
        return sentences


def _has_learnt(objective: Objective, task: Task) -> TypeGuard[Supervised]:
    return isinstance(objective, Supervised) and objective.task == task.name


def _scores(method: str, features: Features, task: Task, fold: Fold, **settings: bool) -> Scores:
    """The scores of the test people by a probe of a method."""
    if method == OWN_HEAD:
        return features[OWN_HEAD][fold.test]
    probe, on = _PROBES[method]
    return probe(features[on], task, fold, **settings)


def _known_classes(task: Task, folds: Sequence[Fold]) -> tuple[list[Fold], list[str]]:
    """The folds without test examples of classes that their training people lack, and a sentence about these."""
    if not task.classes:
        return list(folds), []
    kept, unknown = [], set()
    for fold in folds:
        known = np.isin(task.target[fold.test], task.target[fold.train])
        unknown |= {int(number) for number in task.target[fold.test[~known]]}
        kept.append(fold._replace(test=fold.test[known]))
    names = ", ".join(repr(task.classes[number]) for number in sorted(unknown))
    left_out = sum(len(before.test) - len(after.test) for before, after in zip(folds, kept, strict=True))
    return kept, [f"{left_out} examples of {names} are left out: no training person has it."] if unknown else []


def _value(values: Float[np.ndarray, " r"], people: int) -> Row:
    value, interval = score_and_interval(values, people)
    return {"value": value, "ci95": interval}


def _comparisons(found: Mapping[str, Mapping[str, Float[np.ndarray, " r"]]], people: int) -> Iterator[Row]:
    """The pre-trained encoder minus every other method, paired by person."""
    ours = found.get(OURS, {})
    for method, by_metric in found.items():
        for metric in ours if method != OURS else ():
            value, interval = score_and_interval(difference(metric, ours[metric], by_metric[metric]), people)
            if value is not None:
                row = {"metric": metric, "method": method, "difference": value, "ci95": interval}
                yield row | {"above": value > 0, "sure": interval is not None and interval[0] > 0}
