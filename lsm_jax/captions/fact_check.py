"""Checks the facts of a text against the window that the text describes.

The rules are those by which captions are written, so every sentence of ours is true. Tolerances allow for a model's
precision: numbers within a tenth of the channel's sd, times of events within 15 minutes, peaks within one bin.
"""

from __future__ import annotations

import dataclasses
import enum
import functools

import numpy as np

from lsm_jax.captions.facts import EXTREMES, STATISTICS, TRENDS, Fact, LocalClock, clock_distance
from lsm_jax.captions.grammar import parse_sentence, sentences
from lsm_jax.captions.semantic import EVENT_SUPPORT, SUPPORT_MINUTES, event_facts
from lsm_jax.captions.statistical import MINUTES_FOR_STATISTICS, statistics
from lsm_jax.captions.structural import BIN_MINUTES, STEADY_RANGE, TREND_CHANGE, Bins, bin_means, find_extremes
from lsm_jax.channels import channel
from lsm_jax.windows import Window


class Verdict(enum.Enum):
    """The result of a check; `UNRECORDED` means that too little was observed to tell."""

    TRUE = "true"
    FALSE = "false"
    UNRECORDED = "unrecorded"


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The allowed error of a true statement.

    Attributes:
      sds: of numbers, in standard deviations of the channel (from the registry).
      minutes: of starts and ends of events; twice as much for durations.
    """

    sds: float = 0.1
    minutes: int = 15


class FactChecker:
    """Checks facts about one window.

    Raises:
      UserError: the window is longer than a day.
    """

    def __init__(self, window: Window, tolerance: Tolerance | None = None) -> None:
        self._window, self._tolerance = window, tolerance or Tolerance()
        self._clock = LocalClock(window)

    def __call__(self, fact: Fact) -> Verdict:
        """Checks a fact."""
        if fact.kind not in (*STATISTICS, *TRENDS, *EXTREMES):
            return self._event(fact)
        if fact.subject not in self._window.channels:
            return Verdict.UNRECORDED
        column = self._window.channels.index(fact.subject)
        if fact.kind in STATISTICS:
            return self._statistic(fact, column)
        return self._trend(fact, column) if fact.kind in TRENDS else self._extreme(fact, column)

    def _statistic(self, fact: Fact, column: int) -> Verdict:
        values, observed = self._window.values.T[column : column + 1], self._window.observed.T[column : column + 1]
        if np.count_nonzero(observed) * self._window.minutes_per_step < MINUTES_FOR_STATISTICS:
            return Verdict.UNRECORDED
        return self._close(fact, float(statistics(values, observed)[0, STATISTICS.index(fact.kind)]))

    def _trend(self, fact: Fact, column: int) -> Verdict:
        bins = self._bins
        first, last = (round(step / bins.steps) for step in self._clock.steps_of(fact.start or 0, fact.end or 0))
        supported = bins.supported[column, first:last]
        if supported.sum() < max(2, 0.5 * (last - first)):
            return Verdict.UNRECORDED
        # Normalised as in `find_trends`, because rounding decides about trends exactly at a threshold.
        z = bins.mean[column, first:last][supported] / (bins.spread[column] or 1)
        change, extent = z[-1] - z[0], np.ptp(z)
        slope = np.polyfit(np.flatnonzero(supported), z, 1)[0]
        if fact.kind == "steady":
            return _verdict(extent < STEADY_RANGE)
        sign = 1 if fact.kind == "increase" else -1
        return _verdict(sign * slope > 0 and sign * change > TREND_CHANGE)

    def _extreme(self, fact: Fact, column: int) -> Verdict:
        bins, start = self._bins, fact.start or 0
        # Captions mention one of several extremes close together; here all of them count.
        for extreme in find_extremes(bins, [column], min_distance=1):
            middle = self._clock.start(extreme.first * bins.steps + bins.steps // 2)
            near = clock_distance(middle, start) <= BIN_MINUTES
            value = bins.mean[column, extreme.first]
            if extreme.kind == fact.kind and near and self._close(fact, value) is Verdict.TRUE:
                return Verdict.TRUE
        at = self._clock.steps_of(start, start + 1)[0] // bins.steps
        return Verdict.FALSE if bins.supported[column, at : at + 1].any() else Verdict.UNRECORDED

    def _event(self, fact: Fact) -> Verdict:
        if any(same_event(fact, other, self._tolerance) for other in self._events):
            return Verdict.TRUE
        start, end = fact.start or 0, fact.end or 0
        if fact.start == fact.end:
            start, end = start - SUPPORT_MINUTES // 2, end + SUPPORT_MINUTES // 2
        first, last = self._clock.steps_of(start, end)
        supported = first < last and self._recorded[first:last].mean() >= EVENT_SUPPORT
        return Verdict.FALSE if supported else Verdict.UNRECORDED

    def _close(self, fact: Fact, actual: float) -> Verdict:
        allowed = self._tolerance.sds * channel(fact.subject).sd
        return _verdict(fact.value is not None and abs(fact.value - actual) <= allowed)

    @functools.cached_property
    def _bins(self) -> Bins:
        return bin_means(self._window)

    @functools.cached_property
    def _events(self) -> tuple[Fact, ...]:
        return event_facts(self._window)

    @functools.cached_property
    def _recorded(self) -> np.ndarray:
        """Steps at which any channel was observed."""
        return np.asarray(self._window.observed.T.any(axis=0))


@dataclasses.dataclass(frozen=True)
class CheckedSentence:
    """A sentence of a text, with the verdict of each of its facts; none if it is in wording that is not ours."""

    text: str
    facts: tuple[tuple[Fact, Verdict], ...]

    @property
    def verdict(self) -> Verdict | None:
        """Of the sentence: false if a fact is, otherwise unrecorded if one is; None without facts."""
        found = {verdict for _, verdict in self.facts}
        return next((each for each in (Verdict.FALSE, Verdict.UNRECORDED, Verdict.TRUE) if each in found), None)


def check_sentences(text: str, window: Window) -> list[CheckedSentence]:
    """The sentences of a text, checked; UserError as `FactChecker`."""
    check = FactChecker(window)
    statements = [(sentence, parse_sentence(sentence)) for sentence in sentences(text)]
    return [
        CheckedSentence(sentence, tuple((fact, check(fact)) for fact in statement.facts) if statement else ())
        for sentence, statement in statements
    ]


def same_event(stated: Fact, actual: Fact, tolerance: Tolerance) -> bool:
    """Whether two facts are about the same event, with times within the tolerance."""
    if (stated.kind, stated.subject) != (actual.kind, actual.subject):
        return False
    starts = clock_distance(stated.start or 0, actual.start or 0) <= tolerance.minutes
    ends = clock_distance(stated.end or 0, actual.end or 0) <= tolerance.minutes
    error = abs((stated.value or 0) - (actual.value or 0))
    return starts and ends and error <= (0 if stated.kind == "mark" else 2 * tolerance.minutes)


def _verdict(holds: bool | np.bool) -> Verdict:
    return Verdict.TRUE if holds else Verdict.FALSE
