"""Days with known content."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from lsm_jax.windows import Event, Window, checked_window, hash_participant


@pytest.fixture(scope="session")
def make_window() -> Callable[..., Window]:
    """`make_window({channel: values}, events=..., start_minute=..., minutes_per_step=...)`; NaN is missing."""

    def make(
        signals: Mapping[str, np.ndarray],
        events: Sequence[Event] = (),
        start_minute: int = 0,
        minutes_per_step: int = 1,
    ) -> Window:
        return checked_window(
            np.stack([np.asarray(signal, np.float32) for signal in signals.values()], axis=1),
            list(signals),
            participant=hash_participant("a person", "test"),
            start=dt.datetime(2024, 5, 6, tzinfo=dt.UTC) + dt.timedelta(minutes=start_minute),
            minutes_per_step=minutes_per_step,
            events=events,
        )[0]

    return make


@pytest.fixture(scope="session")
def random_day(make_window: Callable[..., Window]) -> Callable[..., Window]:
    """`random_day(seed)`: slow signals with bursts, gaps and events of every kind, some where nothing was recorded."""

    def make(seed: int, steps: int = 1440, start_minute: int = 0, minutes_per_step: int = 1) -> Window:
        random = np.random.default_rng(seed)
        centres = {
            "heart_rate": 75, "rmssd": 40, "rr_median": 800, "steps": 10, "acc_log_energy": 50, "skin_temperature": 32,
            "skin_conductance_level": 4, "sleep_coefficient": 8, "sleep_state": 2, "glucose": 6,
        }  # fmt: skip
        signals = {}
        for name, centre in centres.items():
            waves = sum(random.normal() * np.sin(np.arange(steps) / random.uniform(20, 300)) for _ in range(4))
            signal = centre * np.clip(1 + 0.12 * waves + random.normal(0, 0.02, steps), 0.6, 1.4)
            for _ in range(random.integers(0, 4)):
                first, length = random.integers(0, steps), random.integers(1, steps // 2)
                signal[first : first + length] = np.nan
            signals[name] = signal
        events = []
        for kind, name in [("activity", "running"), ("activity", "hiit"), ("sleep", "asleep"), ("sleep", "nap"),
                           ("mood", "calm"), ("meal", "lunch"), ("meal", "food or drink"), ("meal", "food or drink"),
                           ("session", "stress"), ("session", "tag"), ("session", "tag")]:  # fmt: skip
            start = int(random.integers(0, steps))
            length = 1 if name in ("calm", "food or drink", "tag") else int(random.integers(2, 120))
            events.append(Event(kind, name, start, min(start + length, steps)))
        return make_window(signals, events, start_minute, minutes_per_step)

    return make
