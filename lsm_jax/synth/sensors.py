"""The 26 minutely features that the watch computes, in registry units, with measurement noise.

The features in arbitrary units (ACC, contact counts) have no published formula to simulate. Each is a function of the
latents, scaled to the published mean and standard deviation. So are `heart_rate_at_rest`, both entropies and both
slopes, whose values are therefore not in the unit that the registry names: the slope of skin temperature is the true
one times 243, and the heart rate at rest usually lies above `heart_rate`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from lsm_jax.channels import MINUTELY_26, channels
from lsm_jax.synth.people import random_stream
from lsm_jax.synth.physiology import Body
from lsm_jax.synth.signals import Minutes, low_pass, sigmoid

# Mean and sd of the raw feature where observed (200 people x 8 days, seed 0), None for those in registry units already;
# sd of measurement noise in registry units.
_CALIBRATION: dict[str, tuple[float | None, float | None, float]] = {
    "heart_rate": (None, None, 1.0),
    "heart_rate_at_rest": (72.03, 7.988, 0.8),
    "rr_percent_valid": (None, None, 0.05),
    "rr_80th_percentile": (None, None, 9.0),
    "rr_20th_percentile": (None, None, 9.0),
    "rr_median": (None, None, 8.0),
    "rr_entropy": (3.678, 0.4354, 0.1),
    "rr_difference_entropy": (3.413, 0.5452, 0.1),
    "jerk_autocorrelation": (-0.05722, 0.3985, 7.0),
    "acc_log_energy": (0.9713, 0.59, 3.0),
    "acc_covariance_condition": (-0.1995, 0.6001, 3.5),
    "acc_log_energy_ratio": (0.6677, 0.2793, 5.0),
    "acc_zero_crossing_sd": (-0.1936, 0.2906, 7.0),
    "acc_zero_crossing_mean": (0.5427, 0.4058, 6.0),
    "acc_axis_mean": (-0.07548, 1.195, 3.0),
    "acc_kurtosis": (0.9405, 0.498, 15.0),
    "sleep_coefficient": (0.2796, 0.2894, 0.5),
    "skin_conductance_slope": (-0.001061, 0.7778, 0.35),
    "eda_lead_contact": (0.7882, 0.1194, 9.0),
    "skin_temperature": (None, None, 0.08),
    "skin_temperature_slope": (-6.895e-05, 0.07096, 4.0),
}


def simulate_sensors(body: Body, seed: int, index: int) -> Float[np.ndarray, "n 26"]:
    """The complete recording of a body, without gaps: float32[n, 26] in registry units."""
    rng = random_stream(seed, index, stage=3)
    noise = {name: rng.standard_normal(body.motion.size, np.float32) for name in MINUTELY_26}
    raw = {
        **_heart(body, noise),
        **_accelerometer(body),
        **_skin(body, noise),
        "altitude_sd": 0.0012 * np.abs(noise["altitude_sd"]) + body.climb * np.exp(0.3 * noise["altitude_sd"]),
    }
    features = np.empty((len(MINUTELY_26), body.motion.size), np.float32)
    for row, kind in zip(features, channels(MINUTELY_26), strict=True):
        mean, sd, noise_sd = _CALIBRATION.get(kind.name, (None, None, 0))
        mean, sd = kind.mean if mean is None else mean, kind.sd if sd is None else sd
        scaled = (raw[kind.name] - np.float32(mean)) * np.float32(kind.sd / sd) + np.float32(kind.mean)
        np.clip(scaled + np.float32(noise_sd) * noise[kind.name], kind.low, kind.high, out=row)
    return np.ascontiguousarray(features.T)


def _heart(body: Body, noise: Mapping[str, Minutes]) -> dict[str, Minutes]:
    interval = 60000 / body.heart_rate
    spread = np.exp(body.log_sdnn)
    return {
        "heart_rate": body.heart_rate,
        # The published mean (82.9) lies above that of heart rate (76): a slow average of sitting awake, not a minimum.
        "heart_rate_at_rest": low_pass(body.still_heart_rate, 5),
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
        "sleep_coefficient": low_pass(still, 9),
    }


def _skin(body: Body, noise: Mapping[str, Minutes]) -> dict[str, Minutes]:
    conductance = np.exp(body.log_conductance)
    return {
        "skin_conductance_level": conductance * np.exp(0.04 * noise["skin_conductance_level"]),
        "skin_conductance_slope": np.arcsinh(6 * np.gradient(low_pass(conductance, 1.5))),
        "eda_lead_contact": sigmoid(body.contact),
        "skin_temperature": body.skin_temperature,
        "skin_temperature_slope": np.gradient(low_pass(body.skin_temperature, 2)),
    }
