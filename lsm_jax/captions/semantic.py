"""The semantic level: what was logged or tagged, in order of time.

Thresholds are SensorLM's (arXiv 2506.09108): activities of at least 20 minutes, at most 8; sleep, at most 2; every
mood. The released code sorts ascending and so keeps the shortest activities; this keeps the longest. Meals and study
sessions are ours: at most 8 of each, the longest. Food logged item by item is one meal where items are at most 15
minutes apart, and button presses of a session come as one sentence per name.

An event counts only where the sensors were there: something was observed in at least half of its minutes, or of the
20 minutes around a shorter one. What a log says of hours that the device did not see is not the record's to tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from lsm_jax.captions.facts import Clock, Fact
from lsm_jax.captions.grammar import Statement, event_name
from lsm_jax.windows import Event, Window

SHORTEST_ACTIVITY = 20  # minutes
EVENT_SUPPORT = 0.5
SUPPORT_MINUTES = 20
MEAL_GAP = 15  # minutes
KINDS = ("activity", "sleep", "mood", "meal", "session")
_MOST = {"activity": 8, "sleep": 2, "meal": 8, "session": 8}


def semantic_statements(window: Window, kinds: Sequence[str] = KINDS) -> list[Statement]:
    """One statement per event kept, in order of start."""
    events = captioned_events(window, kinds)
    kept = [event for event in events if event.kind == "mood" or _is_mark(event)]
    for kind, most in _MOST.items():
        same = [event for event in events if event.kind == kind and not _is_mark(event)]
        kept += sorted(same, key=lambda event: (event.start - event.end, event.start))[:most]
    return _statements(kept, Clock(window))


def event_facts(window: Window) -> tuple[Fact, ...]:
    """Every fact the semantic level could state of a window, its limits on their number aside."""
    return tuple(fact for each in _statements(captioned_events(window), Clock(window)) for fact in each.facts)


def captioned_events(window: Window, kinds: Sequence[str] = KINDS) -> list[Event]:
    """The events of a window that may be spoken of, however many: named as sentences name them, meals joined."""
    if not window.events:
        return []
    seen = np.asarray(window.observed.T.any(axis=0))
    step = window.minutes_per_step
    events = [
        dataclasses.replace(event, name=event_name(event.name), end=min(max(event.end, event.start + 1), len(seen)))
        for event in window.events
        if 0 <= event.start < len(seen) and event.kind in kinds
    ]
    long_enough = [event for event in events if event.kind != "activity" or _minutes(event, step) >= SHORTEST_ACTIVITY]
    return [event for event in _meals_joined(long_enough, step) if is_supported(seen, event, step)]


def is_supported(seen: Bool[np.ndarray, " t"], event: Event, minutes_per_step: int = 1) -> bool:
    """Whether the sensors saw enough of an event to speak of it, as the module's head says.

    Args:
      seen: steps at which any channel was observed.
    """
    start, end = event.start, event.end
    missing = SUPPORT_MINUTES // minutes_per_step - (end - start)
    if missing > 0:
        start, end = max(start - missing // 2, 0), end + missing - missing // 2
    return bool(seen[start:end].mean() >= EVENT_SUPPORT)


def _meals_joined(events: Sequence[Event], minutes_per_step: int) -> list[Event]:
    """The events with meals of a name that follow each other closely made one."""
    joined: list[Event] = []
    for event in sorted(events, key=lambda event: event.start):
        before = next((other for other in reversed(joined) if other.kind == "meal" and other.name == event.name), None)
        if event.kind == "meal" and before and (event.start - before.end) * minutes_per_step <= MEAL_GAP:
            joined[joined.index(before)] = dataclasses.replace(before, end=max(before.end, event.end))
        else:
            joined.append(event)
    return joined


def _statements(events: Sequence[Event], clock: Clock) -> list[Statement]:
    statements = [(event.start, _statement(event, clock)) for event in events if not _is_mark(event)]
    statements += _marks([event for event in events if _is_mark(event)], clock)
    return [statement for _, statement in sorted(statements, key=lambda each: each[0])]


def _statement(event: Event, clock: Clock) -> Statement:
    start, minutes = clock.start(event.start), _minutes(event, clock.step_minutes)
    if event.kind == "mood":
        return Statement("mood", (Fact("mood", event.name, None, start, start),))
    if event.kind == "meal" and _is_moment(event):
        return Statement("meal_moment", (Fact("meal", event.name, None, start, start),))
    form = "sleep_named" if event.kind == "sleep" and event.name != "asleep" else event.kind
    return Statement(form, (Fact(event.kind, event.name, float(minutes), start, clock.end(event.end)),))


def _marks(marks: Sequence[Event], clock: Clock) -> list[tuple[int, Statement]]:
    """A statement per name, with the step it begins at."""
    statements = []
    for name in dict.fromkeys(event.name for event in marks):
        same = [event for event in marks if event.name == name]
        start, count = clock.start(same[0].start), float(len(same))
        form, end = ("mark", start) if len(same) == 1 else ("marks", clock.end(same[-1].end))
        statements.append((same[0].start, Statement(form, (Fact("mark", name, count, start, end),))))
    return statements


def _is_mark(event: Event) -> bool:
    return event.kind == "session" and _is_moment(event)


def _is_moment(event: Event) -> bool:
    return event.end - event.start <= 1


def _minutes(event: Event, minutes_per_step: int) -> int:
    return (event.end - event.start) * minutes_per_step
