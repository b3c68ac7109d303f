"""What a reader returns: everything of one person, before it is cut into windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class Series:
    """Minute values of one channel.

    Attributes:
      channel: canonical name.
      minute: int64[n] minutes since the Unix epoch, UTC; any order, repeats allowed (the cutter counts them).
      value: float32[n] in the registry's unit; NaN where missing.
    """

    channel: str
    minute: Int[np.ndarray, " n"]
    value: Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class RecordEvent:
    """An event in absolute time: minutes since the Unix epoch, UTC, end exclusive."""

    kind: str
    name: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class PersonRecord:
    """One person's whole record.

    Attributes:
      person: the raw id; hashed before it goes anywhere.
      series: minute values; several series of a channel are merged by the cutter (overlapping sensors).
      events: logged or derived events.
      labels: numbers or strings about the person.
      time_zone: IANA name of the local time ("UTC" where only local wall time is known and written as UTC).
    """

    person: str
    series: tuple[Series, ...]
    events: tuple[RecordEvent, ...] = ()
    labels: Mapping[str, float | str] = dataclasses.field(default_factory=dict)
    time_zone: str = "UTC"
