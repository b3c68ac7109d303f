"""The names of channels and units in captions, and the number of decimals."""

from __future__ import annotations

from types import MappingProxyType

from lsm_jax.channels import REGISTRY, channel

# Every phrase is a singular noun without article, so that all templates fit all channels.
_PHRASES = {
    "rr_percent_valid": "share of valid beat intervals",
    "rr_80th_percentile": "80th percentile of beat intervals",
    "rr_20th_percentile": "20th percentile of beat intervals",
    "rr_median": "median beat interval",
    "rmssd": "RMSSD",
    "sdnn": "SDNN",
    "rr_entropy": "entropy of beat intervals",
    "rr_difference_entropy": "entropy of beat-to-beat differences",
    "steps": "step rate",
    "jerk_autocorrelation": "jerk autocorrelation",
    "acc_log_energy": "wrist motion energy",
    "acc_covariance_condition": "wrist motion covariance condition",
    "acc_log_energy_ratio": "wrist motion energy ratio",
    "acc_zero_crossing_sd": "spread of wrist motion zero crossings",
    "acc_zero_crossing_mean": "rate of wrist motion zero crossings",
    "acc_axis_mean": "wrist axis mean",
    "acc_kurtosis": "wrist motion kurtosis",
    "skin_conductance_level": "skin conductance",
    "eda_lead_contact": "electrode contact",
    "altitude_sd": "altitude variation",
    "sleep_awake": "share of wakefulness",
    "sleep_light": "share of light sleep",
    "sleep_deep": "share of deep sleep",
    "sleep_rem": "share of REM sleep",
    "spo2": "blood oxygen saturation",
    "hrv_lf": "low-frequency heart rate variability",
    "hrv_hf": "high-frequency heart rate variability",
    "hrv_lf_hf_ratio": "ratio of low- to high-frequency heart rate variability",
    "hrv_vlf": "very-low-frequency heart rate variability",
    "pnn20": "pNN20",
    "activity_chest": "chest activity count",
    "met": "metabolic rate",
    "calories": "energy expenditure",
    "distance": "travel speed",
    "respiratory_rate": "breathing rate",
    "glucose": "glucose level",
}
PHRASES = MappingProxyType({name: _PHRASES.get(name, name.replace("_", " ")) for name in REGISTRY})
CHANNEL_OF = MappingProxyType({phrase.casefold(): name for name, phrase in PHRASES.items()})

_UNIT_WORDS = {
    "a.u.": "",
    "fraction": "",
    "ratio": "",
    "level 0-3": "",
    "uS": "µS",
    "uS/min": "µS/min",
    "deg C": "°C",
    "deg C/min": "°C/min",
    "ms^2": "ms²",
    "percent": "%",
    "Actiheart counts/min": "counts/min",
}


def unit_words(name: str) -> str:
    """The unit as it follows a number, such as " bpm"; empty if the unit would tell a reader nothing."""
    unit = channel(name).unit
    words = _UNIT_WORDS.get(unit, unit)
    return f" {words}" if words else ""


UNITS = tuple(sorted({unit_words(name) for name in REGISTRY}, key=len, reverse=True))


def decimals(name: str) -> int:
    """Decimals of a channel: 1 as published (SensorLM, arXiv 2506.09108), more where 0.1 is coarse for its sd."""
    spread = channel(name).sd
    return 1 if spread >= 1 else 2 if spread >= 0.1 else 3


def rounded(name: str, value: float) -> float:
    """A value rounded to the channel's decimals, without a negative zero."""
    return round(float(value), decimals(name)) + 0.0
