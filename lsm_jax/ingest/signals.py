"""Minute features from raw signals: heart beats, skin conductance, skin temperature, motion.

The papers publish the names, units and moments of these features and an outline (LSM-1, arXiv 2410.13638): median
filtering and a robust slope for the slow signals; for motion, three axes reduced to one, band-filtered, then statistics
of the minute. The rest is our choice; docs/reference/signals.md defines every feature. NaN means missing in
all inputs. All functions work on all minutes at once and give NaN for a minute with too few samples.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage, signal

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

QUANTUM = 1 / 64  # g, one step of the E4's accelerometer: motion below it is noise
NOISE = QUANTUM**2 / 12  # g^2, variance of rounding to that step
MOTION_BAND = (0.25, 10.0)  # Hz; gravity is slower, and a wrist is not faster
STEP_BAND = (0.7, 3.5)  # Hz
STEP_PROMINENCE = 0.1  # g
STEP_SECONDS = (0.25, 1.25)  # between steps
MAX_RHYTHM_RATIO = 1.3  # of successive step intervals
MIN_STEPS_IN_A_ROW = 8


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


# Motion. Each scale is chosen so that ordinary values lie near the published mean.


def acceleration_features(grid: Float[np.ndarray, "m s 3"], rate: float) -> Features:
    """Motion features of each minute.

    Args:
      grid: acceleration in g by minutes of the clock (`minute_grid`), NaN where missing.
      rate: samples per second, at least 8.

    Returns:
      steps, jerk_autocorrelation, acc_log_energy, acc_covariance_condition, acc_log_energy_ratio,
      acc_zero_crossing_sd, acc_zero_crossing_mean, acc_axis_mean, acc_kurtosis, sleep_coefficient, each [m].

    Raises:
      UserError: the rate is too low to see motion.
    """
    if rate < 8:
        raise UserError(f"acceleration at {rate} Hz is too slow for motion features: at least 8 Hz are needed.")
    present = ~np.isnan(grid).any(-1)
    if not present.any():
        return {name: np.full(len(grid), np.nan) for name in _motion(np.zeros((1, 2, 3)), np.ones((1, 2), bool), 8.0)}
    filled = _interpolate(grid.reshape(-1, 3), present.reshape(-1))
    features = _motion(filled.reshape(grid.shape), present, rate)
    enough = enough_samples(present)
    return {name: np.where(enough, values, np.nan) for name, values in features.items()}


def _motion(raw: Float[np.ndarray, "m s 3"], present: Bool[np.ndarray, "m s"], rate: float) -> Features:
    """The features of acceleration without gaps; samples that are not `present` were interpolated."""
    moving = _band(raw.reshape(-1, 3), MOTION_BAND, rate).reshape(raw.shape)
    moving = np.where(present[..., None], moving - mean_of(moving, present)[:, None], 0)
    covariance = np.swapaxes(moving, 1, 2) @ moving / np.maximum(present.sum(1), 1)[:, None, None]
    energy, axes = np.linalg.eigh(covariance)  # ascending
    energy = np.maximum(energy, 0)
    # The sign of a principal axis is free; its largest component points along the device.
    axis = axes[..., 2] * np.sign(np.take_along_axis(axes[..., 2], np.abs(axes[..., 2]).argmax(1)[:, None], 1))
    principal = (moving @ axis[..., None])[..., 0]
    total = energy.sum(1)
    mean_interval, sd_interval = _zero_crossings(principal, rate)
    log_share = np.log((energy[:, 2] + NOISE) / (total + 3 * NOISE)) / np.log(3)
    upright = (mean_of(raw, present) * axis).sum(1)
    return {
        "steps": _steps(raw, present, rate),
        "jerk_autocorrelation": 128 * (1 + _jerk_autocorrelation(principal, present, rate)),
        "acc_log_energy": _octaves(np.sqrt(total) / (QUANTUM / 4)),
        "acc_covariance_condition": 12.8 * np.log2((energy[:, 2] + NOISE) / (energy[:, 0] + NOISE)),
        "acc_log_energy_ratio": 256 * (1 + log_share),
        "acc_zero_crossing_sd": _octaves(sd_interval * 32),
        "acc_zero_crossing_mean": _octaves(mean_interval * 32),
        "acc_axis_mean": np.clip(128 * (1 + upright), 0, 512),
        "acc_kurtosis": 32 * np.log2(1 + _kurtosis(np.linalg.norm(moving, axis=-1), present)),
        "sleep_coefficient": _sleep_coefficient(raw, present),
    }


def _octaves(ratio: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Logarithmic arbitrary units: 0 at 0, 25.6 for each doubling far above 1, at most 512."""
    return np.minimum(25.6 * np.log2(1 + ratio), 512)


