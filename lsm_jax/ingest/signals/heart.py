"""Minute features of heart beats: intervals and their variability."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from lsm_jax.ingest.signals.grid import Features, mean_of, quantile

MIN_BEATS = 10  # beats (or pairs of beats) in a minute for a measure of variability
MIN_RR, MAX_RR = 0.25, 2.4  # s, the registry's range
ECTOPIC_DEVIATION = 0.2  # Malik's rule: a normal beat lies within 20 % of its neighbours
ENTROPY_BIN = 1 / 128  # s; half the resolution of the E4


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
