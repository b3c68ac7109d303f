"""Minute features from raw signals: heart beats, skin conductance, skin temperature (motion: motion.py).

The papers publish the names, units and moments of these features and an outline (LSM-1, arXiv 2410.13638): median
filtering and a robust slope for the slow signals; for motion, three axes reduced to one, band-filtered, then statistics
of the minute. The rest is our choice; docs/reference/signals.md defines every feature. NaN means missing in
all inputs. All functions work on all minutes at once and give NaN for a minute with too few samples.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from lsm_jax.errors import UserError

Features = dict[str, Float[np.ndarray, " m"]]

MIN_SHARE = 0.5  # of the samples of a minute, or of a block within it
MIN_BEATS = 10  # beats (or pairs of beats) in a minute for a measure of variability
MIN_RR, MAX_RR = 0.25, 2.4  # s, the registry's range
ECTOPIC_DEVIATION = 0.2  # Malik's rule: a normal beat lies within 20 % of its neighbours
ENTROPY_BIN = 1 / 128  # s; half the resolution of the E4

MIN_CONDUCTANCE, MAX_CONDUCTANCE = 0.01, 100.0  # uS; an open E4 electrode reads about 0
CONTACT_COUNTS = 240  # samples a minute at the E4's 4 Hz
MIN_TEMPERATURE, MAX_TEMPERATURE = 10.0, 45.0  # deg C; the E4 reports above 200 when its thermometer fails
BLOCK_SECONDS = 5


def minute_grid(
    samples: Float[np.ndarray, "n ..."], start: float, rate: float
) -> tuple[int, Float[np.ndarray, "m s ..."]]:
    """Arranges an evenly sampled signal by minutes of the clock.

    Args:
      samples: NaN where missing.
      start: time of the first sample, seconds since the Unix epoch.
      rate: samples per second.

    Returns:
      The first minute (since the epoch) and the samples, padded with NaN before the start and after the end.

    Raises:
      UserError: the rate gives no whole number of samples per minute.
    """
    per_minute = round(rate * 60)
    if per_minute < 1 or abs(per_minute - rate * 60) > 1e-6:
        raise UserError(f"a sampling rate of {rate} Hz gives no whole number of samples per minute; resample first.")
    first = int(start // 60)
    padding = min(round((start - first * 60) * rate), per_minute - 1)
    minutes = -(-(padding + len(samples)) // per_minute)
    grid = np.full((minutes * per_minute, *samples.shape[1:]), np.nan)
    grid[padding : padding + len(samples)] = samples
    return first, grid.reshape(minutes, per_minute, *samples.shape[1:])


def quantile(values: Float[np.ndarray, "m ... n"], q: float) -> Float[np.ndarray, "m ..."]:
    """The q-quantile of each row (linear interpolation) without its NaN; NaN for an empty row."""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    ordered = np.sort(values, axis=-1)  # NaN goes last
    last = np.maximum((~np.isnan(values)).sum(-1) - 1, 0)
    position = q * last
    below = np.floor(position).astype(int)
    low = np.take_along_axis(ordered, below[..., None], -1)[..., 0]
    high = np.take_along_axis(ordered, np.minimum(below + 1, last)[..., None], -1)[..., 0]
    return low + (position - below) * (high - low)


def mean_level(grid: Float[np.ndarray, "m s"], low: float, high: float) -> Float[np.ndarray, " m"]:
    """Mean of the samples within [low, high]; NaN for a minute in which less than half are."""
    valid = (grid >= low) & (grid <= high)
    return np.where(enough_samples(valid), mean_of(np.where(valid, grid, 0), valid), np.nan)


# Heart beats.


def heart_beat_features(
    seconds: Float[np.ndarray, " b"], interval: Float[np.ndarray, " b"], first: int, minutes: int
) -> Features:
    """Heart rate and variability of each minute from inter-beat intervals.

    Args:
      seconds: time of each beat, since the Unix epoch; in order.
      interval: seconds since the beat before; NaN and implausible intervals are left out.
      first, minutes: first minute and number of minutes recorded. One without beats has `rr_percent_valid` 0.

    Returns:
      heart_rate, rr_percent_valid, rr_20th_percentile, rr_median, rr_80th_percentile, rmssd, sdnn, rr_entropy,
      rr_difference_entropy, pnn20, each [m].
    """
    valid = _normal_beats(interval) & (seconds >= first * 60) & (seconds < (first + minutes) * 60)
    seconds, interval = seconds[valid], interval[valid]
    minute = (seconds // 60).astype(int) - first
    # A difference needs two successive beats in the same minute, with no beat lost between them.
    successive = (np.abs(np.diff(seconds) - interval[1:]) < 2 / 64) & (np.diff(minute) == 0)
    beats = _by_minute(minute, interval, minutes)
    differences = _by_minute(minute[1:][successive], np.diff(interval)[successive], minutes)
    count, pairs = (~np.isnan(beats)).sum(1), (~np.isnan(differences)).sum(1)
    enough, enough_pairs = count >= MIN_BEATS, pairs >= MIN_BEATS
    covered = np.nansum(beats, axis=1)  # s
    return {
        "heart_rate": np.where(enough, 60 * count / np.where(enough, covered, 1), np.nan),
        "rr_percent_valid": np.minimum(covered / 60, 1.0),
        "rr_20th_percentile": np.where(enough, 1000 * quantile(beats, 0.2), np.nan),
        "rr_median": np.where(enough, 1000 * quantile(beats, 0.5), np.nan),
        "rr_80th_percentile": np.where(enough, 1000 * quantile(beats, 0.8), np.nan),
        "rmssd": np.where(enough_pairs, 1000 * _root_mean_square(_central_90(differences)), np.nan),
        "sdnn": np.where(enough, 1000 * _standard_deviation(_central_90(beats)), np.nan),
        "rr_entropy": np.where(enough, _entropy(beats, ENTROPY_BIN), np.nan),
        "rr_difference_entropy": np.where(enough_pairs, _entropy(differences, ENTROPY_BIN), np.nan),
        "pnn20": np.where(enough_pairs, (np.abs(differences) > 0.02).sum(1) / np.maximum(pairs, 1), np.nan),
    }


def _normal_beats(interval: Float[np.ndarray, " b"]) -> Bool[np.ndarray, " b"]:
    """Beats with a plausible interval that are not ectopic."""
    plausible = (interval >= MIN_RR) & (interval <= MAX_RR)
    if not plausible.any():
        return plausible
    normal = plausible.copy()
    candidates = interval[plausible]
    deviation = np.abs(candidates / ndimage.median_filter(candidates, size=5, mode="nearest") - 1)
    normal[plausible] = deviation <= ECTOPIC_DEVIATION
    return normal


def _by_minute(minute: Int[np.ndarray, " b"], value: Float[np.ndarray, " b"], minutes: int) -> Float[np.ndarray, "m k"]:
    """One row of values per minute, padded with NaN. `minute` is in order."""
    count = np.bincount(minute, minlength=minutes)
    column = np.arange(len(minute)) - (np.cumsum(count) - count)[minute]
    rows = np.full((minutes, int(count.max(initial=0))), np.nan)
    rows[minute, column] = value
    return rows


def _central_90(rows: Float[np.ndarray, "m k"]) -> Float[np.ndarray, "m k"]:
    """The values between each row's 5th and 95th percentile, so that one artefact does not dominate the variability."""
    low, high = quantile(rows, 0.05)[:, None], quantile(rows, 0.95)[:, None]
    return np.where((rows >= low) & (rows <= high), rows, np.nan)


