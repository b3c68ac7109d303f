"""Windows as bytes: a 16-bit code for each cell, 0 where nothing was observed.

A record is a serialised `tf.train.Example` with plain TFDS features. Its cells are codes uint16[C, T], stored by
channel, so that gaps are runs of zero bytes, which ArrayRecord's zstd compresses to almost nothing. The value of a
cell is `offset[c] + code * step[c]`. Offset and step are chosen for each window and channel:

- Whole numbers that span less than 65,535 (steps, counts, levels) have step 1 and are exact.
- A channel with a single value has that value as its step and is exact.
- Everything else is quantised to 14 bits of the channel's range within the window. The error is at most 1/32,764 of
  that range, far below the resolution of wearable sensors. Two more bits would store noise that does not compress.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from jaxtyping import Bool, Float, UInt16
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.proto import tf_example_pb2

from lsm_jax.errors import UserError
from lsm_jax.windows import MINUTES_PER_DAY, Event, Window

_EXACT_SPAN = 2**16 - 2  # codes 1 .. 65,535
_LEVELS = 2**14 - 2
_MIN_STEP = np.float32(1e-30)  # its inverse is finite
_MAX_SCALE = np.float32(2.0**110)  # of |offset| and |step|, so that every code gives a finite value
_MAX_STEPS = 366 * MINUTES_PER_DAY  # of a window; a longer one is damaged


def record_features() -> tfds.features.FeaturesDict:
    """The TFDS features of a record, as other writers (Beam) and `tfds.builder_from_directory` need them."""
    return tfds.features.FeaturesDict(
        {
            "codes": tfds.features.Scalar(np.object_),
            "offset": tfds.features.Tensor(shape=(None,), dtype=np.float32),
            "step": tfds.features.Tensor(shape=(None,), dtype=np.float32),
            "participant": tfds.features.Text(),
            "start_seconds": tfds.features.Scalar(np.int64),
            "utc_offset_minutes": tfds.features.Scalar(np.int64),
            "minutes_per_step": tfds.features.Scalar(np.int64),
            "labels": tfds.features.Text(),
            "events": tfds.features.Text(),
        }
    )


class RecordEncoder:
    """Encodes windows as records whose cells follow the dataset's channel list."""

    def __init__(self, channels: Sequence[str]) -> None:
        self.channels = tuple(channels)
        self._column = {name: column for column, name in enumerate(self.channels)}
        self._features = record_features()
        self._serializer = ExampleSerializer(self._features.get_serialized_info())

    def example(self, window: Window) -> dict[str, Any]:
        """The window as a TFDS example of `record_features`.

        Raises:
          UserError: the window has a channel that is not in the dataset's list.
        """
        unlisted = [name for name in window.channels if name not in self._column]
        if unlisted:
            raise UserError(f"a window has channels {unlisted} that the dataset's list {list(self.channels)} lacks.")
        codes, offset, step = encode_cells(window)
        columns = [self._column[name] for name in window.channels]
        all_codes = np.zeros((len(self.channels), codes.shape[1]), "<u2")
        all_codes[columns] = codes
        offsets, steps = np.zeros(len(self.channels), np.float32), np.ones(len(self.channels), np.float32)
        offsets[columns], steps[columns] = offset, step
        return {
            "codes": all_codes.tobytes(),
            "offset": offsets,
            "step": steps,
            "participant": window.participant,
            "start_seconds": int(window.start.timestamp()),
            "utc_offset_minutes": window.utc_offset_minutes,
            "minutes_per_step": window.minutes_per_step,
            "labels": _labels_json(window.labels),
            "events": json.dumps(
                [(event.kind, event.name, _whole(event.start), _whole(event.end)) for event in window.events]
            ),
        }

    def record(self, window: Window) -> bytes:
        """The window as a serialised `tf.train.Example`."""
        return self._serializer.serialize_example(self._features.encode_example(self.example(window)))


def encode_cells(window: Window) -> tuple[UInt16[np.ndarray, "c t"], Float[np.ndarray, " c"], Float[np.ndarray, " c"]]:
    """Codes, offset and step of a window's cells; see the module docstring."""
    observed = np.ascontiguousarray(window.observed.T)
    values = np.where(observed, window.values.T, np.float32(0))
    low = np.where(observed, values, np.float32(np.inf)).min(axis=1, initial=np.inf)
    high = np.where(observed, values, np.float32(-np.inf)).max(axis=1, initial=-np.inf)
    low, high = np.where(low > high, 0, low), np.where(low > high, 0, high)
    span, magnitude = high - low, np.maximum(np.abs(low), np.abs(high))
    whole = (values == np.rint(values)).all(axis=1) & (span <= _EXACT_SPAN) & (magnitude < 2**24)
    # A step below float32's spacing at these values would be lost when the offset is added.
    min_step = np.maximum(2 * np.spacing(magnitude), _MIN_STEP)
    step = np.where(whole, 1, np.maximum(span / _LEVELS, min_step)).astype(np.float32)
    codes = (np.rint((values - low[:, None]) * (1 / step)[:, None]) + 1) * observed
    constant = span == 0
    offset = np.where(constant, 0, low - step).astype(np.float32)
    return codes.astype("<u2"), offset, np.where(constant, low, step).astype(np.float32)


