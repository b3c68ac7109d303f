"""Minute features of acceleration: motion, posture and steps.

Each scale is chosen so that ordinary values lie near the published mean.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from scipy import signal

from lsm_jax.errors import UserError
from lsm_jax.ingest.signals.grid import MIN_SHARE, Features, enough_samples, mean_of

QUANTUM = 1 / 64  # g, one step of the E4's accelerometer: motion below it is noise
NOISE = QUANTUM**2 / 12  # g^2, variance of rounding to that step
MOTION_BAND = (0.25, 10.0)  # Hz; gravity is slower, and a wrist is not faster
STEP_BAND = (0.7, 3.5)  # Hz
STEP_PROMINENCE = 0.1  # g
STEP_SECONDS = (0.25, 1.25)  # between steps
MAX_RHYTHM_RATIO = 1.3  # of successive step intervals
MIN_STEPS_IN_A_ROW = 8


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
