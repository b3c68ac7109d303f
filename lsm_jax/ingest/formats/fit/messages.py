"""The messages of FIT files, and what each says of a minute.

The names of messages and fields are those of Garmin's profile, in which Garmin publishes what they mean.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lsm_jax.ingest.files.source import UnreadableFile
from lsm_jax.ingest.minutes.series import Aggregate

FIT_EPOCH = 631065600  # 1989-12-31 00:00:00 UTC
Message = Mapping[str, Any]  # field -> value; a field without a value is absent
_POWER_UP = 0x10000000  # smaller times count from when the device was switched on
_MAX_OFFSET = 14 * 3600  # s

# message -> (field, channel, period in minutes, smallest value that is a measurement)
_LEVELS: dict[str, tuple[str, str, float | None, float]] = {
    "respiration_rate": ("respiration_rate", "respiratory_rate", None, 1),
    "spo2_data": ("reading_spo2", "spo2", None, 1),
    "hrv_value": ("value", "rmssd", 5.0, 1),
    "stress_level": ("stress_level_value", "stress_level", None, 0),
}
# Of activities: field -> (channel, smallest value that is a measurement)
_RECORD_LEVELS: dict[str, tuple[str, float]] = {
    "heart_rate": ("heart_rate", 1),
    "cadence": ("cadence", 0),
    "power": ("power", 0),
    "temperature": ("device_temperature", -273),
    "enhanced_respiration_rate": ("respiratory_rate", 1),
}


class Sample(NamedTuple):
    """One value of a message, as `personal.Recording.add` takes it."""

    channel: str
    value: float  # NaN where the device says that it did not measure
    sensor: str = ""
    aggregate: Aggregate | None = None
    period_minutes: float | None = None


def messages(content: bytes) -> Iterator[tuple[str, Message]]:
    """The data messages of a FIT file: (name, fields). Times are seconds since `FIT_EPOCH`.

    Raises:
      UnreadableFile: what follows is damaged. A wrong checksum is found at the end.
    """
    import fitdecode

    reader = fitdecode.FitReader(
        io.BytesIO(content),
        processor=None,
        check_crc=fitdecode.CrcCheck.RAISE,
        error_handling=fitdecode.ErrorHandling.IGNORE,
    )
    count = 0
    try:
        for frame in reader:
            if isinstance(frame, fitdecode.FitDataMessage):
                count += 1
                yield frame.name, {field.name: field.value for field in frame.fields if field.value is not None}
    except Exception as error:  # at hostile bytes the parser raises errors of any kind
        what = str(error) or type(error).__name__
        raise UnreadableFile(f"damaged after message {count}, what comes before it is kept ({what})") from error


class MessageClock:
    """The times of messages, of which many tell the low bits only and count on from the message before."""

    def __init__(self) -> None:
        self._last: int | None = None  # FIT seconds

    def second(self, message: Message) -> float | None:
        """Seconds since the Unix epoch; None where the message has no time."""
        stamp = message.get("timestamp", message.get("stress_level_time"))
        if isinstance(stamp, int):
            if stamp < _POWER_UP:
                return None
            self._last = stamp
        elif self._last is None:
            return None
        elif isinstance(low := message.get("timestamp_16"), int):
            self._last += (low - self._last) & 0xFFFF
        elif isinstance(low := message.get("timestamp_min_8"), int):
            minute = self._last // 60
            self._last = 60 * (minute + ((low - minute) & 0xFF))
        else:
            return None
        return self._last + FIT_EPOCH


def utc_offset(message: Message) -> int | None:
    """Local minus UTC in minutes, where the message tells the local time; a quarter of an hour is the finest offset."""
    local, stamp = message.get("local_timestamp"), message.get("timestamp")
    if not isinstance(local, int) or not isinstance(stamp, int) or abs(local - stamp) > _MAX_OFFSET:
        return None
    return 15 * round((local - stamp) / 900)


def number(message: Message, field: str) -> float | None:
    """A field as a number; None where it has none."""
    value = message.get(field)
    return float(value) if isinstance(value, int | float) else None


def samples_of(name: str, message: Message) -> list[Sample]:
    """What a message says of its minute. The totals of monitoring are in `totals`."""
    if name == "monitoring":
        return [*_measured("heart_rate", "heart_rate", 1, message)]
    if name == "record":
        samples = [
            sample
            for field, (channel, smallest) in _RECORD_LEVELS.items()
            for sample in _measured(field, channel, smallest, message)
        ]
        if (distance := number(message, "distance")) is not None:
            samples.append(Sample("distance", distance, sensor="activity", aggregate="difference"))
        return samples
    if name in _LEVELS:
        field, channel, period, smallest = _LEVELS[name]
        return [sample._replace(period_minutes=period) for sample in _measured(field, channel, smallest, message)]
    return []


def _measured(field: str, channel: str, smallest: float, message: Message) -> Iterator[Sample]:
    if (value := number(message, field)) is not None:
        yield Sample(channel, value if value >= smallest else float("nan"))
