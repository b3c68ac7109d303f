"""A window: values of one person on a regular grid, and which of them were observed.

Readers mark missing values with NaN. `checked_window` validates their arrays: in a `Window` there is no NaN, unobserved
cells hold 0, and values outside their channel's plausible range are unobserved.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from lsm_jax.channels import channels as registered
from lsm_jax.errors import UserError

MINUTES_PER_DAY = 1440


@dataclasses.dataclass(frozen=True)
class Event:
    """An event in a window.

    Attributes:
      kind: "activity", "sleep", "mood", "meal" or "session".
      name: lower case, such as "walking", "asleep", "calm", "lunch", "stress".
      start, end: minutes from the window's start, 0 <= start <= end <= T; end is exclusive. Both may have a fraction:
        a stage of sleep may last 30 seconds.
    """

    kind: str
    name: str
    start: float
    end: float

    @property
    def steps(self) -> slice:
        """The whole minutes that the event touches, to index a window with."""
        return slice(math.floor(self.start), math.ceil(self.end))


@dataclasses.dataclass(frozen=True)
class Window:
    """Consecutive minutes of one person, such as a day.

    Attributes:
      values: float32[T, C] in the registry's units; 0 where unobserved.
      observed: bool[T, C]; True where a value was recorded.
      channels: canonical names of the C columns.
      participant: hashed id (`hash_participant`).
      start: first minute, an aware UTC datetime.
      utc_offset_minutes: local time minus UTC at `start`; day windows start at local midnight.
      minutes_per_step: grid step; 1 for minutely windows.
      labels: of the person or the window, such as {"age": 41.0, "sex": "F"}.
      events: in order of start.
    """

    values: Float[np.ndarray, "t c"]
    observed: Bool[np.ndarray, "t c"]
    channels: tuple[str, ...]
    participant: str
    start: dt.datetime
    utc_offset_minutes: int = 0
    minutes_per_step: int = 1
    labels: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    events: tuple[Event, ...] = ()


@dataclasses.dataclass(frozen=True)
class OutOfRange:
    """Recorded cells that validation made unobserved, counted by channel."""

    implausible: Mapping[str, int]


def checked_window(
    values: Float[np.ndarray, "t c"],
    channels: Sequence[str],
    *,
    participant: str,
    start: dt.datetime,
    utc_offset_minutes: int = 0,
    minutes_per_step: int = 1,
    labels: Mapping[str, float | str] | None = None,
    events: Sequence[Event] = (),
) -> tuple[Window, OutOfRange]:
    """Validates a reader's array and makes a `Window` of it. Every window is made here.

    Args:
      values: [T, C] in the registry's units; NaN where missing. Infinite values and values outside the plausible range
        of their channel become unobserved.
      channels: canonical names of the columns.
      participant: an id from `hash_participant`.

    Returns:
      The window, and how many values were out of range.

    Raises:
      UserError: unknown or repeated channel, wrong shape, naive start time.
    """
    columns = registered(channels)
    if len({*channels}) != len(channels):
        raise UserError(f"channels repeat in {list(channels)}: merge them before the window is made.")
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise UserError(f"window of shape {values.shape} does not match its {len(columns)} channels {list(channels)}.")
    if start.tzinfo is None:
        raise UserError("a window's start must be an aware UTC datetime; got one without a time zone.")
    recorded = ~np.isnan(values)
    low = np.array([column.low for column in columns], np.float32)
    high = np.array([column.high for column in columns], np.float32)
    with np.errstate(invalid="ignore"):
        observed = recorded & (values >= low) & (values <= high)
    out_of_range = (recorded & ~observed).sum(axis=0)
    window = Window(
        values=np.where(observed, values, 0).astype(np.float32),
        observed=observed,
        channels=tuple(channels),
        participant=participant,
        start=start.astimezone(dt.UTC),
        utc_offset_minutes=utc_offset_minutes,
        minutes_per_step=minutes_per_step,
        labels=dict(labels or {}),
        events=tuple(sorted(events, key=lambda event: (event.start, event.end))),
    )
    counts = {name: int(count) for name, count in zip(channels, out_of_range, strict=True) if count}
    return window, OutOfRange(counts)


def crop(window: Window, first: int, steps: int, columns: Sequence[int]) -> Window:
    """At most `steps` steps of a window from `first` on, of some of its channels, with the events that overlap them."""
    last = min(first + steps, len(window.values))
    if (first, last) == (0, len(window.values)) and list(columns) == list(range(len(window.channels))):
        return window
    kept = [event for event in window.events if first <= event.start < last or event.start < first < event.end]
    return dataclasses.replace(
        window,
        values=window.values[first:last, columns],
        observed=window.observed[first:last, columns],
        channels=tuple(window.channels[column] for column in columns),
        start=window.start + dt.timedelta(minutes=first * window.minutes_per_step),
        events=tuple(
            dataclasses.replace(event, start=max(event.start - first, 0), end=min(event.end, last) - first)
            for event in kept
        ),
    )


def hash_participant(raw_id: str, salt: str) -> str:
    """A pseudonym: 16 hexadecimal digits of keyed BLAKE2b. A person has the same one wherever the salt is the same."""
    return hashlib.blake2b(raw_id.encode(), key=salt.encode()[:64], digest_size=8).hexdigest()
