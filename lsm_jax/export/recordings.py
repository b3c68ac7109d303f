"""Arrays and data frames of a notebook as windows on a run's channels."""

from __future__ import annotations

import dataclasses
import datetime as dt
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from lsm_jax.channels import REGISTRY
from lsm_jax.data.loader import Batch
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError, nearest
from lsm_jax.windows import MINUTES_PER_DAY

Start = dt.datetime | np.datetime64 | str | None


@dataclasses.dataclass(frozen=True)
class Recording:
    """Minutes of one person, or one window of an array of several.

    Attributes:
      owner: the person, or the number of the window.
      minute: of each row, since 1970 in local time; since the midnight before the first row where no time is known.
      values: in the registry's units, NaN where missing.
    """

    owner: str | int
    minute: Int[np.ndarray, " t"]
    values: Float[np.ndarray, "*shape"]


@dataclasses.dataclass(frozen=True)
class Recordings:
    """What was given, by person or window.

    Attributes:
      channels: of the columns.
      owner: `participant` or `window`; empty where all is one person's.
      dated: whether minutes are of real days.
    """

    parts: Sequence[Recording]
    channels: tuple[str, ...]
    owner: str
    dated: bool

    def windows(self, spec: DataSpec) -> tuple[Batch, Int[np.ndarray, " n"], list[str | int]]:
        """A batch of days (windows of the run's length), the first minute of each, and whose they are.

        Windows begin at local midnight, or at multiples of the run's window length after it. Minutes that were not
        given are unobserved. Of several rows in a minute, counts are added and levels averaged.
        """
        length, columns = spec.window_minutes, [spec.channels.index(name) for name in self.channels]
        kinds = [REGISTRY[name] for name in self.channels]
        is_count = np.array([kind.is_count for kind in kinds])
        low, high = (np.array([getattr(kind, end) for kind in kinds], float) for end in ("low", "high"))
        values, starts, owners, outside = [], [], [], np.zeros(len(columns), int)
        for part in self.parts:
            if not len(part.minute):
                continue
            # As `lsm ingest`: before samples are averaged. Of samples that are added it is the sum that has a limit.
            samples, implausible = _within(part.values, low, np.where(is_count, np.inf, high))
            outside += implausible
            origin = part.minute.min() // MINUTES_PER_DAY * MINUTES_PER_DAY
            number, step = np.divmod(part.minute - origin, length)
            present, window = np.unique(number, return_inverse=True)
            sums, counts = np.zeros((2, len(present), length, len(columns)))
            np.add.at(sums, (window, step), np.nan_to_num(samples))
            np.add.at(counts, (window, step), ~np.isnan(samples))
            shared = np.where(is_count, 1, np.maximum(counts, 1))
            values.append(np.where(counts > 0, sums / shared, np.nan))
            starts.append(origin + present * length)
            owners += [part.owner] * len(present)
        if not values:
            raise UserError("there is nothing to embed: no row has a time and no array has a minute.")
        natural, implausible = _within(
            np.concatenate(values), np.where(is_count, low, -np.inf), np.where(is_count, high, np.inf)
        )
        self._warn(outside + implausible)
        observed = ~np.isnan(natural)
        batch = {
            "values": np.zeros((len(natural), length, len(spec.channels)), np.float32),
            "observed": np.zeros((len(natural), length, len(spec.channels)), np.bool_),
            "window_id": np.arange(len(natural), dtype=np.int32),
        }
        scaled = (natural - spec.mean[columns]) / spec.sd[columns]
        batch["values"][:, :, columns] = np.where(observed, scaled, 0)
        batch["observed"][:, :, columns] = observed
        return batch, np.concatenate(starts), owners

    def _warn(self, outside: Int[np.ndarray, " c"]) -> None:
        """Warns of channels with values outside their range."""
        for name, count in zip(self.channels, outside.tolist(), strict=True):
            if count:
                kind = REGISTRY[name]
                warnings.warn(
                    f"{kind.name}: {count} values are outside {kind.low:g} to {kind.high:g} {kind.unit} and count as "
                    "missing. Are they in this unit?",
                    stacklevel=5,
                )


def _within(
    values: Float[np.ndarray, "*t c"], low: Float[np.ndarray, " c"], high: Float[np.ndarray, " c"]
) -> tuple[Float[np.ndarray, "*t c"], Int[np.ndarray, " c"]]:
    """Values with NaN where they are infinite or outside the limits of their channel, and how many are."""
    with np.errstate(invalid="ignore"):
        outside = (values < low) | (values > high) | np.isinf(values)
    return np.where(outside, np.nan, values), outside.sum(axis=tuple(range(values.ndim - 1)))


def as_array(data: Any) -> Float[np.ndarray, "*shape"]:
    """The data as an array with NaN where it is masked."""
    if isinstance(data, np.ma.MaskedArray):
        return np.ma.filled(data.astype(np.float64), np.nan)
    return np.asarray(data, np.float64)


