"""Gaps: watch not worn or charging, sensors off, lost contact, motion artefacts.

They are not missing at random: they depend on sleep, exercise, dry skin and the wearer's habits.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from lsm_jax.channels import MINUTELY_26
from lsm_jax.synth.activities import NAMES
from lsm_jax.synth.people import Person, random_stream
from lsm_jax.synth.physiology import Body
from lsm_jax.synth.schedule import Schedule
from lsm_jax.synth.signals import Flags, bernoulli, bouts, sigmoid
from lsm_jax.windows import MINUTES_PER_DAY

# Columns that one sensor measures, and that are missing together.
_GROUPS = {
    "pulse": slice(0, 2),
    "intervals": slice(2, 10),
    "motion": slice(10, 20),
    "electrodes": slice(20, 23),
    "thermometer": slice(23, 25),
    "altimeter": slice(25, 26),
}
# Fraction of time a sensor is off (battery saver, unsupported app, fault), and mean length of such a period in days.
_OFF_PERIODS = {
    "intervals": (0.28, 2.5),
    "electrodes": (0.38, 3.0),
    "thermometer": (0.18, 3.0),
    "altimeter": (0.18, 4.0),
    "pulse": (0.02, 0.7),
}


def observed_cells(
    person: Person, schedule: Schedule, body: Body, seed: int, index: int
) -> tuple[Bool[np.ndarray, "n 26"], Flags]:
    """Which cells were recorded, and which minutes the watch was worn."""
    rng = random_stream(seed, index, stage=4)
    count = schedule.hour.size
    worn = _worn(rng, person, schedule)
    observed = np.repeat(worn[:, None], len(MINUTELY_26), axis=1)
    for name, (share, days) in _OFF_PERIODS.items():
        observed[_off(rng, count, share, days), _GROUPS[name]] = False
    for name, lost in _artefacts(rng, schedule, body, count).items():
        observed[lost, _GROUPS[name]] = False
    observed[body.motion > 0.42, MINUTELY_26.index("heart_rate_at_rest")] = False
    return observed, worn


def _worn(rng: np.random.Generator, person: Person, schedule: Schedule) -> Flags:
    """Nights without the watch, charging, and half days without it; some hours of each day are always worn."""
    count = schedule.hour.size
    worn = np.ones(count, bool)
    for night in schedule.nights:
        if rng.random() > person.night_wear and night.rise - night.bed > 180:
            _take_off(worn, night.bed - rng.exponential(50), night.rise + rng.exponential(40))
    non_wear = np.exp(0.6 * person.non_wear)
    for day in range(count // MINUTES_PER_DAY):
        midnight = day * MINUTES_PER_DAY
        showered = midnight + 60 * rng.uniform(6, 22)
        _take_off(worn, showered, showered + rng.uniform(6, 25))
        if rng.random() < 0.6:
            charged = midnight + 60 * rng.choice((7.0, 9.5, 18.5, 21.0)) + rng.normal(0, 45)
            _take_off(worn, charged, charged + 75 * np.exp(rng.normal(0, 0.45)))
        if rng.random() < 0.52 * non_wear:
            forgotten = midnight + 60 * rng.uniform(0, 24)
            _take_off(worn, forgotten, forgotten + 60 * 9.5 * np.exp(rng.normal(0, 0.7)))
        worn_again = midnight + int(60 * rng.uniform(8, 17))
        if worn[midnight : midnight + MINUTES_PER_DAY].sum() < 200:
            worn[worn_again : worn_again + 240] = True
    return worn


def _take_off(worn: Flags, start: float, end: float) -> None:
    worn[max(int(start), 0) : max(int(end), 0)] = False


def _off(rng: np.random.Generator, count: int, share: float, days: float) -> Flags:
    """Alternating periods of on and off; the person's own fraction of time off varies around `share`."""
    off = np.zeros(count, bool)
    own = rng.beta(2.5 * share, 2.5 * (1 - share))
    minute, is_off = 0.0, bool(rng.random() < own)
    while minute < count:
        mean = days if is_off else days * (1 - own) / max(own, 1e-3)
        period = max(rng.exponential(mean * MINUTES_PER_DAY), 60)
        if is_off:
            off[int(minute) : int(minute + period)] = True
        minute, is_off = minute + period, not is_off
    return off


def _artefacts(rng: np.random.Generator, schedule: Schedule, body: Body, count: int) -> dict[str, Flags]:
    """Short gaps: beats lost in motion, water under the sensor, dry or loose electrodes, lost packets."""
    in_water = schedule.activity == NAMES.index("swimming")
    blurred = bernoulli(rng, sigmoid(14 * (body.motion - 0.42)), count)
    dry = body.contact + 0.12 * rng.random(count, dtype=np.float32) < -0.14
    packets = bouts(bernoulli(rng, 0.0006, count), lambda k: rng.geometric(1 / 6, k))
    searching = bouts(bernoulli(rng, 0.004, count), lambda k: rng.geometric(1 / 3, k))
    return {
        "pulse": searching | packets | in_water,
        "intervals": blurred | searching | packets | in_water,
        "motion": packets,
        "electrodes": dry | packets | in_water,
        "thermometer": packets,
        "altimeter": packets | in_water,
    }
