"""Fills: baselines of the generative suite that need no fit and see the visible cells only. `imputers` has the others.

They predict z-scored values (the training mean is 0) at the hidden, recorded cells of a batch of windows. Where a
channel has no visible cell in a window, `mean`, `nearest`, `last` and `linear` predict the training mean, and
`person_time_of_day` the cohort's mean at that time of day.

Time-of-day means are kept in bins of ten minutes of local time and smoothed around the clock with a Gaussian, so that
the mean of a handful of days is a curve, not a comb.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.windows import MINUTES_PER_DAY

FILLS: tuple[str, ...] = ("mean", "nearest", "last", "linear", "person_time_of_day", "cohort_time_of_day")
BIN_MINUTES = 10
BINS = MINUTES_PER_DAY // BIN_MINUTES
_SMOOTHING_SD_MINUTES = 30.0
# The Gaussian ends at four standard deviations, so that a bin far from any data is exactly empty.
_REACH_BINS = int(4 * _SMOOTHING_SD_MINUTES / BIN_MINUTES)


class CellIndex(NamedTuple):
    """Coordinates of n cells in a batch of windows: window, time step, channel."""

    window: Int[np.ndarray, " n"]
    step: Int[np.ndarray, " n"]
    channel: Int[np.ndarray, " n"]


def predict_fills(
    values: Float[np.ndarray, "b t c"],
    visible: Bool[np.ndarray, "b t c"],
    cells: CellIndex,
    person_profile: Float[np.ndarray, "b t c"],
    cohort_profile: Float[np.ndarray, "b t c"],
) -> Mapping[str, Float[np.ndarray, " n"]]:
    """The z-scored prediction of every fill at `cells`.

    Args:
      values: z-scored; read only where `visible`.
      cells: hidden cells.
      person_profile, cohort_profile: time-of-day means of the person and of the training cohort at each cell.
    """
    visible_values = np.where(visible, values, 0).astype(np.float32)
    count = visible.sum(axis=1)
    mean = np.divide(visible_values.sum(axis=1), count, out=np.zeros(count.shape, np.float32), where=count > 0)
    window, step, channel = cells
    mean_here = mean[window, channel]
    before, after = (part[window, step, channel] for part in _visible_neighbours(visible))
    has_before, has_after = before >= 0, after < values.shape[1]
    value_before = visible_values[window, np.where(has_before, before, 0), channel]
    value_after = visible_values[window, np.where(has_after, after, 0), channel]
    # Steps to each visible neighbour; a missing neighbour is infinitely far.
    gap_before = np.where(has_before, step - before, np.inf).astype(np.float32)
    gap_after = np.where(has_after, after - step, np.inf).astype(np.float32)
    nearest = np.where(gap_before <= gap_after, value_before, value_after)
    nearest = np.where(has_before | has_after, nearest, mean_here)
    between = has_before & has_after
    weight_after = np.divide(gap_before, gap_before + gap_after, out=np.zeros_like(gap_before), where=between)
    line = value_before + weight_after * (value_after - value_before)
    return {
        "mean": mean_here,
        "nearest": nearest,
        "last": np.where(has_before, value_before, mean_here),
        "linear": np.where(between, line, nearest),
        "person_time_of_day": person_profile[window, step, channel],
        "cohort_time_of_day": cohort_profile[window, step, channel],
    }


def line_and_gap(
    values: Float[np.ndarray, "b t c"],
    visible: Bool[np.ndarray, "b t c"],
    window: Int[np.ndarray, " n"],
    step: Int[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "n c"]]:
    """For every channel of some minutes, the fill `linear` and the minutes to the nearest visible one.

    0 and infinity where the channel has no visible minute in the window.
    """
    before, after = (part[window, step] for part in _visible_neighbours(visible))
    last, at = values.shape[1] - 1, (window[:, None], np.arange(values.shape[2]))
    gap_before = np.where(before >= 0, step[:, None] - before, np.inf)
    gap_after = np.where(after <= last, after - step[:, None], np.inf)
    gap, both = np.minimum(gap_before, gap_after), np.isfinite(gap_before + gap_after) & (gap_before + gap_after > 0)
    share = np.divide(gap_before, gap_before + gap_after, out=(gap_after < gap_before).astype(float), where=both)
    value_before, value_after = (values[at[0], np.clip(neighbour, 0, last), at[1]] for neighbour in (before, after))
    line = np.where(share < 1, (1 - share) * value_before, 0) + np.where(share > 0, share * value_after, 0)
    return np.where(np.isfinite(gap), line, 0), gap


def _visible_neighbours(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each cell the visible steps of its channel before and after it, itself included; -1 and T for none."""
    by_channel = np.ascontiguousarray(visible.transpose(0, 2, 1))
    steps = np.arange(visible.shape[1], dtype=np.int32)
    before = np.maximum.accumulate(np.where(by_channel, steps, np.int32(-1)), axis=2)
    backwards = np.where(by_channel, steps, np.int32(visible.shape[1]))[:, :, ::-1]
    after = np.minimum.accumulate(backwards, axis=2)[:, :, ::-1]
    return before.transpose(0, 2, 1), after.transpose(0, 2, 1)


