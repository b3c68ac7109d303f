"""What the watch makes of the body: the 26 minutely features, in registry units, with measurement noise.

The features in arbitrary units (ACC, contact counts, slopes) have no published formula to simulate. Each is a
function of the latent motion and posture, brought by `_SCALES` to the published mean and standard deviation.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from lsm_jax.channels import MINUTELY_26, channels
from lsm_jax.synth.people import stream
from lsm_jax.synth.physiology import Body
from lsm_jax.synth.signals import Minutes, lag, sigmoid

# Mean and standard deviation of the raw quantities below where observed (200 people x 8 days, seed 0).
_SCALES: dict[str, tuple[float, float]] = {
    "heart_rate_at_rest": (72.03, 7.988),
    "rr_entropy": (3.678, 0.4354),
    "rr_difference_entropy": (3.413, 0.5452),
    "jerk_autocorrelation": (-0.05722, 0.3985),
    "acc_log_energy": (0.9713, 0.59),
    "acc_covariance_condition": (-0.1995, 0.6001),
    "acc_log_energy_ratio": (0.6677, 0.2793),
    "acc_zero_crossing_sd": (-0.1936, 0.2906),
    "acc_zero_crossing_mean": (0.5427, 0.4058),
    "acc_axis_mean": (-0.07548, 1.195),
    "acc_kurtosis": (0.9405, 0.498),
    "sleep_coefficient": (0.2796, 0.2894),
    "skin_conductance_slope": (-0.001061, 0.7778),
    "eda_lead_contact": (0.7882, 0.1194),
    "skin_temperature_slope": (-6.895e-05, 0.07096),
}

# Measurement noise in registry units.
_NOISE: dict[str, float] = {
    "heart_rate": 1.0,
    "heart_rate_at_rest": 0.8,
    "rr_percent_valid": 0.05,
    "rr_80th_percentile": 9.0,
    "rr_20th_percentile": 9.0,
    "rr_median": 8.0,
    "rr_entropy": 0.1,
    "rr_difference_entropy": 0.1,
    "jerk_autocorrelation": 7.0,
    "acc_log_energy": 3.0,
    "acc_covariance_condition": 3.5,
    "acc_log_energy_ratio": 5.0,
    "acc_zero_crossing_sd": 7.0,
    "acc_zero_crossing_mean": 6.0,
    "acc_axis_mean": 3.0,
    "acc_kurtosis": 15.0,
    "sleep_coefficient": 0.5,
    "skin_conductance_slope": 0.35,
    "eda_lead_contact": 9.0,
    "skin_temperature": 0.08,
    "skin_temperature_slope": 4.0,
}


def record(body: Body, seed: int, index: int) -> Float[np.ndarray, "n 26"]:
    """The complete recording of a body, as if nothing were ever missing: float32[n, 26] in registry units."""
    rng = stream(seed, index, stage=3)
    noise = {name: rng.standard_normal(body.motion.size, np.float32) for name in MINUTELY_26}
    raw = raw_features(body, noise)
    features = np.empty((len(MINUTELY_26), body.motion.size), np.float32)
    for row, kind in zip(features, channels(MINUTELY_26), strict=True):
        mean, sd = _SCALES.get(kind.name, (kind.mean, kind.sd))
        scaled = (raw[kind.name] - np.float32(mean)) * np.float32(kind.sd / sd) + np.float32(kind.mean)
        np.clip(scaled + np.float32(_NOISE.get(kind.name, 0)) * noise[kind.name], kind.low, kind.high, out=row)
    return np.ascontiguousarray(features.T)


def raw_features(body: Body, noise: Mapping[str, Minutes]) -> dict[str, Minutes]:
    """Every feature before scale and additive noise; standard normal `noise` that multiplies enters here."""
    climbing = body.climb * np.exp(0.3 * noise["altitude_sd"])
    return {
        **_heart(body, noise),
        **_accelerometer(body),
        **_skin(body, noise),
        "altitude_sd": 0.0012 * np.abs(noise["altitude_sd"]) + climbing,
    }


def _heart(body: Body, noise: Mapping[str, Minutes]) -> dict[str, Minutes]:
    interval = 60000 / body.heart_rate
    spread = np.exp(body.log_sdnn)
    return {
        "heart_rate": body.heart_rate,
        # The published mean (82.9) lies above that of heart rate (76): a slow figure of sitting awake, not a minimum.
        "heart_rate_at_rest": lag(body.still_heart_rate, 5),
        "rr_percent_valid": sigmoid(0.5 - 17 * body.motion + 0.35 * body.contact + 0.6 * (0.4 - body.jolt)),
        "rr_80th_percentile": interval + 1.02 * spread,
        "rr_20th_percentile": interval - 0.98 * spread,
        "rr_median": interval,
        "rmssd": np.exp(body.log_rmssd + 0.1 * noise["rmssd"]),
        "sdnn": spread * np.exp(0.08 * noise["sdnn"]),
        "rr_entropy": 0.85 * body.log_sdnn + 0.15 * body.log_rmssd,
        "rr_difference_entropy": 0.9 * body.log_rmssd + 0.1 * body.log_sdnn,
    }


def _accelerometer(body: Body) -> dict[str, Minutes]:
    motion, rhythm, pitch, jolt, tilt, turn = body.motion, body.rhythm, body.pitch, body.jolt, body.tilt, body.turn
    loud = np.log1p(12 * motion)
    still = np.exp(-motion / 0.06)
    return {
        "steps": body.steps,
        "jerk_autocorrelation": 1.2 * rhythm - 0.7 * jolt + 0.25 * loud + 0.12 * turn,
        "acc_log_energy": loud + 0.15 * jolt,
        "acc_covariance_condition": 0.4 * tilt + 0.3 * turn + 0.8 * rhythm - 0.25 * loud,
        "acc_log_energy_ratio": 1.1 * pitch + 0.35 * loud - 0.4 * rhythm + 0.05 * tilt,
        "acc_zero_crossing_sd": 0.9 * jolt - 0.9 * pitch - 0.3 * loud,
        "acc_zero_crossing_mean": pitch * (0.5 + loud) + 0.1 * loud,
        "acc_axis_mean": tilt + 0.3 * turn - 0.15 * loud,
        "acc_kurtosis": 1.5 * jolt + 1.2 * still - 0.5 * rhythm,
        "sleep_coefficient": lag(still, 9),
    }


def _skin(body: Body, noise: Mapping[str, Minutes]) -> dict[str, Minutes]:
    conductance = np.exp(body.log_conductance)
    return {
        "skin_conductance_level": conductance * np.exp(0.04 * noise["skin_conductance_level"]),
        "skin_conductance_slope": np.arcsinh(6 * np.gradient(lag(conductance, 1.5))),
        "eda_lead_contact": sigmoid(body.contact),
        "skin_temperature": body.skin_temperature,
        "skin_temperature_slope": np.gradient(lag(body.skin_temperature, 2)),
    }
