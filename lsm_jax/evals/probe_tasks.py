"""Probe tasks: every label and every kind of event of a dataset becomes something to predict.

| task | unit | example |
|---|---|---|
| `LABEL` | person, or window where it differs between windows of a person | the label: class or number |
| `event_KIND` | event | which of several names an event has |
| `stage_sleep` | span | which of several sleep stages covers 10 minutes |
| `detect_KIND` | span | whether an activity, the only name of a kind or "asleep" covers 30 minutes |
| `minutes_KIND` | window | minutes of the only name of a kind or "asleep", in windows that log it |
| `mean_CHANNEL` | span | mean over 30 minutes of a channel that is hidden from every method (glucose) |
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.captions.grammar import event_name
from lsm_jax.captions.semantic import EVENT_SUPPORT
from lsm_jax.data.targets import MARK, class_name, named_events
from lsm_jax.windows import Event, Window

STAGE_MINUTES, DETECT_MINUTES = 10, 30
MAX_EXAMPLES = 6000  # of a task; more are thinned evenly
MAX_CLASSES = 30
ASLEEP = "asleep"  # the stage that holds all of a sleep, in logs that name others within it
TARGET_CHANNELS = ("glucose",)
TELLING_CHANNELS = {"sleep": ("sleep_state",)}  # they hold what events of the kind say
Hidden = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LoggedWindow:
    """What a log says about one window.

    Attributes:
      events: with names as in captions, without button presses.
      recorded: by hidden channels, the minutes at which another channel was observed.
      channels: values of `TARGET_CHANNELS`, in their unit; NaN where not observed.
    """

    participant: str
    split: str
    labels: Mapping[str, float | str]
    events: tuple[Event, ...]
    recorded: Mapping[Hidden, Bool[np.ndarray, " t"]]
    channels: Mapping[str, Float[np.ndarray, " t"]]

    @classmethod
    def of(cls, window: Window, split: str) -> LoggedWindow:
        """The log of a window."""
        named = (dataclasses.replace(event, name=event_name(event.name)) for event in window.events)
        hidden: list[Hidden] = [(), *TELLING_CHANNELS.values(), *((name,) for name in TARGET_CHANNELS)]
        kept = {names: [name not in names for name in window.channels] for names in hidden}
        places = {name: window.channels.index(name) for name in TARGET_CHANNELS if name in window.channels}
        return cls(
            window.participant,
            split,
            window.labels,
            tuple(event for event in named if event.name != MARK),
            {names: np.asarray(window.observed[:, columns].any(axis=1)) for names, columns in kept.items()},
            {
                name: np.where(window.observed[:, column], window.values[:, column], np.nan)
                for name, column in places.items()
            },
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: n examples over m spans of windows.

    Attributes:
      unit: what an example is: person, window, event or span.
      classes: names; empty for regression.
      target: of each example, a position in `classes` or a number.
      participant, split: of each example.
      spans: window, first minute and end of each span.
      example: the example of each span; features of an example are the mean over its spans.
      hidden: channels that no method may read.
    """

    name: str
    unit: str
    classes: tuple[str, ...]
    target: Float[np.ndarray, " n"]
    participant: np.ndarray
    split: np.ndarray
    spans: Int[np.ndarray, "m 3"]
    example: Int[np.ndarray, " m"]
    hidden: Hidden = ()

    def __len__(self) -> int:
        return len(self.target)

    def only(self, kept: Bool[np.ndarray, " n"]) -> Task:
        """The task with some of its examples."""
        of_kept, position = kept[self.example], np.cumsum(kept) - 1
        return dataclasses.replace(
            self,
            target=self.target[kept],
            participant=self.participant[kept],
            split=self.split[kept],
            spans=self.spans[of_kept],
            example=position[self.example[of_kept]],
        )


Row = tuple[int, int, int, float | str]  # window, first minute, end, target


