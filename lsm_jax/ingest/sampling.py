"""From samples at any rate to one value per minute."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.channels import REGISTRY, Channel
from lsm_jax.ingest.record import Series
from lsm_jax.ingest.report import IngestReport

Aggregate = Literal["mean", "sum", "max", "min", "last"]
Instants = Float[np.ndarray, " n"] | Int[np.ndarray, " n"]
AGGREGATES: tuple[Aggregate, ...] = ("mean", "sum", "max", "min", "last")


def minute_series(
    channel: str,
    second: Instants,
    value: Float[np.ndarray, " n"],
    report: IngestReport,
    *,
    period_minutes: int = 1,
    aggregate: Aggregate = "mean",
) -> Series:
    """One sensor's samples as minute values.

    Samples of a minute are aggregated. A sensor slower than a minute is observed for its own sampling
    period: a sample fills the minutes from its own to the next sample, at most `period_minutes` of them.
    A sample given twice is dropped; of different values at the same instant the last one in the file stays
    (a later export corrects an earlier one). Both are counted, as is disorder. Implausible samples are counted
    and taken out before anything is made of them.

    Args:
      second: seconds since the Unix epoch, UTC, to the millisecond, in file order.
      value: in the registry's unit; NaN where a sample is not valid.
      period_minutes: the sampling period where it is more than a minute.
      aggregate: how samples of one minute become one value.
    """
    value = value.astype(np.float32)
    plausible = _plausible(REGISTRY[channel], value, aggregate)
    implausible = int((~plausible & ~np.isnan(value)).sum())
    if implausible:
        report.implausible[channel] += implausible
    lost = distinct((second[~plausible] // 86400).astype(np.int64))
    second, value = in_order(channel, second[plausible], value[plausible], report)
    minute = (second // 60).astype(np.int64)
    first = np.flatnonzero(np.diff(minute, prepend=minute[:1] - 1))
    if len(first) < len(minute):
        value = _aggregated(value, first, aggregate)
        minute = minute[first]
    if period_minutes > 1:
        minute, value = _held(minute, value, period_minutes)
    # One NaN marks a day on which the sensor gave samples but no value, so that the day is counted as lost.
    lost = np.setdiff1d(lost, distinct(minute // 1440)) * 1440 + 720
    return Series(channel, np.append(minute, lost), np.append(value, np.full(len(lost), np.nan, np.float32)))


def _plausible(kind: Channel, value: Float[np.ndarray, " n"], aggregate: Aggregate) -> Bool[np.ndarray, " n"]:
    """Whether each sample lies in the channel's range; NaN does not. A mean of 62 and an artefact's 0 looks real.

    Samples that are summed are parts of a minute's value: they may be small, but negative only where a value may.
    """
    if aggregate == "sum":
        return value >= (0 if kind.low >= 0 else -np.inf)
    return (value >= kind.low) & (value <= kind.high)


def in_order(
    channel: str, time: Instants, value: Float[np.ndarray, " n"], report: IngestReport
) -> tuple[Instants, Float[np.ndarray, " m"]]:
    """Sorted by time, each time once: repeats and contradictions are counted, the last in file order stays."""
    steps = np.diff(time)
    if (steps > 0).all():
        return time, value
    report.disordered += int((steps < 0).sum())
    order = np.argsort(time, kind="stable")
    time, value = time[order], value[order]
    repeats = time[1:] == time[:-1]
    same = repeats & (value[1:] == value[:-1])
    if repeats.any():
        report.duplicates[channel] += int(same.sum())
        report.conflicts[channel] += int((repeats & ~same).sum())
    last = np.append(~repeats, True)
    return time[last], value[last]


def distinct(numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """`np.unique`, quick where equal numbers stand in long runs."""
    return np.unique(numbers[np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))])


def _aggregated(
    value: Float[np.ndarray, " n"], first: Int[np.ndarray, " m"], aggregate: Aggregate
) -> Float[np.ndarray, " m"]:
    counts = np.diff(first, append=len(value))
    if aggregate == "last":
        return value[first + counts - 1]
    if aggregate in ("max", "min"):
        return getattr(np, f"{aggregate}imum").reduceat(value, first)
    totals = np.add.reduceat(value.astype(np.float64), first)
    return (totals / counts if aggregate == "mean" else totals).astype(np.float32)


def _held(
    minute: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"], period: int
) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Each value repeated until the next sample, for at most `period` minutes."""
    if not len(minute):
        return minute, value
    length = np.minimum(np.diff(minute, append=minute[-1] + period), period)
    ends = np.cumsum(length)
    within = np.arange(ends[-1]) - np.repeat(ends - length, length)
    return np.repeat(minute, length) + within, np.repeat(value, length)
