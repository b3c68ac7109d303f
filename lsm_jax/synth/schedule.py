"""Days of a person: sleep, logged activities, everyday walking, stress, moods and meals."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int

from lsm_jax.ingest.reader import RecordEvent
from lsm_jax.synth.activities import ACTIVITIES, NAMES, NO_ACTIVITY, Activity
from lsm_jax.synth.people import Person, random_stream
from lsm_jax.synth.signals import Flags, Minutes, ar1_noise, bernoulli, bouts, hold, low_pass
from lsm_jax.windows import MINUTES_PER_DAY

# Mood by valence (rows: low, middle, high) and arousal (columns: low, middle, high).
MOODS = (("sad", "frustrated", "stressed"), ("tired", "neutral", "worried"), ("calm", "content", "excited"))
# Name, usual hour (None: after rising), minutes, probability.
MEALS = (("breakfast", None, 18, 0.75), ("lunch", 12.6, 32, 0.92), ("dinner", 19.0, 42, 0.97), ("snack", 15.8, 8, 0.4))


@dataclasses.dataclass(frozen=True)
class Night:
    """One sleep, in minutes since the first local midnight. It may lie partly outside the study."""

    bed: int
    rise: int


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What a person does in each minute from the first local midnight on.

    Attributes:
      hour: time of day in hours.
      sleep_depth: 0 awake or REM to 1 deep sleep; `smooth_sleep`: `asleep` smoothed, 0 to 1.
      activity: class index of the logged activity, or `NO_ACTIVITY`; `effort`: its intensity, about 1, 0 without one.
      elapsed: minutes since the activity began.
      walking: cadence of everyday walking in steps/min, or 0; `walking_share`: fraction of the minute walked.
      stairs: everyday stair climbing, 0 to 1.
      stress: arousal, about a z-score; `valence`: pleasantness; `digestion`: response to meals, 0 to about 0.8.
      events: everything logged, in minutes since the first midnight.
    """

    hour: Minutes
    asleep: Flags
    sleep_depth: Minutes
    smooth_sleep: Minutes
    activity: Int[np.ndarray, " n"]
    effort: Minutes
    elapsed: Minutes
    walking: Minutes
    walking_share: Minutes
    stairs: Minutes
    stress: Minutes
    valence: Minutes
    digestion: Minutes
    nights: tuple[Night, ...]
    events: tuple[RecordEvent, ...]


def draw_schedule(person: Person, days: int, seed: int, index: int) -> Schedule:
    """Draws `days` days of `person`."""
    rng = random_stream(seed, index, stage=1)
    count = days * MINUTES_PER_DAY
    hour = (np.arange(count, dtype=np.float32) % MINUTES_PER_DAY) / 60
    weekend = [(person.first_day.weekday() + day) % 7 >= 5 for day in range(days)]
    nights = _nights(rng, person, weekend)
    asleep, sleep_depth = _sleep(rng, person, nights, count)
    sessions = _sessions(rng, person, nights, weekend)
    activity, effort, elapsed = _activity_by_minute(rng, sessions, count)
    free = ~asleep & (activity == NO_ACTIVITY)
    walking, walking_share, stairs = _everyday_walking(rng, person, hour, free)
    stress = _stress(rng, person, hour, asleep)
    meals = _meals(rng, nights, days)
    valence = _valence(rng, person, stress, activity)
    logged = [RecordEvent("sleep", "asleep", night.bed, night.rise) for night in nights]
    logged += [RecordEvent("activity", NAMES[number], start, end) for start, end, number in sessions]
    logged += meals + _moods(rng, hour, asleep, stress, valence)
    return Schedule(
        hour=hour,
        asleep=asleep,
        sleep_depth=sleep_depth,
        smooth_sleep=low_pass(asleep.astype(np.float32), 18),
        activity=activity,
        effort=effort,
        elapsed=elapsed,
        walking=walking,
        walking_share=walking_share,
        stairs=stairs,
        stress=stress,
        valence=valence,
        digestion=_digestion(meals, count),
        nights=tuple(nights),
        events=tuple(event for event in logged if event.start < count and event.end > 0),
    )


