"""Simulation of the body and the wrist: latent signals from which `sensors` computes all 26 features."""

from __future__ import annotations

import dataclasses

import numpy as np

from lsm_jax.synth.activities import NO_ACTIVITY, Activity, per_class
from lsm_jax.synth.people import Person, random_stream
from lsm_jax.synth.schedule import Schedule
from lsm_jax.synth.signals import Minutes, ar1_noise, bernoulli, hold, low_pass

_CLASS = {field.name: per_class(field.name) for field in dataclasses.fields(Activity) if field.type == "float"}


@dataclasses.dataclass(frozen=True)
class Body:
    """Latent signals, one value a minute.

    Attributes:
      heart_rate: bpm; `still_heart_rate`: without the effect of movement.
      log_rmssd, log_sdnn: log ms.
      motion: intensity of wrist motion (0 still, 1 running); `rhythm`, `pitch`, `jolt`: as in `activities.Activity`.
      tilt, turn: posture of the wrist, about z-scores.
      steps: steps/min; `climb`: vertical movement in m.
      log_conductance: log uS; `contact`: contact of the electrodes, about a z-score.
      skin_temperature: deg C.
    """

    heart_rate: Minutes
    still_heart_rate: Minutes
    log_rmssd: Minutes
    log_sdnn: Minutes
    motion: Minutes
    rhythm: Minutes
    pitch: Minutes
    jolt: Minutes
    tilt: Minutes
    turn: Minutes
    steps: Minutes
    climb: Minutes
    log_conductance: Minutes
    contact: Minutes
    skin_temperature: Minutes


def simulate_body(person: Person, schedule: Schedule, seed: int, index: int) -> Body:
    """The latent signals of `person` over `schedule`."""
    rng = random_stream(seed, index, stage=2)
    effort = _effort(rng, schedule)
    wrist = _wrist(rng, person, schedule, effort)
    heart_rate, still = _heart(rng, person, schedule, effort, wrist["motion"])
    log_rmssd, log_sdnn = _variability(rng, person, schedule, heart_rate, wrist["motion"])
    log_conductance, contact = _skin(rng, person, schedule, wrist["motion"], effort)
    return Body(
        heart_rate=heart_rate,
        still_heart_rate=still,
        log_rmssd=log_rmssd,
        log_sdnn=log_sdnn,
        steps=_steps(rng, schedule, effort),
        climb=effort * _CLASS["climb"][schedule.activity] + 0.35 * schedule.stairs,
        log_conductance=log_conductance,
        contact=contact,
        skin_temperature=_temperature(rng, person, schedule, effort),
        **wrist,
    )


def _effort(rng: np.random.Generator, schedule: Schedule) -> Minutes:
    """Effort of the logged activity by minute: efforts such as sets, rallies and lifts alternate with rests."""
    period = np.maximum(_CLASS["period"][schedule.activity], 1)
    phase = schedule.elapsed / period + ar1_noise(rng, period.size, 12, 0.3)
    resting = 0.5 - 0.5 * np.tanh(3 * np.sin(2 * np.pi * phase))
    return schedule.effort * (1 - _CLASS["stop_go"][schedule.activity] * resting)


def _steps(rng: np.random.Generator, schedule: Schedule, effort: Minutes) -> Minutes:
    logged = effort * _CLASS["cadence"][schedule.activity] * (1 + 0.06 * rng.standard_normal(effort.size, np.float32))
    return np.round(np.maximum(logged + schedule.walking * schedule.walking_share, 0))


def _wrist(rng: np.random.Generator, person: Person, schedule: Schedule, effort: Minutes) -> dict[str, Minutes]:
    """Motion and posture of the wrist: asleep, at rest, fidgeting, walking, exercising."""
    count = effort.size
    active = schedule.activity != NO_ACTIVITY
    asleep = schedule.asleep
    fidget = np.exp(ar1_noise(rng, count, 3, 0.38) + ar1_noise(rng, count, 35, 0.5) + 0.1 * schedule.stress)
    toss = asleep & bernoulli(rng, 0.025 * (1.3 - schedule.sleep_depth), count)
    rest = np.where(asleep, 0.012 + 0.16 * toss, 0.135 * fidget)
    walk = schedule.walking_share * schedule.walking / 185
    exercise = effort * _CLASS["motion"][schedule.activity] * np.exp(ar1_noise(rng, count, 3, 0.08))
    motion = np.where(active, exercise, np.maximum(rest, 0.75 * rest + walk)).astype(np.float32)

    # Every session has its own style and posture.
    begun = active & (schedule.elapsed == 0)

    def style(attribute: str, everyday: float, walked: float, sd: float) -> Minutes:
        sport = _CLASS[attribute][schedule.activity] + hold(begun, lambda k: rng.normal(0, 0.13, k))
        level = np.where(active, sport, everyday + (walked - everyday) * schedule.walking_share)
        loose = ar1_noise(rng, count, 3.5, sd) + ar1_noise(rng, count, 40, 0.6 * sd)
        return (level + np.where(asleep, 0.3, np.where(active, 0.4, 1)) * loose).astype(np.float32)

    # A posture lasts some minutes awake and about half an hour asleep; sport has its own.
    shift = bernoulli(rng, np.where(asleep, 0.028, 0.075), count)
    tilt, turn = (
        np.where(
            active,
            0.8 * _CLASS[name][schedule.activity] + hold(begun, lambda k: rng.normal(0, 0.4, k)),
            hold(shift, rng.standard_normal),
        )
        + own
        + np.where(asleep, 0.02, 0.2) * ar1_noise(rng, count, 2.5, 1)
        for name, own in zip(("tilt", "turn"), person.wrist, strict=True)
    )
    return {
        "motion": motion,
        "rhythm": style("rhythm", -0.05, 0.6, 0.16),
        "pitch": style("pitch", 0.3, 0.4, 0.14),
        "jolt": style("jolt", 0.4, 0.28, 0.17),
        "tilt": tilt.astype(np.float32),
        "turn": turn.astype(np.float32),
    }