def _interpolate(samples: Float[np.ndarray, "n 3"], present: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """Fills gaps with straight lines, which hold no motion, so that a filter can run over them."""
    if present.all():
        return samples
    index, given = np.arange(len(samples)), np.flatnonzero(present)
    return np.stack([np.interp(index, given, samples[given, axis]) for axis in range(samples.shape[1])], axis=1)


def _band(samples: Float[np.ndarray, "n ..."], band: tuple[float, float], rate: float) -> Float[np.ndarray, "n ..."]:
    """Second-order Butterworth band pass without delay (run both ways); the upper edge stays below half the rate."""
    edges = (band[0], min(band[1], 0.45 * rate))
    sections = signal.butter(2, edges, btype="bandpass", fs=rate, output="sos")
    # The filter settles within one period of the lower edge.
    padding = min(int(rate / band[0]), len(samples) - 1)
    return signal.sosfiltfilt(sections, samples, axis=0, padlen=padding)


def _zero_crossings(
    principal: Float[np.ndarray, "m s"], rate: float
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Mean and standard deviation of the seconds between zero crossings; one minute and 0 where there are none.

    A crossing counts once the signal has passed from one side of the noise band (one QUANTUM) to the other.
    """
    outside: Bool[np.ndarray, "m s"] = np.abs(principal) > QUANTUM
    latest = np.maximum.accumulate(np.where(outside, np.arange(principal.shape[1]), 0), axis=1)
    side = np.sign(np.take_along_axis(np.where(outside, principal, 0), latest, 1))
    minute, sample = np.nonzero(side[:, 1:] * side[:, :-1] < 0)
    in_one_minute = minute[1:] == minute[:-1]
    interval, minute = np.diff(sample)[in_one_minute] / rate, minute[1:][in_one_minute]
    count = np.bincount(minute, minlength=len(principal))
    total = np.bincount(minute, weights=interval, minlength=len(principal))
    mean = np.where(count > 0, total / np.maximum(count, 1), 60.0)
    squares = np.bincount(minute, weights=(interval - mean[minute]) ** 2, minlength=len(principal))
    return mean, np.sqrt(squares / np.maximum(count, 1))


def _jerk_autocorrelation(
    principal: Float[np.ndarray, "m s"], present: Bool[np.ndarray, "m s"], rate: float
) -> Float[np.ndarray, " m"]:
    """Autocorrelation of the jerk at the sample nearest 1/32 s, over its energy; 0 where there is only noise."""
    lag = max(round(rate / 32), 1)
    has_jerk = present[:, lag:] & present[:, :-lag]
    jerk = np.where(has_jerk, principal[:, lag:] - principal[:, :-lag], 0)
    product = mean_of(jerk[:, lag:] * jerk[:, :-lag], has_jerk[:, lag:] & has_jerk[:, :-lag])
    return np.clip(product / (mean_of(jerk**2, has_jerk) + NOISE), -1, 1)


def _kurtosis(magnitude: Float[np.ndarray, "m s"], present: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, " m"]:
    centred = np.where(present, magnitude - mean_of(magnitude, present)[:, None], 0)
    square = centred**2
    return mean_of(square**2, present) / (mean_of(square, present) + NOISE) ** 2


def _sleep_coefficient(raw: Float[np.ndarray, "m s 3"], present: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, " m"]:
    """The sum of the axes' ranges, in 16 logarithmic bins: 0 below the sensor's step, 15 at 16 g and more."""
    by_axis = np.ascontiguousarray(np.swapaxes(raw, 1, 2))
    high = np.where(present[:, None], by_axis, -np.inf).max(-1)
    low = np.where(present[:, None], by_axis, np.inf).min(-1)
    span = np.where(present.any(1), (high - low).sum(1), 0)
    return np.clip(np.floor(1.5 * np.log2(np.maximum(span / QUANTUM, 1))), 0, 15)


def _steps(raw: Float[np.ndarray, "m s 3"], present: Bool[np.ndarray, "m s"], rate: float) -> Float[np.ndarray, " m"]:
    """Steps per minute: peaks of the acceleration's magnitude in rhythmic runs of at least `MIN_STEPS_IN_A_ROW`."""
    magnitude = _band(np.linalg.norm(raw.reshape(-1, 3), axis=-1), STEP_BAND, rate)
    distance = max(int(STEP_SECONDS[0] * rate), 1)
    peaks, _ = signal.find_peaks(magnitude, prominence=STEP_PROMINENCE, height=0, distance=distance)
    peaks = peaks[present.reshape(-1)[peaks]]
    interval = np.diff(peaks) / rate
    walking = (interval >= STEP_SECONDS[0]) & (interval <= STEP_SECONDS[1])
    ratio = interval[1:] / interval[:-1]
    continues: Bool[np.ndarray, " p"] = np.zeros(len(peaks), bool)  # peak i has the rhythm of peak i - 1
    continues[1:] = walking
    continues[2:] &= (np.maximum(ratio, 1 / ratio) <= MAX_RHYTHM_RATIO) | ~walking[:-1]
    run = np.cumsum(~continues)
    counted = peaks[np.bincount(run, minlength=1)[run] >= MIN_STEPS_IN_A_ROW]
    steps = np.bincount(counted // raw.shape[1], minlength=len(raw))
    return steps / np.maximum(present.mean(1), MIN_SHARE)