def _nights(rng: np.random.Generator, person: Person, weekend: list[bool]) -> list[Night]:
    """The night before each day, the last evening's, and naps; later at weekends."""
    irregularity = 28 + 10 * abs(person.chronotype)
    nights = []
    for day in range(len(weekend) + 1):
        late = 45.0 if day < len(weekend) and weekend[day] else 0.0
        bed = (day - 1) * MINUTES_PER_DAY + 23 * 60 + 55 * person.chronotype + late + rng.normal(0, irregularity)
        slept = np.clip(60 * person.sleep_hours + late / 2 + rng.normal(0, 42), 210, 660)
        nights.append(Night(int(bed), int(bed + slept)))
        if rng.random() < 0.05 + 0.03 * max(person.age_z, 0):
            nap = int((day - 1) * MINUTES_PER_DAY + 14 * 60 + rng.normal(0, 50))
            nights.append(Night(nap, nap + int(rng.uniform(20, 75))))
    return sorted(nights, key=lambda night: night.bed)


def _sleep(rng: np.random.Generator, person: Person, nights: list[Night], count: int) -> tuple[Flags, Minutes]:
    """Sleep and its depth: cycles of about 95 minutes, deepest early in the night, interrupted by awakenings."""
    asleep = np.zeros(count, bool)
    depth = np.zeros(count, np.float32)
    for night in nights:
        start, end = max(night.bed, 0), min(night.rise, count)
        if start >= end:
            continue
        since = np.arange(start, end) - night.bed
        cycle = np.sin(np.pi * since / rng.normal(95, 8)) ** 2
        asleep[start:end] = True
        depth[start:end] = cycle * np.clip(1.1 - since / 620, 0.3, 1)
    restless = 0.005 * np.exp(0.35 * person.anxiety_level + 0.25 * person.age_z)
    awake = bouts(bernoulli(rng, restless, count), lambda k: rng.geometric(1 / 5, k))
    return asleep & ~awake, np.where(awake, 0, depth * np.float32(np.exp(-0.12 * max(person.age_z, 0))))


def _sessions(
    rng: np.random.Generator, person: Person, nights: list[Night], weekend: list[bool]
) -> list[tuple[int, int, int]]:
    """Logged activities (start, end, class index) at the usual hours of their class, without overlaps."""
    taken = [(night.bed - 20, night.rise + 10) for night in nights]
    sessions = []
    for day, is_weekend in enumerate(weekend):
        rate = 1.25 * np.exp(0.35 * person.activity_level) * (1.3 if is_weekend else 1.0)
        for _ in range(min(rng.poisson(rate), 4)):
            number = int(rng.choice(len(ACTIVITIES), p=person.activity_probabilities))
            start, end = _session(rng, person, ACTIVITIES[number], day)
            if all(end + 5 <= other_start or start >= other_end + 5 for other_start, other_end in taken):
                taken.append((start, end))
                sessions.append((start, end, number))
    return sorted(sessions)


def _session(rng: np.random.Generator, person: Person, activity: Activity, day: int) -> tuple[int, int]:
    hour = activity.hours[int(rng.integers(len(activity.hours)))] + rng.normal(0, 0.8) + 0.3 * person.chronotype
    minutes = activity.minutes * np.exp(rng.normal(0, 0.32) + 0.08 * person.fitness)
    start = day * MINUTES_PER_DAY + int(60 * hour)
    return start, start + max(int(minutes), 10)


def _activity_by_minute(
    rng: np.random.Generator, sessions: list[tuple[int, int, int]], count: int
) -> tuple[Int[np.ndarray, " n"], Minutes, Minutes]:
    activity = np.full(count, NO_ACTIVITY)
    effort, elapsed = np.zeros((2, count), np.float32)
    for start, end, number in sessions:
        activity[start:end] = number
        effort[start:end] = np.exp(rng.normal(0, 0.16))
        elapsed[start:end] = np.arange(min(end, count) - start)
    return activity, effort, elapsed