def make_tasks(windows: Sequence[LoggedWindow], per_person: int = 0, seed: int = 0) -> tuple[list[Task], list[str]]:
    """All tasks of a dataset's windows, and sentences about labels that make none and examples that are left out.

    Args:
      per_person: at most this many spans of a person, drawn at random from their classes in turn; 0: all. Many spans
        of few people resemble each other: they take time and say little more.
    """
    tasks: list[Task] = []
    notes: list[str] = []
    for name in sorted({name for window in windows for name in window.labels}):
        made = _label_task(name, windows)
        tasks.append(made) if isinstance(made, Task) else notes.append(made)
    for kind in sorted({event.kind for window in windows for event in window.events}):
        tasks += _event_tasks(kind, windows)
    for channel in TARGET_CHANNELS:
        rows = list(_channel_means(channel, windows))
        if rows:
            tasks.append(_task(f"mean_{channel}", "span", (), rows, windows, (channel,)))
    tasks = [task for task in tasks if len(task)]
    fewer = [_thinned(_capped(task, per_person, seed)) for task in tasks]
    for before, after in zip(tasks, fewer, strict=True):
        if len(after) < len(before):
            capped = per_person and before.unit == "span"
            limit = f"at most {per_person} of a person, drawn at random" if capped else "evenly spread"
            notes.append(f"{after.name}: {len(after)} of {len(before)} examples are used, {limit}.")
    return fewer, notes


def _label_task(name: str, windows: Sequence[LoggedWindow]) -> Task | str:
    rows: list[Row] = [
        (number, 0, len(window.recorded[()]), window.labels[name])
        for number, window in enumerate(windows)
        if name in window.labels and window.recorded[()].any()
    ]
    values = {value for *_, value in rows}
    of_person: dict[str, set[float | str]] = defaultdict(set)
    for number, _, _, value in rows:
        of_person[windows[number].participant].add(value)
    if not rows:
        return f"{name}: no window with the label has a recorded value."
    classes: tuple[str, ...] = ()
    if any(isinstance(value, str) for value in values) or len(values) <= 2:
        classes = tuple(sorted(map(class_name, values)))
        rows = [(*span, class_name(value)) for *span, value in rows]  # type: ignore[misc]
    if len(classes) == 1:
        return f"{name}: every example is {classes[0]!r}, so there is nothing to tell apart."
    if len(classes) > MAX_CLASSES:
        return f"{name}: {len(classes)} different texts are too many for classes (at most {MAX_CLASSES})."
    task = _task(name, "window", classes, rows, windows)
    return task if any(len(each) > 1 for each in of_person.values()) else _by_person(task)


def _event_tasks(kind: str, windows: Sequence[LoggedWindow]) -> Iterator[Task]:
    """The tasks of one kind of event."""
    hidden = TELLING_CHANNELS.get(kind, ())
    events = [event for window in windows for event in window.events if event.kind == kind]
    names = tuple(sorted({event.name for event in events}))
    if len(names) > 1 and kind == "sleep":
        yield _task("stage_sleep", "span", names, list(_stages(kind, windows, hidden)), windows, hidden)
    elif len(names) > 1:
        yield _task(f"event_{kind}", "event", names, list(_events(kind, windows, hidden)), windows, hidden)
    detected = names if len(names) == 1 or kind == "activity" else tuple(name for name in names if name == ASLEEP)
    if detected:
        both, rows = (f"no {kind}", kind), list(_detections(kind, detected, windows, hidden))
        yield _task(f"detect_{kind}", "span", both, rows, windows, hidden)
    if len(detected) == 1 and any(event.end - event.start > 1 for event in events):
        rows = list(_minutes(kind, detected, windows, hidden))
        yield _task(f"minutes_{kind}", "window", (), rows, windows, hidden)


def _events(kind: str, windows: Sequence[LoggedWindow], hidden: Hidden) -> Iterator[Row]:
    for number, window in enumerate(windows):
        for start, end, name in named_events(kind, window.events, window.recorded[hidden]):
            yield number, start, end, name


def _stages(kind: str, windows: Sequence[LoggedWindow], hidden: Hidden) -> Iterator[Row]:
    for number, window in enumerate(windows):
        covered: dict[str, Float[np.ndarray, " s"]] = {}
        for event in window.events:
            if event.kind == kind:
                minutes = _overlap(event, len(window.recorded[hidden]), STAGE_MINUTES)
                covered[event.name] = covered.get(event.name, 0) + minutes
        for span, start, end in _recorded_spans(window.recorded[hidden], STAGE_MINUTES) if covered else ():
            # A stage within a longer one ("awake" within "asleep") is what it says.
            name = max(covered, key=lambda name: (covered[name][span], -covered[name].sum()))
            if 2 * covered[name][span] >= STAGE_MINUTES:
                yield number, start, end, name