def _root_mean_square(rows: Float[np.ndarray, "m k"]) -> Float[np.ndarray, " m"]:
    present = ~np.isnan(rows)
    return np.sqrt(mean_of(np.where(present, rows, 0) ** 2, present))


def _standard_deviation(rows: Float[np.ndarray, "m k"]) -> Float[np.ndarray, " m"]:
    present = ~np.isnan(rows)
    centred = np.where(present, rows - mean_of(np.where(present, rows, 0), present)[:, None], 0)
    return np.sqrt((centred**2).sum(1) / np.maximum(present.sum(1) - 1, 1))


def _entropy(rows: Float[np.ndarray, "m k"], width: float) -> Float[np.ndarray, " m"]:
    """Shannon entropy of each row's histogram with bins of this width, nats."""
    minute, column = np.nonzero(~np.isnan(rows))
    histogram_bin = np.rint(rows[minute, column] / width).astype(int)
    (minute_of_bin, _), count = np.unique(np.stack([minute, histogram_bin]), axis=1, return_counts=True)
    share = count / np.bincount(minute, minlength=len(rows))[minute_of_bin]
    return np.bincount(minute_of_bin, weights=-share * np.log(share), minlength=len(rows))


# Skin.


def skin_conductance_features(grid: Float[np.ndarray, "m s"]) -> Features:
    """Level at the middle of the minute (uS), slope (uS/min) and contact counts of each minute.

    Args:
      grid: conductance in uS by minutes of the clock. Below 0.01 uS the electrodes have no contact.
    """
    recorded = ~np.isnan(grid)
    contact = (grid >= MIN_CONDUCTANCE) & (grid <= MAX_CONDUCTANCE)
    level, slope = robust_line(np.where(contact, grid, np.nan))
    counts = CONTACT_COUNTS * contact.sum(1) / np.maximum(recorded.sum(1), 1)
    return {
        # A line through noise near 0 can be negative.
        "skin_conductance_level": np.maximum(level, 0),
        "skin_conductance_slope": slope,
        "eda_lead_contact": np.where(enough_samples(recorded), counts, np.nan),
    }