def _everyday_walking(
    rng: np.random.Generator, person: Person, hour: Minutes, free: Flags
) -> tuple[Minutes, Minutes, Minutes]:
    """Short walks that are not logged: cadence, fraction of the minute walked, and stairs."""
    busy = 0.55 + 0.45 * np.exp(-(((hour - 12.5) / 2.5) ** 2)) + 0.6 * np.exp(-(((hour - 18) / 2.2) ** 2))
    rate = 0.018 * np.exp(0.4 * person.activity_level) * busy * np.exp(ar1_noise(rng, hour.size, 45, 0.9))
    starts = bernoulli(rng, np.where(free, rate, 0), hour.size)
    walks = bouts(starts, lambda k: rng.geometric(1 / 3.4, k)) & free
    pace = hold(starts, lambda k: rng.normal(92 + 3 * person.activity_level, 11, k))
    walking_share = np.zeros(hour.size, np.float32)
    walking_share[walks] = rng.beta(2.2, 1.4, int(walks.sum()))
    stairs = hold(starts, lambda k: rng.random(k) < 0.22) * bernoulli(rng, 0.6, hour.size)
    return np.where(walks, pace, 0), walking_share, stairs * walking_share


def _stress(rng: np.random.Generator, person: Person, hour: Minutes, asleep: Flags) -> Minutes:
    """Slow variation, working hours, and episodes of 15 to 60 minutes, which anxious people have more of."""
    episodes = bernoulli(rng, 0.0011 * np.exp(0.55 * person.anxiety_level), hour.size)
    strength = hold(episodes, lambda k: rng.uniform(0.9, 2.4, k))
    stressed = bouts(episodes, lambda k: rng.integers(15, 60, k))
    work = 0.25 * np.exp(-(((hour - 13) / 4) ** 2))
    awake = ar1_noise(rng, hour.size, 80, 0.4) + np.where(stressed, strength, 0) + work + 0.22 * person.anxiety_level
    return low_pass(np.where(asleep, 0.1 * person.anxiety_level, awake).astype(np.float32), 4)


def _valence(rng: np.random.Generator, person: Person, stress: Minutes, activity: Int[np.ndarray, " n"]) -> Minutes:
    after_activity = low_pass((activity != NO_ACTIVITY).astype(np.float32), 120)
    return ar1_noise(rng, stress.size, 300, 0.55) - 0.5 * stress - 0.25 * person.anxiety_level + 1.2 * after_activity


def _meals(rng: np.random.Generator, nights: list[Night], days: int) -> list[RecordEvent]:
    rises = [night.rise for night in nights if night.rise - night.bed > 180]
    meals = []
    for day in range(days):
        rise = next((rise for rise in rises if rise > day * MINUTES_PER_DAY), day * MINUTES_PER_DAY + 7 * 60)
        for name, hour, minutes, chance in MEALS:
            usual = rise + 45 if hour is None else day * MINUTES_PER_DAY + 60 * hour
            start = int(usual + rng.normal(0, 28))
            if rng.random() < chance:
                meals.append(RecordEvent("meal", name, start, start + max(int(rng.normal(minutes, 5)), 4)))
    return meals


def _digestion(meals: list[RecordEvent], count: int) -> Minutes:
    """A response that is largest 70 to 90 minutes after a meal begins, and half of that some 70 minutes later."""
    eaten = np.zeros(count, np.float32)
    for meal in meals:
        eaten[max(meal.start, 0) : max(meal.end, 0)] = 0.5 if meal.name == "snack" else 1.0
    return 3.2 * (low_pass(eaten, 75) - low_pass(eaten, 18)).clip(0)


def _moods(
    rng: np.random.Generator, hour: Minutes, asleep: Flags, stress: Minutes, valence: Minutes
) -> list[RecordEvent]:
    """One to three moods a day, named after valence and arousal in that minute."""
    moods = []
    for day in range(hour.size // MINUTES_PER_DAY):
        for minute in rng.integers(7 * 60, 23 * 60, int(rng.integers(1, 4))) + day * MINUTES_PER_DAY:
            if not asleep[minute]:
                valence_level = int(np.digitize(valence[minute], (-0.45, 0.35)))
                arousal_level = int(np.digitize(stress[minute] - 0.1 * (hour[minute] > 20), (0.05, 0.7)))
                moods.append(RecordEvent("mood", MOODS[valence_level][arousal_level], int(minute), int(minute) + 1))
    return moods
