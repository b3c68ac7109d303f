"""Time-of-day means: of a person from their other windows, and of the training cohort.

Both are kept in bins of ten minutes of local time and smoothed around the clock with a Gaussian, so that
a profile from a handful of days is a curve and not a comb.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.windows import MINUTES_PER_DAY

BIN_MINUTES = 10
BINS = MINUTES_PER_DAY // BIN_MINUTES
_SMOOTHING_SD_MINUTES = 30.0
# Ends the Gaussian at four deviations: beyond it a bin holds nothing (also keeps fallbacks exact).
_REACH_BINS = int(4 * _SMOOTHING_SD_MINUTES / BIN_MINUTES)


def time_bins(start_minute: Int[np.ndarray, " b"], steps: int, minutes_per_step: int = 1) -> Int[np.ndarray, "b t"]:
    """The local time-of-day bin of every step of windows that start at `start_minute` of the day."""
    minute = start_minute[:, None].astype(np.int64) + np.arange(steps) * minutes_per_step
    return minute % MINUTES_PER_DAY // BIN_MINUTES


def binned(
    values: Float[np.ndarray, "b t c"], observed: Bool[np.ndarray, "b t c"], bins: Int[np.ndarray, "b t"]
) -> tuple[Float[np.ndarray, "b k c"], Float[np.ndarray, "b k c"]]:
    """Sums and counts of the observed cells of each window by time-of-day bin, float64."""
    batch, _, channels = values.shape
    slot = (np.arange(batch)[:, None] * BINS + bins).ravel()
    size = batch * BINS
    shape = (batch, BINS, channels)
    sums, counts = np.zeros((size, channels)), np.zeros((size, channels))
    for column in range(channels):
        seen = observed[:, :, column].ravel()
        shown = np.where(seen, values[:, :, column].ravel(), 0)
        sums[:, column] = np.bincount(slot, weights=shown, minlength=size)
        counts[:, column] = np.bincount(slot, weights=seen, minlength=size)
    return sums.reshape(shape), counts.reshape(shape)


def smoothed_mean(
    sums: Float[np.ndarray, "... k c"], counts: Float[np.ndarray, "... k c"], fallback: Float[np.ndarray, "... k c"]
) -> Float[np.ndarray, "... k c"]:
    """The mean around each time of day; `fallback` where less than one recorded minute lies near."""
    total, weight = _around_the_clock(sums), _around_the_clock(counts)
    enough = weight >= 1.0
    return np.where(enough, total / np.where(enough, weight, 1.0), fallback).astype(np.float32)


def cohort_profile(
    batches: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], channels: int
) -> Float[np.ndarray, "k c"]:
    """The cohort's time-of-day mean in z-scores from batches of (values, observed, bins); 0 where nothing is known."""
    sums, counts = np.zeros((BINS, channels)), np.zeros((BINS, channels))
    for values, observed, bins in batches:
        batch_sums, batch_counts = binned(values, observed, bins)
        sums += batch_sums.sum(axis=0)
        counts += batch_counts.sum(axis=0)
    return smoothed_mean(sums, counts, np.zeros_like(sums))


def person_profiles(
    values: Float[np.ndarray, "b t c"],
    observed: Bool[np.ndarray, "b t c"],
    bins: Int[np.ndarray, "b t"],
    person: Int[np.ndarray, " b"],
    cohort: Float[np.ndarray, "k c"],
) -> Float[np.ndarray, "b k c"]:
    """For each window the time-of-day mean of its person's *other* windows, in z-scores.

    Sums before and after a window are added, never the window's own subtracted from a total: not even a
    rounding error of the window's cells reaches its profile.

    Args:
      person: any integer id per window; all windows of a person must be in the batch.
      cohort: where the person's other windows hold nothing near a time of day.
    """
    sums, counts = binned(values, observed, bins)
    profiles = np.empty(sums.shape, np.float32)
    for one in np.unique(person):
        theirs = np.flatnonzero(person == one)
        profiles[theirs] = smoothed_mean(_sum_of_others(sums[theirs]), _sum_of_others(counts[theirs]), cohort)
    return profiles


def _sum_of_others(parts: np.ndarray) -> np.ndarray:
    others = np.zeros_like(parts)
    others[1:] += np.cumsum(parts, axis=0)[:-1]
    others[:-1] += np.cumsum(parts[::-1], axis=0)[::-1][1:]
    return others


def _around_the_clock(values: np.ndarray) -> np.ndarray:
    """Gaussian sums over neighbouring bins, midnight wrapped; the central weight is 1."""
    offsets = np.arange(-_REACH_BINS, _REACH_BINS + 1)
    kernel = np.exp(-0.5 * (offsets * BIN_MINUTES / _SMOOTHING_SD_MINUTES) ** 2)
    positions = (np.arange(BINS)[:, None] + offsets) % BINS
    clock = np.zeros((BINS, BINS))
    np.add.at(clock, (np.arange(BINS)[:, None], positions), kernel)
    return np.einsum("kj,...jc->...kc", clock, values, optimize=True)