def _detections(kind: str, names: Sequence[str], windows: Sequence[LoggedWindow], hidden: Hidden) -> Iterator[Row]:
    """Positive where an event covers half of the span, or half of the event is in it; negative where there is none."""
    for number, window in enumerate(windows):
        events = [event for event in window.events if event.kind == kind and event.name in names]
        overlaps = [_overlap(event, len(window.recorded[hidden]), DETECT_MINUTES) for event in events]
        needed = [min(event.end - event.start, DETECT_MINUTES) or 1 for event in events]
        for span, start, end in _recorded_spans(window.recorded[hidden], DETECT_MINUTES) if events else ():
            if any(2 * each[span] >= least for each, least in zip(overlaps, needed, strict=True)):
                yield number, start, end, kind
            elif not any(each[span] for each in overlaps):
                yield number, start, end, f"no {kind}"


def _minutes(kind: str, names: Sequence[str], windows: Sequence[LoggedWindow], hidden: Hidden) -> Iterator[Row]:
    for number, window in enumerate(windows):
        recorded = window.recorded[hidden]
        minutes = [event.end - event.start for event in window.events if event.kind == kind and event.name in names]
        if minutes and recorded.any():
            yield number, 0, len(recorded), float(sum(minutes))


def _channel_means(channel: str, windows: Sequence[LoggedWindow]) -> Iterator[Row]:
    for number, window in enumerate(windows):
        values = window.channels.get(channel, np.zeros(0))
        for _, start, end in _recorded_spans(window.recorded[channel,], DETECT_MINUTES) if len(values) else ():
            known = ~np.isnan(values[start:end])
            if 2 * known.sum() >= DETECT_MINUTES:
                yield number, start, end, float(values[start:end][known].mean())


def _overlap(event: Event, minutes: int, length: int) -> Float[np.ndarray, " s"]:
    """Minutes of an event in each span of a window; a moment counts as one."""
    starts = np.arange(minutes // length) * length
    end = event.end if event.end > event.start else event.start + 1
    return np.maximum(np.minimum(starts + length, end) - np.maximum(starts, event.start), 0)


def _recorded_spans(recorded: Bool[np.ndarray, " t"], length: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of the spans that are recorded for half of their minutes."""
    shares = recorded[: len(recorded) // length * length].reshape(-1, length).mean(axis=1)
    for span in np.flatnonzero(shares >= EVENT_SUPPORT).tolist():
        yield span, span * length, (span + 1) * length


def _task(
    name: str,
    unit: str,
    classes: tuple[str, ...],
    rows: Sequence[Row],
    windows: Sequence[LoggedWindow],
    hidden: Hidden = (),
) -> Task:
    """A task with one span per example."""
    position = {each: index for index, each in enumerate(classes)}
    return Task(
        name,
        unit,
        classes,
        np.array([position[str(row[3])] if classes else row[3] for row in rows], np.float64),
        np.array([windows[row[0]].participant for row in rows], str),
        np.array([windows[row[0]].split for row in rows], str),
        np.array([row[:3] for row in rows], np.int64).reshape(-1, 3),
        np.arange(len(rows)),
        hidden,
    )


def _by_person(task: Task) -> Task:
    """One example per person instead of one per window."""
    _, first, example = np.unique(task.participant, return_index=True, return_inverse=True)
    return dataclasses.replace(
        task, unit="person", target=task.target[first], participant=task.participant[first], split=task.split[first],
        example=example,
    )  # fmt: skip


def _capped(task: Task, per_person: int, seed: int) -> Task:
    """A task of spans with at most `per_person` of each person, drawn at random from their classes in turn; 0: all."""
    if task.unit != "span" or not per_person:
        return task
    order = np.random.default_rng(seed).permutation(len(task))
    person = np.unique(task.participant, return_inverse=True)[1][order]
    number = task.target[order].astype(int) if task.classes else 0
    by_turn = np.lexsort((_place_within(person * max(len(task.classes), 1) + number), person))
    kept = np.zeros(len(task), bool)
    kept[order[by_turn]] = _place_within(person[by_turn]) < per_person
    return task.only(kept)


def _place_within(group: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """How many items of the same group come before each item."""
    by_group = np.argsort(group, kind="stable")
    place = np.empty(len(group), int)
    place[by_group] = np.arange(len(group)) - np.searchsorted(group[by_group], group[by_group])
    return place


def _thinned(task: Task) -> Task:
    """At most `MAX_EXAMPLES` examples, evenly over the task."""
    kept = np.zeros(len(task), bool)
    kept[np.linspace(0, len(task) - 1, min(len(task), MAX_EXAMPLES)).round().astype(int)] = True
    return task.only(kept)
