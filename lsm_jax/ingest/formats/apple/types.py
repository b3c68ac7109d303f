"""What the types, units and categories of an Apple Health export mean here."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lsm_jax.ingest.minutes.sleep import Stage
from lsm_jax.ingest.units import CONVERSIONS

QUANTITY, CATEGORY, WORKOUT = "HKQuantityTypeIdentifier", "HKCategoryTypeIdentifier", "HKWorkoutActivityType"
BASAL = "basal"  # not a channel: `calories` are the active and the basal ones
# Type of a record -> channel. Distances of several sports are one channel.
CHANNELS: Mapping[str, str] = {
    QUANTITY + name: channel
    for name, channel in {
        "HeartRate": "heart_rate",
        "StepCount": "steps",
        "DistanceWalkingRunning": "distance",
        "DistanceWheelchair": "distance",
        "DistanceCycling": "distance",
        "DistanceSwimming": "distance",
        "DistanceRowing": "distance",
        "DistancePaddleSports": "distance",
        "DistanceSkatingSports": "distance",
        "DistanceCrossCountrySkiing": "distance",
        "DistanceDownhillSnowSports": "distance",
        "ActiveEnergyBurned": "active_calories",
        "BasalEnergyBurned": BASAL,
        "FlightsClimbed": "floors",
        "HeartRateVariabilitySDNN": "sdnn",
        "OxygenSaturation": "spo2",
        "RespiratoryRate": "respiratory_rate",
        "AppleSleepingWristTemperature": "skin_temperature",
        "BloodGlucose": "glucose",
    }.items()
}
RESTING_HEART_RATE = QUANTITY + "RestingHeartRate"
SLEEP = CATEGORY + "SleepAnalysis"
_PER_MINUTE = {"count/min": (1.0, 0.0), "count/s": CONVERSIONS["Hz", "bpm"]}
_KJ = CONVERSIONS["kJ/min", "kcal/min"]
_ENERGY = {"kcal": (1.0, 0.0), "Cal": (1.0, 0.0), "kJ": _KJ, "cal": (0.001, 0.0), "J": (_KJ[0] / 1000, 0.0)}
# Channel -> unit as Apple writes it -> (scale, offset) to the registry's unit.
UNITS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "heart_rate": _PER_MINUTE,
    "respiratory_rate": _PER_MINUTE,
    "steps": {"count": (1.0, 0.0)},
    "floors": {"count": (1.0, 0.0)},
    "active_calories": _ENERGY,
    BASAL: _ENERGY,
    "distance": {
        "m": (1.0, 0.0),
        "km": CONVERSIONS["km/min", "m/min"],
        "mi": (1609.344, 0.0),
        "yd": (0.9144, 0.0),
        "ft": (0.3048, 0.0),
        "cm": (0.01, 0.0),
    },
    "sdnn": {"ms": (1.0, 0.0), "s": CONVERSIONS["s", "ms"]},
    "spo2": {"%": CONVERSIONS["fraction", "percent"]},  # written as a fraction
    "skin_temperature": {
        "degC": (1.0, 0.0),
        "degF": CONVERSIONS["deg F", "deg C"],
        "K": CONVERSIONS["K", "deg C"],
    },
    "glucose": {"mmol/L": (1.0, 0.0), "mg/dL": CONVERSIONS["mg/dL", "mmol/L"]},
}
_STAGES: Mapping[str, Stage] = {
    "InBed": "in bed",
    "Asleep": "asleep",
    "AsleepUnspecified": "asleep",
    "AsleepCore": "light",
    "AsleepDeep": "deep",
    "AsleepREM": "rem",
    "Awake": "awake",
}
STAGES = {"HKCategoryValueSleepAnalysis" + value: stage for value, stage in _STAGES.items()}
# Names of workouts that the other sources of activities call otherwise.
_ACTIVITIES = {
    "traditional strength training": "strength training",
    "functional strength training": "strength training",
    "high intensity interval training": "hiit",
    "dance": "dancing",
    "cardio dance": "dancing",
    "social dance": "dancing",
    "stairs": "stair climbing",
    "step training": "aerobics",
    "downhill skiing": "skiing",
    "cross country skiing": "skiing",
    "other": "workout",
}


def unit_of(channel: str, unit: str) -> tuple[float, float] | None:
    """(scale, offset) from Apple's unit to the registry's; None for one that cannot be converted."""
    return UNITS.get(channel, {}).get(
        re.sub(r"^mmol<[\d.]+>", "mmol", unit)
    )  # a mole of glucose is written with its mass


def activity_name(workout_type: str) -> str:
    """HKWorkoutActivityTypeTraditionalStrengthTraining -> "strength training"."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", workout_type.removeprefix(WORKOUT)).lower()
    return _ACTIVITIES.get(words, words)[:64] or "workout"
