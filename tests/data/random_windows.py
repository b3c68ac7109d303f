"""Random windows that the tests of this folder write, load and caption."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import numpy as np

from lsm_jax.channels import channels as registered
from lsm_jax.windows import Event, Window, checked_window, hash_participant

CHANNELS = ("heart_rate", "steps", "skin_temperature")
OTHER_CHANNELS = ("glucose", "heart_rate")


def person(number: int) -> str:
    return hash_participant(f"person {number}", "test")


def random_windows(
    people: int, days: int, channels: tuple[str, ...] = CHANNELS, steps: int = 1440, seed: int = 0
) -> Iterator[Window]:
    """Windows of plausible noise with gaps; steps are whole numbers."""
    random = np.random.default_rng(seed)
    kinds = registered(channels)
    for number in range(people):
        for day in range(days):
            values = np.stack([random.normal(kind.mean, kind.sd / 3, steps) for kind in kinds], axis=1)
            if "steps" in channels:
                column = channels.index("steps")
                values[:, column] = np.abs(values[:, column]).round()
            for column in range(len(channels)):
                start, length = random.integers(0, steps), random.integers(0, steps)
                values[start : start + length, column] = np.nan
            yield checked_window(
                values,
                channels,
                participant=person(number),
                start=dt.datetime(2024, 3, 1, 22, tzinfo=dt.UTC) + dt.timedelta(days=day),
                utc_offset_minutes=120,
                labels={"age": 30.0 + number, "sex": "F" if number % 2 else "M"},
                events=[Event("sleep", "asleep", 0, steps // 3)],
            )[0]
