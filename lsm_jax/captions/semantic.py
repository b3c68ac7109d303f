"""The semantic level: what was logged or tagged, in order of time.

Thresholds are SensorLM's (arXiv 2506.09108): activities of at least 20 minutes, at most 8; sleep, at most 2; every
mood. The released code sorts ascending and so keeps the shortest activities; this keeps the longest. Meals and study
sessions are ours: at most 8 of each, the longest. Button presses of a session come as one sentence per name.

An event counts only where the sensors were there: something was observed in at least half of its minutes, or of the
20 minutes around a shorter one. What a log says of hours that the device did not see is not the record's to tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from lsm_jax.captions.facts import Clock, Fact
from lsm_jax.captions.grammar import Statement, event_name
from lsm_jax.windows import Event, Window

SHORTEST_ACTIVITY = 20  # minutes
EVENT_SUPPORT = 0.5
SUPPORT_MINUTES = 20
_MOST = {"activity": 8, "sleep": 2, "meal": 8, "session": 8}
_MOMENT = 1  # minutes; events no longer are points in time


def semantic_statements(window: Window) -> list[Statement]:
    """One statement per event kept, in order of start."""
    clock, step = Clock(window), window.minutes_per_step
    seen = window.observed.any(axis=1) if window.events else window.observed[:, 0]
    events = [event for event in window.events if 0 <= event.start < len(seen) and is_supported(seen, event, step)]
    kept: list[Event] = [event for event in events if event.kind == "mood"]
    for kind, most in _MOST.items():
        shortest = SHORTEST_ACTIVITY if kind == "activity" else 0
        longest = [
            event
            for event in events
            if event.kind == kind and _minutes(event, step) >= shortest and not _is_mark(event, step)
        ]
        kept += sorted(longest, key=lambda event: (event.start - event.end, event.start))[:most]
    statements = [(event.start, _statement(event, clock)) for event in kept]
    statements += _marks([event for event in events if _is_mark(event, step)], clock)
    return [statement for _, statement in sorted(statements, key=lambda each: each[0])]


def is_supported(seen: Bool[np.ndarray, " t"], event: Event, minutes_per_step: int = 1) -> bool:
    """Whether the sensors saw enough of an event to speak of it, as the module's head says.

    Args:
      seen: steps at which any channel was observed.
    """
    start, end = event.start, max(event.end, event.start + 1)
    missing = SUPPORT_MINUTES // minutes_per_step - (end - start)
    if missing > 0:
        start, end = max(start - missing // 2, 0), end + missing - missing // 2
    share = seen[start:end].mean() if start < len(seen) else 0.0
    return bool(share >= EVENT_SUPPORT)


def _statement(event: Event, clock: Clock) -> Statement:
    name, start = event_name(event.name), clock.start(event.start)
    minutes = (event.end - event.start) * clock.step_minutes
    if event.kind == "mood":
        return Statement("mood", (Fact("mood", name, None, start, start),))
    if event.kind == "meal" and minutes <= _MOMENT:
        return Statement("meal_moment", (Fact("meal", name, None, start, start),))
    form = "sleep_named" if event.kind == "sleep" and name != "asleep" else event.kind
    return Statement(form, (Fact(event.kind, name, float(minutes), start, clock.end(max(event.end, event.start + 1))),))


def _marks(marks: Sequence[Event], clock: Clock) -> list[tuple[int, Statement]]:
    """A statement per name, with the step it begins at."""
    statements = []
    for name in sorted({event_name(event.name) for event in marks}):
        same = [event for event in marks if event_name(event.name) == name]
        start, count = clock.start(same[0].start), float(len(same))
        last = clock.end(same[-1].start + 1)
        form, end = ("mark", start) if len(same) == 1 else ("marks", last)
        statements.append((same[0].start, Statement(form, (Fact("mark", name, count, start, end),))))
    return statements


def _is_mark(event: Event, minutes_per_step: int) -> bool:
    return event.kind == "session" and _minutes(event, minutes_per_step) <= _MOMENT


def _minutes(event: Event, minutes_per_step: int) -> int:
    return (event.end - event.start) * minutes_per_step