def decode_cells(
    codes: UInt16[np.ndarray, "c t"], step: Float[np.ndarray, " c"], offset: Float[np.ndarray, " c"]
) -> tuple[Float[np.ndarray, "c t"], Bool[np.ndarray, "c t"]]:
    """The values `offset + code * step`, 0 where unobserved, and the observed mask.

    A caller that wants z-scores passes `step / sd` and `(offset - mean) / sd`.
    """
    observed = codes != 0
    values = codes * step[:, None]
    values += offset[:, None]
    values *= observed
    return values, observed


@dataclasses.dataclass(frozen=True)
class Record:
    """A parsed record whose cells are still codes.

    Attributes:
      codes: uint16[C, T]; 0 where unobserved.
      offset, step: float32[C]; a value is `offset + code * step`.
    """

    codes: UInt16[np.ndarray, "c t"]
    offset: Float[np.ndarray, " c"]
    step: Float[np.ndarray, " c"]
    participant: str
    start_seconds: int
    utc_offset_minutes: int
    minutes_per_step: int
    labels_json: bytes
    events_json: bytes

    @property
    def local_minute(self) -> int:
        """The first step in minutes of local time since 1970-01-01 00:00."""
        return self.start_seconds // 60 + self.utc_offset_minutes

    def window(self, channels: Sequence[str]) -> Window:
        """The decoded window, with arrays that are views of channel-major memory; ValueError on damaged texts."""
        values, observed = decode_cells(self.codes, self.step, self.offset)
        return Window(
            values=values.T,
            observed=observed.T,
            channels=tuple(channels),
            participant=self.participant,
            start=dt.datetime.fromtimestamp(self.start_seconds, dt.UTC),
            utc_offset_minutes=self.utc_offset_minutes,
            minutes_per_step=self.minutes_per_step,
            labels=self.labels(),
            events=self.events(),
        )

    def labels(self) -> dict[str, float | str]:
        """The parsed labels; ValueError if they are damaged."""
        return _labels(self.labels_json)

    def events(self) -> tuple[Event, ...]:
        """The parsed events; ValueError or TypeError if they are damaged."""
        return tuple(_event(item) for item in json.loads(self.events_json))


def parse_record(serialised: bytes, channel_count: int) -> Record:
    """Parses a record.

    Raises:
      ValueError: this is not a record of `channel_count` channels; the message names the part that is wrong.
    """
    try:
        feature = tf_example_pb2.Example.FromString(serialised).features.feature
    except DecodeError:
        raise ValueError("not a tf.train.Example") from None
    codes = np.frombuffer(_single(feature, "codes", "bytes_list"), "<u2")
    offset = np.array(feature["offset"].float_list.value, np.float32)
    step = np.array(feature["step"].float_list.value, np.float32)
    if codes.size % channel_count or codes.size > channel_count * _MAX_STEPS:
        raise ValueError(f"{codes.size} cells do not fit {channel_count} channels")
    if offset.shape != (channel_count,) or step.shape != (channel_count,):
        raise ValueError(f"offset and step of {offset.size} and {step.size} channels, not {channel_count}")
    if not ((np.abs(offset) <= _MAX_SCALE).all() and (np.abs(step) <= _MAX_SCALE).all()):
        raise ValueError(f"an offset or step is not a number of at most {_MAX_SCALE:.0e}")
    record = Record(
        codes=codes.reshape(channel_count, -1),
        offset=offset,
        step=step,
        participant=_single(feature, "participant", "bytes_list").decode(errors="replace"),
        start_seconds=_single(feature, "start_seconds", "int64_list"),
        utc_offset_minutes=_single(feature, "utc_offset_minutes", "int64_list"),
        minutes_per_step=_single(feature, "minutes_per_step", "int64_list"),
        labels_json=_single(feature, "labels", "bytes_list"),
        events_json=_single(feature, "events", "bytes_list"),
    )
    if not (abs(record.start_seconds) < 2**36 and abs(record.utc_offset_minutes) <= 1440):
        raise ValueError(f"an impossible start: {record.start_seconds} s, offset {record.utc_offset_minutes} min")
    if not 1 <= record.minutes_per_step <= MINUTES_PER_DAY:
        raise ValueError(f"{record.minutes_per_step} minutes per step")
    return record


def _single(feature: Any, name: str, kind: str) -> Any:
    value = getattr(feature[name], kind).value
    if len(value) != 1:
        raise ValueError(f"{name} is missing")
    return value[0]


def _labels_json(labels: Mapping[str, float | str]) -> str:
    """Labels as JSON, without numbers that are not finite."""
    kept = {
        name: value if isinstance(value, str) else float(value)
        for name, value in labels.items()
        if isinstance(value, str) or math.isfinite(value)
    }
    return json.dumps(kept)


def _labels(text: bytes) -> dict[str, float | str]:
    labels = json.loads(text)
    if not isinstance(labels, dict) or not all(isinstance(value, (int, float, str)) for value in labels.values()):
        raise ValueError("labels are not a flat JSON object")
    return labels


def _event(item: Any) -> Event:
    kind, name, start, end = item
    return Event(kind=str(kind), name=str(name), start=_whole(start), end=_whole(end))


def _whole(minute: Any) -> float:
    """An int where the number is whole, so that a dataset of whole minutes keeps its bytes."""
    return int(minute) if float(minute).is_integer() else float(minute)
