"""The channel registry: all signals by canonical name, with unit, plausible range, mean and standard deviation.

Readers, statistics and models look a channel up by name, never by its column, so that one model can train on mixed
devices. Mean and standard deviation are used where a dataset has no statistics of its own. Those of the 26 minutely
features are published with SensorLM (arXiv 2506.09108); those of other channels are rough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal

from lsm_jax.errors import UserError, nearest

Sensor = Literal["PPG", "ACC", "EDA", "TEMP", "ALT", "SLEEP", "SPO2", "GLUCOSE", "ENERGY", "QUALITY", "LIGHT"]


@dataclasses.dataclass(frozen=True)
class Channel:
    """One minutely signal.

    Attributes:
      name: canonical name.
      sensor: the sensor it is derived from; channels of a sensor usually go missing together.
      unit: of `mean`, `sd`, `low`, `high` and of the values in a window.
      low, high: plausible range, both included; values outside it count as missing.
      mean, sd: for normalisation without statistics of the dataset.
      heavy_tailed: comes in bursts, such as steps and counts.
      is_count: counted over time: samples are added, and that of a long period is spread over it. Other channels are
        levels: samples are averaged, and that of a long period is held.
      source: of the definition.
    """

    name: str
    sensor: Sensor
    unit: str
    low: float
    high: float
    mean: float
    sd: float
    heavy_tailed: bool = False
    is_count: bool = False
    source: str = "SensorLM, arXiv 2506.09108"


_ARBITRARY = "a.u."
_SENSORFM = "SensorFM, arXiv 2605.22759; scale ours"
_OURS = "readers of this project; scale ours"

# The first 26 are in the order of the papers; `MINUTELY_26` depends on it.
_CHANNELS = (
    Channel("heart_rate", "PPG", "bpm", 25, 240, 75.9586, 16.1887),
    Channel("heart_rate_at_rest", "PPG", "bpm", 25, 200, 82.8692, 10.8678),
    Channel("rr_percent_valid", "PPG", "fraction", 0, 1, 0.27148, 0.27624),
    Channel("rr_80th_percentile", "PPG", "ms", 250, 2400, 828.891, 108.404),
    Channel("rr_20th_percentile", "PPG", "ms", 250, 2400, 734.594, 88.413),
    Channel("rr_median", "PPG", "ms", 250, 2400, 780.926, 94.868),
    Channel("rmssd", "PPG", "ms", 0, 400, 34.1895, 23.7834),
    Channel("sdnn", "PPG", "ms", 0, 400, 45.3356, 24.3860),
    Channel("rr_entropy", "PPG", "nats", 0, 7, 3.29533, 0.46478),
    Channel("rr_difference_entropy", "PPG", "nats", 0, 7, 2.98106, 0.48817),
    Channel("steps", "ACC", "steps/min", 0, 300, 5.1679, 18.8926, heavy_tailed=True, is_count=True),
    Channel("jerk_autocorrelation", "ACC", _ARBITRARY, 0, 512, 203.467, 30.056),
    Channel("acc_log_energy", "ACC", _ARBITRARY, 0, 512, 53.0804, 49.6526),
    Channel("acc_covariance_condition", "ACC", _ARBITRARY, 0, 512, 43.4077, 13.9529),
    Channel("acc_log_energy_ratio", "ACC", _ARBITRARY, 0, 512, 44.8483, 22.9746),
    Channel("acc_zero_crossing_sd", "ACC", _ARBITRARY, 0, 512, 155.186, 28.238),
    Channel("acc_zero_crossing_mean", "ACC", _ARBITRARY, 0, 512, 51.0043, 37.4756),
    Channel("acc_axis_mean", "ACC", _ARBITRARY, 0, 512, 123.166, 21.471),
    Channel("acc_kurtosis", "ACC", _ARBITRARY, 0, 512, 105.595, 66.850),
    Channel("sleep_coefficient", "ACC", _ARBITRARY, 0, 100, 7.2623, 5.3946),
    Channel("skin_conductance_level", "EDA", "uS", 0, 100, 4.1767, 5.5893, heavy_tailed=True),
    Channel("skin_conductance_slope", "EDA", "uS/min", -50, 50, 3.2444, 1.8220),
    Channel("eda_lead_contact", "EDA", "counts", 0, 512, 226.486, 67.331),
    Channel("skin_temperature", "TEMP", "deg C", 10, 45, 31.6745, 2.5789),
    Channel("skin_temperature_slope", "TEMP", "deg C/min", -200, 200, 0.26556, 17.2665),
    Channel("altitude_sd", "ALT", "m", 0, 50, 0.0042, 0.0597, heavy_tailed=True),
    # SensorFM's other features (which frequency bands of heart rate variability it uses is not published).
    Channel("sleep_awake", "SLEEP", "fraction", 0, 1, 0.5, 0.5, source=_SENSORFM),
    Channel("sleep_light", "SLEEP", "fraction", 0, 1, 0.25, 0.43, source=_SENSORFM),
    Channel("sleep_deep", "SLEEP", "fraction", 0, 1, 0.1, 0.3, source=_SENSORFM),
    Channel("sleep_rem", "SLEEP", "fraction", 0, 1, 0.12, 0.33, source=_SENSORFM),
    Channel("spo2", "SPO2", "percent", 50, 100, 95.5, 2.5, source=_SENSORFM),
    Channel("spo2_confidence", "SPO2", "fraction", 0, 1, 0.7, 0.3, source=_SENSORFM),
    Channel("spo2_coverage", "SPO2", "fraction", 0, 1, 0.5, 0.4, source=_SENSORFM),
    Channel("hrv_lf", "PPG", "ms^2", 0, 20000, 900.0, 900.0, heavy_tailed=True, source=_SENSORFM),
    Channel("hrv_hf", "PPG", "ms^2", 0, 20000, 700.0, 900.0, heavy_tailed=True, source=_SENSORFM),
    Channel("hrv_lf_hf_ratio", "PPG", "ratio", 0, 100, 2.0, 2.0, heavy_tailed=True, source=_SENSORFM),
    Channel("hrv_vlf", "PPG", "ms^2", 0, 20000, 900.0, 900.0, heavy_tailed=True, source=_SENSORFM),
    Channel("pnn20", "PPG", "fraction", 0, 1, 0.4, 0.25, source=_SENSORFM),
    # Signals of consumer and research devices that the papers do not use.
    Channel("activity_intensity", "ACC", "level 0-3", 0, 3, 0.25, 0.6, heavy_tailed=True, source=_OURS),
    Channel(
        "activity_count", "ACC", "counts/min", 0, 32766, 350.0, 800.0, heavy_tailed=True, is_count=True, source=_OURS
    ),
    Channel(
        "activity_chest",
        "ACC",
        "Actiheart counts/min",
        0,
        10000,
        25.0,
        80.0,
        heavy_tailed=True,
        is_count=True,
        source=_OURS,
    ),
    Channel("met", "ENERGY", "MET", 0.5, 25, 1.5, 1.2, heavy_tailed=True, source=_OURS),
    Channel("calories", "ENERGY", "kcal/min", 0, 40, 1.6, 1.4, heavy_tailed=True, is_count=True, source=_OURS),
    Channel("distance", "ENERGY", "m/min", 0, 600, 4.0, 15.0, heavy_tailed=True, is_count=True, source=_OURS),
    Channel("sleep_state", "SLEEP", "1 asleep, 2 restless, 3 awake", 1, 3, 1.1, 0.35, source=_OURS),
    Channel("respiratory_rate", "PPG", "breaths/min", 3, 60, 15.0, 3.0, source=_OURS),
    Channel("glucose", "GLUCOSE", "mmol/L", 1, 35, 5.6, 1.4, source=_OURS),
    Channel("signal_quality", "QUALITY", "fraction", 0, 1, 0.9, 0.15, source=_OURS),
    Channel("active_calories", "ENERGY", "kcal/min", 0, 40, 0.4, 1.2, heavy_tailed=True, is_count=True, source=_OURS),
    Channel("stress_level", "PPG", "score", 0, 100, 30.0, 20.0, source=_OURS),  # of Garmin, from the pulse
    Channel("cadence", "ACC", "rounds/min", 0, 250, 80.0, 15.0, source=_OURS),  # of legs or pedals in activities
    Channel("power", "ENERGY", "W", 0, 2500, 180.0, 90.0, source=_OURS),  # mechanical, in activities
    Channel("device_temperature", "TEMP", "deg C", -20, 60, 28.0, 5.0, source=_OURS),  # of its housing
    # Of ActiGraph: the length of the vector of three axes' counts, and the light at the device.
    Channel(
        "activity_count_vector",
        "ACC",
        "counts/min",
        0,
        56753,
        800.0,
        1500.0,
        heavy_tailed=True,
        source=_OURS,
    ),
    Channel("ambient_light", "LIGHT", "lux", 0, 200000, 150.0, 600.0, heavy_tailed=True, source=_OURS),
    Channel("floors", "ALT", "floors/min", 0, 60, 0.01, 0.15, heavy_tailed=True, is_count=True, source=_OURS),
)

REGISTRY: Mapping[str, Channel] = MappingProxyType({channel.name: channel for channel in _CHANNELS})
MINUTELY_26: tuple[str, ...] = tuple(channel.name for channel in _CHANNELS[:26])
# The published 34: 26 features, 4 sleep stages, 3 of SpO2, 1 of heart rate variability, where we choose LF/HF.
SENSORFM_34: tuple[str, ...] = (
    *MINUTELY_26,
    "sleep_awake",
    "sleep_light",
    "sleep_deep",
    "sleep_rem",
    "spo2",
    "spo2_confidence",
    "spo2_coverage",
    "hrv_lf_hf_ratio",
)
# Predictions of these in natural units are clipped at zero (SensorLM's released code).
CLIPPED_AT_ZERO: tuple[str, ...] = ("steps", "sleep_coefficient")


def channel(name: str) -> Channel:
    """The channel of this canonical name.

    Raises:
      UserError: no such channel; the message has the nearest names.
    """
    try:
        return REGISTRY[name]
    except KeyError:
        raise UserError(
            f"unknown channel {name!r}.{nearest(name, REGISTRY)} Known channels are listed by `lsm inspect --channels`."
        ) from None


def channels(names: Iterable[str]) -> tuple[Channel, ...]:
    """The channels of these canonical names, in the same order; UserError for an unknown one."""
    return tuple(channel(name) for name in names)
