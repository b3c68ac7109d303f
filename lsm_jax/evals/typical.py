"""What can be said of any day without looking at it: baselines for captions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from lsm_jax.captions.facts import STATISTICS, Fact, clock_minutes
from lsm_jax.captions.grammar import Statement, render
from lsm_jax.windows import MINUTES_PER_DAY

_COMMON = 0.5  # of days
_LASTING = ("activity", "session", "sleep", "meal")

Key = tuple[str, str]


def mean_day(days: Sequence[Iterable[Fact]]) -> str:
    """What at least half of the training days have in common, statistics and events, at its mean over them."""
    found = _by_subject(days)
    return _told([key for key, facts in found.items() if len(facts) >= _COMMON * len(days)], found)


def usual_activity(days: Sequence[Iterable[Fact]]) -> str:
    """The activity or session that most training days have, at its mean times; empty where they have none."""
    found = _by_subject(days)
    activities = [key for key in found if key[0] in ("activity", "session")]
    return _told(sorted(activities, key=lambda key: -len(found[key]))[:1], found)


def _by_subject(days: Sequence[Iterable[Fact]]) -> dict[Key, list[Fact]]:
    """The first fact of each kind and subject of each day."""
    found: dict[Key, list[Fact]] = defaultdict(list)
    for facts in days:
        first: dict[Key, Fact] = {}
        for fact in facts:
            if fact.kind in STATISTICS or (fact.kind in _LASTING and fact.value is not None):
                first.setdefault((fact.kind, fact.subject), fact)
        for key, fact in first.items():
            found[key].append(fact)
    return found


def _told(keys: Sequence[Key], found: dict[Key, list[Fact]]) -> str:
    """One sentence per event, and per channel whose four statistics are all there."""
    statements = [Statement(_form(kind, name), (_mean(found[kind, name]),)) for kind, name in keys if kind in _LASTING]
    statements.sort(key=lambda statement: statement.facts[0].start or 0)
    for channel in dict.fromkeys(name for kind, name in keys if kind in STATISTICS):
        if all((kind, channel) in keys for kind in STATISTICS):
            facts = tuple(Fact(kind, channel, _value(found[kind, channel])) for kind in STATISTICS)
            statements.append(Statement("statistics", facts))
    random = np.random.default_rng(0)
    return " ".join(render(statement, random) for statement in statements)


def _form(kind: str, name: str) -> str:
    return "sleep_named" if kind == "sleep" and name != "asleep" else kind


def _mean(facts: Sequence[Fact]) -> Fact:
    """An event between the mean of starts and the mean of ends."""
    start = _mean_time([fact.start or 0 for fact in facts]) % MINUTES_PER_DAY
    end = (_mean_time([fact.end or 0 for fact in facts]) - 1) % MINUTES_PER_DAY + 1
    return Fact(facts[0].kind, facts[0].subject, float(clock_minutes(start, end)), start, end)


def _mean_time(minutes: Sequence[int]) -> int:
    """The mean around the clock, where 23:50 and 00:10 have midnight between them."""
    angles = 2 * np.pi * np.array(minutes) / MINUTES_PER_DAY
    mean = np.arctan2(np.sin(angles).mean(), np.cos(angles).mean())
    return round(float(mean) / (2 * np.pi) * MINUTES_PER_DAY)


def _value(facts: Sequence[Fact]) -> float:
    return float(np.mean([fact.value or 0.0 for fact in facts]))