def _heart(
    rng: np.random.Generator, person: Person, schedule: Schedule, effort: Minutes, motion: Minutes
) -> tuple[Minutes, Minutes]:
    """Heart rate with and without movement: circadian rhythm, sleep, meals, stress, and exertion with a delay."""
    count = effort.size
    resting = person.resting_heart_rate
    circadian = 2.4 * np.cos(2 * np.pi * (schedule.hour - 16.5 - person.chronotype) / 24)
    dip = 7.0 + person.sleep_dip - 1.6 * person.hypertension - 0.7 * person.age_z
    still = resting + 5.2 + circadian - dip * schedule.smooth_sleep - 2.2 * schedule.sleep_depth
    still = still + 5.0 * schedule.digestion + (3.7 + 0.7 * person.anxiety) * schedule.stress
    calm = 1 - 0.5 * schedule.smooth_sleep
    still = still + calm * (ar1_noise(rng, count, 3, 2.2) + ar1_noise(rng, count, 40, 2.0))
    demand = effort * _CLASS["heart"][schedule.activity] + 0.17 * schedule.walking_share * (schedule.walking > 0)
    everyday = np.where(schedule.activity == NO_ACTIVITY, 0.22 * motion, 0)
    demand = (demand + everyday + 0.1 * schedule.stairs).astype(np.float32)
    recovery = 1.6 * np.exp(-0.2 * person.fitness + 0.1 * person.age_z)
    response = 0.76 * low_pass(demand, recovery) + 0.2 * low_pass(demand, 11)
    reserve = 208 - 0.7 * person.age - resting - 8  # maximal heart rate after Tanaka, Monahan and Seals (2001)
    return (still + reserve * response).astype(np.float32), still.astype(np.float32)


def _variability(
    rng: np.random.Generator, person: Person, schedule: Schedule, heart_rate: Minutes, motion: Minutes
) -> tuple[Minutes, Minutes]:
    """Heart-rate variability falls with heart rate, age, stress and exercise, and rises in deep sleep."""
    faster = heart_rate - 72
    shared = ar1_noise(rng, faster.size, 4, 0.13) + ar1_noise(rng, faster.size, 60, 0.1)
    log_rmssd = 3.5 + person.vagal_tone - 0.021 * faster + 0.12 * schedule.sleep_depth - 0.1 * schedule.stress + shared
    unsteady = 0.35 * np.minimum(motion, 0.4) - 0.12 * schedule.sleep_depth + ar1_noise(rng, faster.size, 6, 0.12)
    log_sdnn = 3.78 + 0.8 * person.vagal_tone - 0.014 * faster + 0.7 * shared + unsteady
    return log_rmssd.astype(np.float32), log_sdnn.astype(np.float32)


def _skin(
    rng: np.random.Generator, person: Person, schedule: Schedule, motion: Minutes, effort: Minutes
) -> tuple[Minutes, Minutes]:
    """Log conductance rises with stress, exercise and in bursts during deep sleep; contact improves with moisture."""
    count = effort.size
    sweat = effort * _CLASS["sweat"][schedule.activity] + 0.35 * schedule.walking_share
    arousal = low_pass(np.maximum(schedule.stress, -0.5), 2) * (0.43 + 0.05 * person.anxiety)
    bursts = schedule.sleep_depth * np.maximum(ar1_noise(rng, count, 12, 0.8), 0)
    daily = ar1_noise(rng, count, 500, 0.3)
    circadian = 0.22 * np.cos(2 * np.pi * (schedule.hour - 17) / 24)
    log_conductance = 0.92 + person.log_conductance + daily + circadian + arousal + 0.6 * bursts
    log_conductance = log_conductance + 0.3 * schedule.digestion + 2.0 * np.tanh(0.8 * low_pass(sweat, 9))
    log_conductance = log_conductance - 0.45 * schedule.smooth_sleep + ar1_noise(rng, count, 5, 0.12)
    loosened = ar1_noise(rng, count, 200, 0.5) - 1.2 * np.minimum(motion, 0.8)
    contact = 1.5 + 0.3 * person.strap_tightness + 0.75 * (log_conductance - 0.92) + loosened
    contact = contact + ar1_noise(rng, count, 6, 0.25)
    return log_conductance.astype(np.float32), contact.astype(np.float32)


def _temperature(rng: np.random.Generator, person: Person, schedule: Schedule, effort: Minutes) -> Minutes:
    """Skin is warmer in bed and after meals; cooler outdoors, under stress and in wind or water."""
    count = effort.size
    circadian = -0.55 * np.cos(2 * np.pi * (schedule.hour - 15 - person.chronotype) / 24)
    outdoors = hold(bernoulli(rng, 1 / 90, count), lambda k: rng.normal(0, 2.3, k))
    cooling = (schedule.activity != NO_ACTIVITY) * _CLASS["cooling"][schedule.activity]
    environment = np.where(schedule.asleep, 1.9, outdoors * (schedule.hour > 6)) - 1.4 * cooling
    environment = environment - 0.5 * np.maximum(schedule.stress, 0) + 1.2 * np.minimum(effort, 1)
    environment = environment - 0.7 * schedule.walking_share
    slow = 31.65 + person.skin_warmth + circadian + 0.8 * schedule.digestion + ar1_noise(rng, count, 180, 0.6)
    return (slow + low_pass(environment.astype(np.float32), 13) + ar1_noise(rng, count, 6, 0.16)).astype(np.float32)
