"""Day windows of a synthetic cohort, person by person."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from lsm_jax.channels import MINUTELY_26
from lsm_jax.errors import UserError
from lsm_jax.ingest.reader import RecordEvent
from lsm_jax.synth.gaps import observed_cells
from lsm_jax.synth.people import Person, draw_person
from lsm_jax.synth.physiology import simulate_body
from lsm_jax.synth.schedule import draw_schedule
from lsm_jax.synth.sensors import simulate_sensors
from lsm_jax.synth.signals import Flags
from lsm_jax.windows import MINUTES_PER_DAY, Event, Window, checked_window


@dataclasses.dataclass(frozen=True)
class PersonDays:
    """One synthetic person's days, n = days * 1440 minutes from a local midnight on.

    Attributes:
      values: complete recording in registry units; `observed`: cells that a real watch would have recorded.
      events: logged events, minutes since the first midnight.
    """

    person: Person
    values: Float[np.ndarray, "n 26"]
    observed: Bool[np.ndarray, "n 26"]
    events: tuple[RecordEvent, ...]

    def windows(self) -> Iterator[Window]:
        """The recording with its gaps: a window float32[1440, 26] per day."""
        return self._day_windows(np.where(self.observed, self.values, np.float32(np.nan)))

    def truth(self) -> Iterator[Window]:
        """The same windows without gaps. For evaluation only."""
        return self._day_windows(self.values)

    def _day_windows(self, values: Float[np.ndarray, "n 26"]) -> Iterator[Window]:
        offset = self.person.utc_offset_minutes
        midnight = dt.datetime.combine(self.person.first_day, dt.time(), dt.UTC) - dt.timedelta(minutes=offset)
        for day in range(len(values) // MINUTES_PER_DAY):
            first = day * MINUTES_PER_DAY
            window, _ = checked_window(
                values[first : first + MINUTES_PER_DAY],
                MINUTELY_26,
                participant=self.person.participant,
                start=midnight + dt.timedelta(days=day),
                utc_offset_minutes=offset,
                labels=self.person.labels(),
                events=_events_of_day(self.events, first),
            )
            yield window


def windows(people: int, days: int, seed: int = 0, *, truth: bool = False) -> Iterator[Window]:
    """Day windows of a cohort, in order of person and day; person i is the same whatever `people` is.

    Args:
      truth: the ground truth instead of the recording: every cell observed.

    Raises:
      UserError: fewer than one person or day, or a negative seed.
    """
    for name, number, least in (("people", people, 1), ("days", days, 1), ("seed", seed, 0)):
        if number < least:
            raise UserError(f"--{name} {number}: must be {least} or more.")
    cohort = (simulate_person(index, days, seed) for index in range(people))
    return (window for person in cohort for window in (person.truth() if truth else person.windows()))


def simulate_person(index: int, days: int, seed: int = 0) -> PersonDays:
    """Person `index` of the cohort `seed` over `days` days."""
    person = draw_person(seed, index)
    schedule = draw_schedule(person, days, seed, index)
    body = simulate_body(person, schedule, seed, index)
    observed, worn = observed_cells(person, schedule, body, seed, index)
    events = tuple(event for event in schedule.events if _is_logged(event, worn))
    return PersonDays(person, simulate_sensors(body, seed, index), observed, events)


def _is_logged(event: RecordEvent, worn: Flags) -> bool:
    """Sleep and activity are logged if the watch was worn; moods and meals are entered on a phone."""
    return event.kind not in ("sleep", "activity") or bool(worn[max(event.start, 0) : event.end].mean() >= 0.5)


def _events_of_day(events: tuple[RecordEvent, ...], first: int) -> list[Event]:
    """Events of the day that begins at minute `first`, clipped to the day."""
    last = first + MINUTES_PER_DAY
    return [
        Event(event.kind, event.name, max(event.start, first) - first, min(event.end, last) - first)
        for event in events
        if event.start < last and event.end > first
    ]
