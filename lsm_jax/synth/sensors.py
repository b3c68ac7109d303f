"""What the watch makes of the body: the 26 minutely features, in registry units, with measurement noise.

The features in arbitrary units (ACC, contact counts, slopes) have no published formula to simulate. Each is a
function of the latent motion and posture, brought by `_SCALES` to the published mean and standard deviation.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lsm_jax.channels import MINUTELY_26, channels
from lsm_jax.synth.people import Person, stream
from lsm_jax.synth.physiology import Body
from lsm_jax.synth.schedule import Schedule
from lsm_jax.synth.signals import Minutes, lag, sigmoid

_REGISTERED = channels(MINUTELY_26)
_LOW, _HIGH = (np.array([getattr(kind, end) for kind in _REGISTERED], np.float32) for end in ("low", "high"))

# Mean and standard deviation of the raw quantities below where observed (400 people x 8 days, seed 0).
_SCALES: dict[str, tuple[float, float]] = {
    "heart_rate_at_rest": (72.16, 8.258),
    "rr_entropy": (3.669, 0.4197),
    "rr_difference_entropy": (3.403, 0.5294),
    "jerk_autocorrelation": (-0.06691, 0.3905),
    "acc_log_energy": (0.9742, 0.5868),
    "acc_covariance_condition": (-0.2119, 0.5944),
    "acc_log_energy_ratio": (0.6703, 0.2765),
    "acc_zero_crossing_sd": (-0.1936, 0.2877),
    "acc_zero_crossing_mean": (0.5422, 0.3932),
    "acc_axis_mean": (-0.07435, 1.175),
    "acc_kurtosis": (0.9399, 0.4954),
    "sleep_coefficient": (0.2773, 0.2885),
    "skin_conductance_slope": (-0.001582, 0.7887),
    "eda_lead_contact": (0.791, 0.1183),
    "skin_temperature_slope": (-0.0002201, 0.07114),
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


def record(schedule: Schedule, body: Body, seed: int, index: int) -> Float[np.ndarray, "n 26"]:
    """The complete recording of a body, as if nothing were ever missing: float32[n, 26] in registry units."""
    rng = stream(seed, index, stage=3)
    noise = rng.standard_normal((len(MINUTELY_26), schedule.hour.size), np.float32)
    raw = raw_features(schedule, body, noise)
    features = np.empty(noise.shape, np.float32)
    for row, kind in enumerate(_REGISTERED):
        mean, sd = _SCALES.get(kind.name, (kind.mean, kind.sd))
        features[row] = (raw[kind.name] - mean) * (kind.sd / sd) + kind.mean + _NOISE.get(kind.name, 0.0) * noise[row]
    return np.clip(features.T, _LOW, _HIGH)


def raw_features(schedule: Schedule, body: Body, noise: Float[np.ndarray, "26 n"]) -> dict[str, Minutes]:
    """Every feature before scale and additive noise. Noise that multiplies (RMSSD, conductance, ...) is in here."""
    multiplied = {name: noise[row] for row, name in enumerate(MINUTELY_26)}
    return {
        **_heart(body, multiplied),
        **_accelerometer(schedule, body),
        **_skin(body, multiplied),
        "altitude_sd": 0.0012 * np.abs(multiplied["altitude_sd"])
        + body.climb * np.exp(0.3 * multiplied["altitude_sd"]),
    }


def _heart(body: Body, noise: dict[str, Minutes]) -> dict[str, Minutes]:
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


def _accelerometer(schedule: Schedule, body: Body) -> dict[str, Minutes]:
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


def _skin(body: Body, noise: dict[str, Minutes]) -> dict[str, Minutes]:
    conductance = np.exp(body.log_conductance)
    return {
        "skin_conductance_level": conductance * np.exp(0.04 * noise["skin_conductance_level"]),
        "skin_conductance_slope": np.arcsinh(6 * np.gradient(lag(conductance, 1.5))),
        "eda_lead_contact": sigmoid(body.contact),
        "skin_temperature": body.skin_temperature,
        "skin_temperature_slope": np.gradient(lag(body.skin_temperature, 2)),
    }