def skin_temperature_features(grid: Float[np.ndarray, "m s"]) -> Features:
    """Level at the middle of the minute (deg C) and slope (deg C/min); impossible values are missing."""
    plausible = (grid >= MIN_TEMPERATURE) & (grid <= MAX_TEMPERATURE)
    level, slope = robust_line(np.where(plausible, grid, np.nan))
    return {"skin_temperature": level, "skin_temperature_slope": slope}


def robust_line(grid: Float[np.ndarray, "m s"]) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Level at the middle of each minute and slope per minute, robust against spikes.

    Takes medians of blocks of five seconds and fits the Theil-Sen line: the median of the slopes of all pairs, and the
    median of the residuals. NaN with less than half of the blocks.
    """
    minutes, samples = grid.shape
    blocks = min(60 // BLOCK_SECONDS, samples)
    edges = np.arange(blocks + 1) * samples // blocks
    width = int(np.diff(edges).max())
    rows = np.full((minutes, blocks, width), np.nan)
    for block in range(blocks):
        rows[:, block, : edges[block + 1] - edges[block]] = grid[:, edges[block] : edges[block + 1]]
    filled = (~np.isnan(rows)).sum(-1) >= MIN_SHARE * np.diff(edges)
    medians = np.where(filled, quantile(rows, 0.5), np.nan)
    time = (np.arange(blocks) + 0.5) / blocks - 0.5
    early, late = np.triu_indices(blocks, 1)
    slope = quantile((medians[:, late] - medians[:, early]) / (time[late] - time[early]), 0.5)
    level = quantile(medians - slope[:, None] * time, 0.5)
    enough = enough_samples(filled)
    return np.where(enough, level, np.nan), np.where(enough, slope, np.nan)


def enough_samples(present: Bool[np.ndarray, "m s"]) -> Bool[np.ndarray, " m"]:
    """Minutes with at least half of their samples."""
    return present.mean(1) >= MIN_SHARE


def mean_of(values: Float[np.ndarray, "m s ..."], present: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m ..."]:
    """Mean over the present samples; 0 for a minute without any."""
    total = np.einsum("ms...,ms->m...", values, present)
    return total / np.maximum(present.sum(1), 1).reshape(-1, *(1,) * (values.ndim - 2))