def time_bins(start_minute: Int[np.ndarray, " b"], minutes: int) -> Int[np.ndarray, "b t"]:
    """The local time-of-day bin of every minute of windows that start at `start_minute` of the day."""
    minute = start_minute[:, None].astype(np.int64) + np.arange(minutes)
    return minute % MINUTES_PER_DAY // BIN_MINUTES


def cohort_profile(
    batches: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], channels: int
) -> Float[np.ndarray, "k c"]:
    """The cohort's mean by time of day in z-scores, from batches of (values, observed, bins); 0 where there is none."""
    sums, counts = np.zeros((BINS, channels)), np.zeros((BINS, channels))
    for values, observed, bins in batches:
        batch_sums, batch_counts = sums_by_bin(values, observed, bins)
        sums += batch_sums.sum(axis=0)
        counts += batch_counts.sum(axis=0)
    return _smoothed_mean(sums, counts, np.zeros_like(sums))


def person_profiles(
    values: Float[np.ndarray, "b t c"],
    observed: Bool[np.ndarray, "b t c"],
    bins: Int[np.ndarray, "b t"],
    person: Int[np.ndarray, " b"],
    cohort: Float[np.ndarray, "k c"],
) -> Float[np.ndarray, "b k c"]:
    """For each window the mean by time of day of the person's *other* windows, in z-scores.

    Args:
      person: an integer per window; all windows of a person must be in the batch.
      cohort: used at times of day that the other windows do not cover.
    """
    sums, counts = sums_by_bin(values, observed, bins)
    profiles = np.empty(sums.shape, np.float32)
    for one in np.unique(person):
        own = np.flatnonzero(person == one)
        profiles[own] = _smoothed_mean(_sum_of_others(sums[own]), _sum_of_others(counts[own]), cohort)
    return profiles


def sums_by_bin(
    values: Float[np.ndarray, "b t c"], observed: Bool[np.ndarray, "b t c"], bins: Int[np.ndarray, "b t"]
) -> tuple[Float[np.ndarray, "b k c"], Float[np.ndarray, "b k c"]]:
    """Sums and counts of the observed cells of each window by time-of-day bin, float64."""
    batch, _, channels = values.shape
    slot, size = (np.arange(batch)[:, None] * BINS + bins).ravel(), batch * BINS
    sums, counts = np.zeros((size, channels)), np.zeros((size, channels))
    for column in range(channels):
        recorded = observed[:, :, column].ravel()
        recorded_values = np.where(recorded, values[:, :, column].ravel(), 0)
        sums[:, column] = np.bincount(slot, weights=recorded_values, minlength=size)
        counts[:, column] = np.bincount(slot, weights=recorded, minlength=size)
    return sums.reshape(batch, BINS, channels), counts.reshape(batch, BINS, channels)


def _smoothed_mean(
    sums: Float[np.ndarray, "... k c"], counts: Float[np.ndarray, "... k c"], fallback: Float[np.ndarray, "... k c"]
) -> Float[np.ndarray, "... k c"]:
    """The mean around each time of day; `fallback` where less than one recorded minute is near."""
    offsets = np.arange(-_REACH_BINS, _REACH_BINS + 1)
    kernel = np.exp(-0.5 * (offsets * BIN_MINUTES / _SMOOTHING_SD_MINUTES) ** 2)
    clock = np.zeros((BINS, BINS))  # Gaussian weights between bins, wrapped at midnight; 1 on the diagonal
    np.add.at(clock, (np.arange(BINS)[:, None], (np.arange(BINS)[:, None] + offsets) % BINS), kernel)
    total, weight = (np.einsum("kj,...jc->...kc", clock, part, optimize=True) for part in (sums, counts))
    enough = weight >= 1.0
    return np.where(enough, total / np.where(enough, weight, 1.0), fallback).astype(np.float32)


def _sum_of_others(parts: np.ndarray) -> np.ndarray:
    """For each part the sum of the others, without subtracting: not even a rounding error of a window reaches it."""
    others = np.zeros_like(parts)
    others[1:] += np.cumsum(parts, axis=0)[:-1]
    others[:-1] += np.cumsum(parts[::-1], axis=0)[::-1][1:]
    return others
