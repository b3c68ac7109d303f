"""The content of captions as data: one `Fact` for each number, trend, peak or event.

`grammar` renders facts as text and parses text back into facts, so that `fact_check` can check what a model wrote
against the window that it described. Times are minutes of the local clock. A start is in 0..1439, an end in 1..1440,
and 1440 is written as 24:00.
"""

from __future__ import annotations

import dataclasses

from lsm_jax.errors import UserError
from lsm_jax.windows import MINUTES_PER_DAY, Window

STATISTICS = ("mean", "maximum", "minimum", "deviation")
TRENDS = ("increase", "decrease", "steady")
EXTREMES = ("peak", "drop")
EVENTS = ("activity", "sleep", "mood", "meal", "session", "mark")


@dataclasses.dataclass(frozen=True)
class Fact:
    """One assertion of a caption.

    Attributes:
      kind: one of `STATISTICS`, `TRENDS`, `EXTREMES` or `EVENTS`. A mark is a button press during a session.
      subject: canonical channel name, or the event's name.
      value: in the channel's unit for statistics, peaks and drops; minutes for events with a duration; the number of
        button presses for marks; None for trends and moods.
      start, end: minutes of the local clock; equal for peaks, drops and moods; None for statistics.
    """

    kind: str
    subject: str
    value: float | None = None
    start: int | None = None
    end: int | None = None


class LocalClock:
    """Converts between steps of a window and minutes of the local clock.

    Raises:
      UserError: the window is longer than a day, so a time of day would be ambiguous.
    """

    def __init__(self, window: Window) -> None:
        self.step_minutes = window.minutes_per_step
        self.steps = len(window.values)
        if self.steps * self.step_minutes > MINUTES_PER_DAY:
            raise UserError(
                f"captions speak of at most a day, and a window of {self.steps * self.step_minutes} minutes is longer: "
                "cut it into days."
            )
        local = int(window.start.timestamp()) // 60 + window.utc_offset_minutes
        self._midnight_to_start = local % MINUTES_PER_DAY

    def start(self, step: int) -> int:
        """The minute, 0..1439, at which a step begins."""
        return (self._midnight_to_start + step * self.step_minutes) % MINUTES_PER_DAY

    def end(self, step: int) -> int:
        """The minute, 1..1440, at which the previous step ends."""
        return (self._midnight_to_start + step * self.step_minutes - 1) % MINUTES_PER_DAY + 1

    def steps_of(self, start: int, end: int) -> tuple[int, int]:
        """The steps [first, last) between two minutes of the clock, cut at the window's edges; empty outside of it."""
        first = (start - self._midnight_to_start) % MINUTES_PER_DAY
        last = first + clock_minutes(start, end)
        if first >= self.steps * self.step_minutes and last > MINUTES_PER_DAY:
            first, last = 0, last - MINUTES_PER_DAY  # it began before the window
        first, last = first // self.step_minutes, -(-last // self.step_minutes)
        return min(first, self.steps), min(last, self.steps)

    def span(self, fact: Fact) -> tuple[int, int] | None:
        """The steps [first, last) of a fact, one step for a moment; None for a fact about the whole window."""
        if fact.start is None or fact.end is None:
            return None
        return self.steps_of(fact.start, fact.start + 1 if fact.start == fact.end else fact.end)


def clock_minutes(start: int, end: int) -> int:
    """Minutes, 1..1440, from one time of the clock to the next occurrence of the other."""
    return (end - start - 1) % MINUTES_PER_DAY + 1


def clock_distance(a: int, b: int) -> int:
    """Minutes between two times of the clock, the shorter way round."""
    distance = abs(a - b) % MINUTES_PER_DAY
    return min(distance, MINUTES_PER_DAY - distance)
