"""The people of the cohort: traits drawn jointly, with the correlations that they have in a population."""

from __future__ import annotations

import dataclasses
import datetime as dt

import numpy as np
from jaxtyping import Float

from lsm_jax.synth.activities import ACTIVITIES, per_class
from lsm_jax.windows import hash_participant

UTC_OFFSETS = (-480, -420, -360, -300, -180, 0, 60, 120, 330, 480, 540, 600)
FIRST_DAY = dt.date(2024, 3, 1)  # LSM-2's recordings are from spring 2024
DAYS_OF_STUDY = 60


@dataclasses.dataclass(frozen=True)
class Person:
    """Traits that do not change within the study.

    Attributes:
      participant: hashed id, stable in (seed, index).
      age, bmi, sex, hypertension, anxiety, resting_heart_rate: the labels (years, kg/m^2, "F" or "M", flags, bpm).
      fitness, anxiety_level, activity_level: z-scores of endurance, trait anxiety and daily movement.
      vagal_tone: offset of log RMSSD.
      sleep_dip: drop of the heart rate in sleep beyond the average, bpm.
      chronotype: hours later than average; sleep_hours: mean length of a night.
      activity_probabilities: probabilities of the 20 activity classes.
      log_conductance: offset of log skin conductance; skin_warmth: offset of skin temperature in deg C.
      strap_tightness: z-score; wrist: everyday tilt and turn of the wrist.
      night_wear: probability of wearing the watch at night; non_wear: z-score of how often it is left off.
    """

    participant: str
    age: float
    bmi: float
    sex: str
    hypertension: bool
    anxiety: bool
    resting_heart_rate: float
    fitness: float
    anxiety_level: float
    activity_level: float
    vagal_tone: float
    sleep_dip: float
    chronotype: float
    sleep_hours: float
    activity_probabilities: Float[np.ndarray, " classes"]
    log_conductance: float
    skin_warmth: float
    strap_tightness: float
    wrist: tuple[float, float]
    night_wear: float
    non_wear: float
    first_day: dt.date
    utc_offset_minutes: int

    @property
    def age_z(self) -> float:
        """Age in standard deviations of the cohort."""
        return (self.age - 45) / 15

    def labels(self) -> dict[str, float | str]:
        """Labels that a study would have."""
        return {
            "age": self.age,
            "bmi": self.bmi,
            "sex": self.sex,
            "hypertension": float(self.hypertension),
            "anxiety": float(self.anxiety),
            "resting_heart_rate": self.resting_heart_rate,
        }


def random_stream(seed: int, index: int, stage: int) -> np.random.Generator:
    """Random numbers of one part (`stage`) of the simulation of one person, independent of all others."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(index, stage))))


def draw_person(seed: int, index: int) -> Person:
    """Person `index` of the cohort `seed`; independent of the cohort's size."""
    rng = random_stream(seed, index, stage=0)
    age = round(float(np.clip(rng.normal(45, 15), 18, 88)))
    age_z = (age - 45) / 15
    female = bool(rng.random() < 0.53)
    fitness = 0.9 * rng.normal() - 0.35 * age_z
    bmi = round(float(np.clip(27.5 + 0.8 * age_z - 2.6 * fitness + rng.normal(0, 3.6), 17, 55)), 1)
    bmi_z = (bmi - 27.5) / 5
    anxiety_level = rng.normal() + 0.25 * female - 0.25 * age_z - 0.1 * fitness
    anxiety = bool(rng.logistic() < 2.2 * (anxiety_level - 0.9))
    hypertension = bool(rng.logistic() < -1.4 + 1.1 * age_z + 0.8 * bmi_z - 0.4 * fitness + 0.3 * (not female))
    activity_level = 0.75 * rng.normal() + 0.4 * fitness - 0.35 * bmi_z - 0.15 * age_z
    resting = 65.5 - 3.0 * fitness + 1.6 * female + 1.2 * bmi_z + 1.0 * anxiety_level + 1.8 * hypertension
    return Person(
        participant=hash_participant(f"synthetic {seed} {index}", salt="lsm synth"),
        age=float(age),
        bmi=bmi,
        sex="F" if female else "M",
        hypertension=hypertension,
        anxiety=anxiety,
        resting_heart_rate=round(float(np.clip(resting + rng.normal(0, 2.2), 42, 98)), 1),
        fitness=fitness,
        anxiety_level=anxiety_level,
        activity_level=activity_level,
        vagal_tone=0.24 * rng.normal() - 0.22 * age_z + 0.12 * fitness - 0.13 * anxiety_level - 0.07 * hypertension,
        sleep_dip=2.0 * rng.normal(),
        chronotype=float(np.clip(rng.normal(0, 1.0) - 0.45 * age_z, -2.5, 3)),
        sleep_hours=float(np.clip(rng.normal(7.2, 0.6) - 0.2 * anxiety_level, 5.2, 9.2)),
        activity_probabilities=_activity_probabilities(rng, fitness, age_z),
        log_conductance=0.5 * rng.normal() + 0.15 * anxiety_level,
        skin_warmth=0.5 * rng.normal() - 0.35 * bmi_z - 0.15 * female,
        strap_tightness=rng.normal(),
        wrist=(0.5 * rng.normal(), 0.5 * rng.normal()),
        night_wear=float(rng.beta(8, 1.5) if rng.random() < 0.68 else rng.beta(1.2, 6)),
        non_wear=rng.normal(),
        first_day=FIRST_DAY + dt.timedelta(days=int(rng.integers(DAYS_OF_STUDY))),
        utc_offset_minutes=int(rng.choice(UTC_OFFSETS)),
    )


def _activity_probabilities(rng: np.random.Generator, fitness: float, age_z: float) -> np.ndarray:
    """Most people do a few activities often; fit and young people prefer demanding ones."""
    hardness = per_class("heart")[: len(ACTIVITIES)] - 0.45
    weight = per_class("popularity")[: len(ACTIVITIES)] * np.exp(1.8 * hardness * (fitness - 0.5 * age_z))
    weight = weight * rng.gamma(0.45, size=len(ACTIVITIES))
    return weight / weight.sum()
