"""The semantic level: logged and tagged events, in order of time.

Thresholds are SensorLM's (arXiv 2506.09108): at most 8 activities, each of at least 20 minutes; at most 2 sleeps; every
mood. SensorLM's released code sorts ascending and so keeps the shortest activities; this one keeps the longest. Meals
and study sessions are ours, at most the 8 longest of each. Food items logged at most 15 minutes apart are joined into
one meal. The button presses of a session become one sentence per name. A press is a session of a minute that readers
named so, or that lies inside the window: at the edge it may be the rest of a longer session.

An event is mentioned only if some channel was observed in at least half of its minutes, or of the 20 minutes around a
shorter event. What was logged about hours that the device did not record cannot be learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from lsm_jax.captions.facts import Fact, LocalClock
from lsm_jax.captions.grammar import Statement, event_name
from lsm_jax.windows import Event, Window

MIN_ACTIVITY_MINUTES = 20
EVENT_SUPPORT = 0.5
SUPPORT_MINUTES = 20
MAX_MEAL_GAP_MINUTES = 15
TAG = "tag"  # name of button presses, as readers write it
EVENT_KINDS = ("activity", "sleep", "mood", "meal", "session")
_MAX_SENTENCES = {"activity": 8, "sleep": 2, "meal": 8, "session": 8}


def semantic_statements(window: Window, kinds: Sequence[str] = EVENT_KINDS) -> list[Statement]:
    """One statement for each event kept, in order of start."""
    events, steps = captioned_events(window, kinds), len(window.observed)
    kept = [event for event in events if event.kind == "mood" or is_mark(event, steps)]
    for kind, limit in _MAX_SENTENCES.items():
        same = [event for event in events if event.kind == kind and not is_mark(event, steps)]
        kept += sorted(same, key=lambda event: (event.start - event.end, event.start))[:limit]
    return _statements(kept, LocalClock(window))


def event_facts(window: Window) -> tuple[Fact, ...]:
    """All facts that the semantic level may state about a window, without its limits on their number."""
    return tuple(fact for each in _statements(captioned_events(window), LocalClock(window)) for fact in each.facts)


def captioned_events(window: Window, kinds: Sequence[str] = EVENT_KINDS) -> list[Event]:
    """All events of a window that captions may mention, with names as in sentences and meals joined."""
    if not window.events:
        return []
    recorded = np.asarray(window.observed.T.any(axis=0))
    step, events = window.minutes_per_step, logged_events(window, kinds)
    longer = [e for e in events if e.kind != "activity" or _minutes(e, step) >= MIN_ACTIVITY_MINUTES]
    return [event for event in _meals_joined(longer, step) if is_supported(recorded, event, step)]


def logged_events(window: Window, kinds: Sequence[str]) -> list[Event]:
    """The events of these kinds that begin in a window, in whole steps and with names as in sentences."""
    steps = len(window.observed)
    return [
        dataclasses.replace(
            event,
            name=event_name(event.name),
            start=event.steps.start,
            end=min(max(event.steps.stop, event.steps.start + 1), steps),
        )
        for event in window.events
        if 0 <= event.start < steps and event.kind in kinds
    ]


def is_supported(recorded: Bool[np.ndarray, " t"], event: Event, minutes_per_step: int = 1) -> bool:
    """Whether enough was recorded during an event to mention it; see the module docstring.

    Args:
      recorded: steps at which any channel was observed.
    """
    start, end = event.start, event.end
    missing = SUPPORT_MINUTES // minutes_per_step - (end - start)
    if missing > 0:
        start, end = max(start - missing // 2, 0), end + missing - missing // 2
    return bool(recorded[start:end].mean() >= EVENT_SUPPORT)


def is_mark(event: Event, steps: int) -> bool:
    """Whether an event of `logged_events`, in a window of so many steps, is a button press."""
    is_press = event.name == TAG or not _touches_edge(event, steps)
    return event.kind == "session" and _is_moment(event) and is_press


def _meals_joined(events: Sequence[Event], minutes_per_step: int) -> list[Event]:
    """The events, with meals of the same name that follow each other closely joined into one."""
    joined: list[Event] = []
    for event in sorted(events, key=lambda event: event.start):
        same = [other for other in joined if event.kind == other.kind == "meal" and event.name == other.name]
        if same and (event.start - same[-1].end) * minutes_per_step <= MAX_MEAL_GAP_MINUTES:
            joined[joined.index(same[-1])] = dataclasses.replace(same[-1], end=max(same[-1].end, event.end))
        else:
            joined.append(event)
    return joined


def _statements(events: Sequence[Event], clock: LocalClock) -> list[Statement]:
    marks = [event for event in events if is_mark(event, clock.steps)]
    statements = [(event.start, _statement(event, clock)) for event in events if event not in marks]
    statements += _marks(marks, clock)
    return [statement for _, statement in sorted(statements, key=lambda each: each[0])]


def _statement(event: Event, clock: LocalClock) -> Statement:
    start, minutes = clock.start(event.steps.start), _minutes(event, clock.step_minutes)
    if event.kind == "mood":
        return Statement("mood", (Fact("mood", event.name, None, start, start),))
    if event.kind == "meal" and _is_moment(event):
        return Statement("meal_moment", (Fact("meal", event.name, None, start, start),))
    form = "sleep_named" if event.kind == "sleep" and event.name != "asleep" else event.kind
    fact = Fact(event.kind, event.name, float(minutes), start, clock.end(event.steps.stop))
    return Statement(form, (fact,), cut=_touches_edge(event, clock.steps))


def _marks(marks: Sequence[Event], clock: LocalClock) -> list[tuple[float, Statement]]:
    """One statement for each name, with its first step."""
    statements = []
    for name in dict.fromkeys(event.name for event in marks):
        same = [event for event in marks if event.name == name]
        start, count = clock.start(same[0].steps.start), float(len(same))
        form, end = ("mark", start) if len(same) == 1 else ("marks", clock.end(same[-1].steps.stop))
        statements.append((same[0].start, Statement(form, (Fact("mark", name, count, start, end),))))
    return statements


def _is_moment(event: Event) -> bool:
    return event.end - event.start <= 1


def _touches_edge(event: Event, steps: int) -> bool:
    """Whether an event may have begun before a window of so many steps, or ended after it."""
    return event.steps.start == 0 or event.steps.stop == steps


def _minutes(event: Event, minutes_per_step: int) -> int:
    return (event.steps.stop - event.steps.start) * minutes_per_step
