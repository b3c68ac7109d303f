"""Targets of supervised training, computed together with the batches: labels of windows, or names of events."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from lsm_jax.captions.grammar import event_name
from lsm_jax.captions.semantic import EVENT_SUPPORT, TAG
from lsm_jax.config import Config, with_changes
from lsm_jax.data.store import Dataset
from lsm_jax.errors import UserError, nearest
from lsm_jax.windows import Event, Window

EVENT_TASK = "event_"  # begins the name of a task about events
MIN_EVENT_MINUTES = 30  # a shorter event, such as a mood, is widened about its middle
MARK = TAG  # a button press says when, not what
_MAX_EVENTS = 16  # of a window; more are thinned evenly
_MAX_CLASSES = 100
_SLEEP = f"{EVENT_TASK}sleep"


@dataclasses.dataclass(frozen=True)
class Targets:
    """What a supervised run predicts of windows.

    Attributes:
      task: the name of a label, or `event_KIND`.
      classes: names; empty for a number.
    """

    task: str
    classes: tuple[str, ...]

    @classmethod
    def from_config(cls, config: Config) -> Targets | None:
        """Of a configuration with its classes (`with_targets`); None if its objective is not supervised."""
        supervised = config.supervised
        return cls(supervised.task, supervised.classes) if config.objective.name == "supervised" else None

    def __call__(self, windows: Sequence[Window]) -> dict[str, np.ndarray]:
        """Entries of a batch: `spans` int32[b, k, 2], first minute and end of each target, and `targets` float32[b, k].

        A target is the place of a class, or a number. Where there is none, or one of another class, it is NaN.
        """
        batch = self.empty(len(windows))
        spans, targets = batch.values()
        for row, window in enumerate(windows):
            found = list(self._of(window))
            chosen = np.linspace(0, len(found) - 1, min(len(found), targets.shape[1])).round().astype(int)
            for place, (start, end, target) in enumerate(found[index] for index in chosen):
                spans[row, place], targets[row, place] = (start, end), target
        return batch

    def empty(self, windows: int) -> dict[str, np.ndarray]:
        """The entries of windows without a target."""
        most = _MAX_EVENTS if self.task.startswith(EVENT_TASK) else 1
        return {
            "spans": np.zeros((windows, most, 2), np.int32),
            "targets": np.full((windows, most), np.nan, np.float32),
        }

    def _of(self, window: Window) -> Iterator[tuple[int, int, float]]:
        """First minute, end and target of each example of a window."""
        if self.task.startswith(EVENT_TASK):
            recorded = np.asarray(window.observed.any(axis=1))
            kind = self.task.removeprefix(EVENT_TASK)
            named: list[tuple[int, int, float | str]] = list(named_events(kind, window.events, recorded))
        else:
            known = self.task in window.labels
            named = [(0, len(window.observed), window.labels[self.task])] if known else []
        for start, end, value in named:
            if not self.classes:
                yield start, end, float(value)
            elif class_name(value) in self.classes:
                yield start, end, self.classes.index(class_name(value))


def named_events(
    kind: str, events: Sequence[Event], recorded: Bool[np.ndarray, " t"]
) -> Iterator[tuple[int, int, str]]:
    """First minute, end and name of the events of a kind that are recorded for half of their minutes."""
    for event in events:
        name = event_name(event.name)
        missing = max(MIN_EVENT_MINUTES - (event.end - event.start), 0)
        start, end = max(int(event.start - missing / 2), 0), min(int(event.end + missing / 2), len(recorded))
        if event.kind == kind and name != MARK and start < end and recorded[start:end].mean() >= EVENT_SUPPORT:
            yield start, end, name


def class_name(value: float | str) -> str:
    """A label's value as the name of a class."""
    return value if isinstance(value, str) else f"{value:g}"


def with_targets(config: Config, datasets: Sequence[Dataset]) -> Config:
    """The configuration with the classes, or the mean and spread, of its task; unchanged if it is not supervised.

    They come from the data cards, so that the same data give the same.

    Raises:
      UserError: no such label or kind of events, nothing to tell apart, or a task of another objective.
    """
    supervised = config.supervised
    if config.objective.name != "supervised":
        if supervised.task:
            raise UserError(
                f"supervised.task={supervised.task!r} is for fine-tuning, and objective.name is "
                f"{config.objective.name!r}: use configs/finetune.py, or leave it out."
            )
        return config
    cards = [dataset.card for dataset in datasets]
    events = {kind for card in cards for kind in card.get("events", {})} - {"sleep"}
    labelled = {name for card in cards for name in card.get("labels", {})}
    tasks = sorted(labelled | {EVENT_TASK + kind for kind in events})
    if supervised.task not in tasks:
        known = f"The data have {', '.join(tasks) or 'neither labels nor events'}."
        if not supervised.task:
            raise UserError(f"supervised.task is empty: name what to predict. {known}")
        why = " Stages of sleep are spans within a night; probe them with `lsm evaluate --suite probe`."
        raise UserError(
            f"supervised.task: the data have no {supervised.task!r}.{nearest(supervised.task, tasks)} {known}"
            + (why if supervised.task == _SLEEP else "")
        )
    if supervised.classes:
        return config
    if supervised.task.startswith(EVENT_TASK):
        kind = supervised.task.removeprefix(EVENT_TASK)
        names = {event_name(name) for card in cards for name in card.get("events", {}).get(kind, {})}
        return _with_classes(config, names - {MARK})
    labels = [card["labels"][supervised.task] for card in cards if supervised.task in card.get("labels", {})]
    named = [_named_values(label) for label in labels]
    classes = {name for names in named for name in names}
    if any("distinct" in label for label in labels):
        if not all(named):
            raise UserError(
                f"supervised.task={supervised.task!r} has more texts than the data cards list, or numbers beside "
                "texts: name the classes to tell apart with supervised.classes."
            )
        return _with_classes(config, classes)
    if all(named) and len(classes) == 2:
        return _with_classes(config, classes)
    return config if supervised.sd else _with_moments(config, labels)


def _with_classes(config: Config, classes: set[str]) -> Config:
    if not 2 <= len(classes) <= _MAX_CLASSES:
        raise UserError(
            f"supervised.task={config.supervised.task!r} has {len(classes)} different values in the data cards: a task "
            f"has 2 to {_MAX_CLASSES} classes. Name those to tell apart with supervised.classes."
        )
    return with_changes(config, {"supervised.classes": sorted(classes)})


def _with_moments(config: Config, numbers: Sequence[Mapping[str, Any]]) -> Config:
    """With mean and standard deviation over the people of all datasets."""
    people = np.array([label["people"] for label in numbers], float)
    mean, sd = (np.array([label[key] for label in numbers]) for key in ("mean", "sd"))
    together = float(people @ mean / people.sum())
    spread = float(np.sqrt(people @ (sd**2 + (mean - together) ** 2) / people.sum()))
    if spread == 0:
        raise UserError(
            f"supervised.task={config.supervised.task!r} is {together:g} for everyone: nothing can be predicted."
        )
    return with_changes(config, {"supervised.mean": together, "supervised.sd": spread})


def _named_values(label: Mapping[str, Any]) -> set[str]:
    """All values of a label of a data card; none where the card does not list all."""
    if "mean" not in label:
        return {*label["values"]}
    # No other numbers of this mean and range spread as much as those that have one or two values only.
    most = (label["mean"] - label["min"]) * (label["max"] - label["mean"])
    extremes_only = "distinct" not in label and label["sd"] ** 2 >= most * (1 - 1e-6)
    return {class_name(label["min"]), class_name(label["max"])} if extremes_only else set()