def recordings(
    data: Any, spec: DataSpec, channels: Sequence[str] | None, start: Start, time: str | None, participant: str
) -> Recordings:
    """What `Encoder.embed` was given; see there.

    Raises:
      UserError: an unknown channel, a shape that does not fit, or a frame without times.
    """
    if hasattr(data, "columns"):
        if start is not None:
            raise UserError("start= is for arrays; the rows of a frame have times of their own.")
        return _of_frame(data, spec, channels, time, participant)
    array = as_array(data)
    if array.ndim not in (2, 3):
        raise UserError(f"an array of shape {array.shape}: give [time, channels] or [windows, time, channels].")
    names = _checked(spec.channels if channels is None else channels, spec)
    if array.shape[-1] != len(names):
        given = "the run has" if channels is None else "channels= names"
        raise UserError(
            f"an array of shape {array.shape} has {array.shape[-1]} columns, {given} {len(names)} channels."
        )
    first = 0 if start is None else int(_minutes([_parsed(start)])[0])
    minute = first + np.arange(array.shape[-2])
    if array.ndim == 2:
        return Recordings([Recording("", minute, array)], names, "", start is not None)
    parts = [Recording(number, minute, window) for number, window in enumerate(array)]
    return Recordings(parts, names, "window", start is not None)


def _of_frame(
    data: Any, spec: DataSpec, channels: Sequence[str] | None, time: str | None, participant: str
) -> Recordings:
    frame = _as_polars(data)
    time = time or _time_column(frame)
    if time not in frame.columns or not isinstance(frame.schema[time], pl.Datetime):
        raise UserError(f"the frame has no column {time!r} of times; it has {_listed(frame)}.")
    if frame[time].null_count():
        raise UserError(f"{frame[time].null_count()} rows of the frame have no {time!r}: drop them or give them one.")
    names = [name for name in frame.columns if name not in (time, participant)] if channels is None else channels
    names = _checked(names, spec, "the frame's columns; name those to read in channels=")
    if missing := [name for name in names if name not in frame.columns]:
        raise UserError(f"the frame has no column {missing[0]!r}.{nearest(missing[0], frame.columns)}")
    minute = _minutes(frame[time].dt.replace_time_zone(None).to_numpy())
    try:
        values = frame.select(pl.col(names).cast(pl.Float64)).to_numpy()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"the channels of the frame are not all numbers: {error}.") from None
    if participant not in frame.columns:
        return Recordings([Recording("", minute, values)], names, "", dated=True)
    owners = frame[participant].fill_nan(None) if frame.schema[participant].is_float() else frame[participant]
    if owners.null_count():
        raise UserError(f"{owners.null_count()} rows of the frame have no {participant!r}: drop them or give them one.")
    people = owners.cast(pl.String).to_numpy()
    parts = [Recording(str(each), minute[people == each], values[people == each]) for each in dict.fromkeys(people)]
    return Recordings(parts, names, "participant", dated=True)


def _as_polars(data: Any) -> pl.DataFrame:
    """A polars frame of a polars or pandas one; an index of times becomes the column `time`."""
    if isinstance(data, pl.LazyFrame):
        return data.collect()
    if isinstance(data, pl.DataFrame):
        return data
    # A column of times with a zone would become an array of Python objects.
    columns = {
        str(name): (data[name].dt.tz_localize(None) if hasattr(data.dtypes[name], "tz") else data[name]).to_numpy()
        for name in data.columns
    }
    if getattr(data.index, "tz", None) is not None:
        columns["time"] = data.index.tz_localize(None).to_numpy()
    elif np.issubdtype(data.index.dtype, np.datetime64):
        columns["time"] = data.index.to_numpy()
    return pl.DataFrame(columns, nan_to_null=False)


def _time_column(frame: pl.DataFrame) -> str:
    found = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime)]
    if len(found) != 1:
        what = "no column of times" if not found else f"several columns of times ({', '.join(found)})"
        raise UserError(f"the frame has {what}: name one in time=. It has {_listed(frame)}.")
    return found[0]


def _listed(frame: pl.DataFrame) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in frame.schema.items())


def _checked(names: Iterable[str], spec: DataSpec, where: str = "channels=") -> tuple[str, ...]:
    """The names, if they are channels of the run and none comes twice."""
    names = tuple(names)
    for name in names:
        if name not in spec.channels:
            raise UserError(
                f"{name!r} in {where} is no channel of this run.{nearest(name, spec.channels)} It has "
                f"{', '.join(spec.channels)}."
            )
    if len({*names}) < len(names):
        raise UserError(f"{where}: {', '.join(names)} names a channel twice.")
    if not names:
        raise UserError(f"{where} names no channel; the run has {', '.join(spec.channels)}.")
    return names


def _parsed(start: Start) -> np.datetime64:
    """The local time; a zone is left out."""
    try:
        moment = dt.datetime.fromisoformat(start) if isinstance(start, str) else start
        return np.datetime64(moment.replace(tzinfo=None) if isinstance(moment, dt.datetime) else moment)
    except ValueError:
        raise UserError(f"start={start!r} is no time; write it as in start='2024-03-04T08:30'.") from None


def _minutes(times: Any) -> Int[np.ndarray, " t"]:
    return np.asarray(times, "datetime64[m]").astype(np.int64)
