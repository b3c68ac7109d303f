"""The few shapes of time every synthetic signal is made of, vectorised over a person's minutes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy.signal import lfilter

Minutes = Float[np.ndarray, " n"]
Flags = Bool[np.ndarray, " n"]


def wander(rng: np.random.Generator, count: int, minutes: float, sd: float) -> Minutes:
    """Stationary first-order noise, float32[count], forgetting itself over `minutes`, standard deviation `sd`."""
    keep = np.exp(-1 / minutes)
    kicks = rng.standard_normal(count, dtype=np.float32) * np.float32(sd * np.sqrt(1 - keep**2))
    kicks[0] /= np.sqrt(1 - keep**2)
    return lfilter(np.array([1], np.float32), np.array([1, -keep], np.float32), kicks)


def lag(signal: Minutes, minutes: float) -> Minutes:
    """What follows `signal` with a time constant of `minutes`, starting from its first value."""
    keep = np.exp(-1 / minutes)
    before = np.array([keep * signal[0]], np.float32)
    followed, _ = lfilter(np.array([1 - keep], np.float32), np.array([1, -keep], np.float32), signal, zi=before)
    return followed


def held(starts: Flags, draw: Callable[[int], np.ndarray]) -> Minutes:
    """A value drawn at the first minute and at every start, held until the next one; `draw(k)` gives k values."""
    return draw(int(starts.sum()) + 1).astype(np.float32)[np.cumsum(starts)]


def bouts(starts: Flags, draw: Callable[[int], np.ndarray]) -> Flags:
    """True from every start for as many minutes as are drawn for it; overlapping bouts merge."""
    ends = np.zeros(starts.size, np.int64)
    (first,) = starts.nonzero()
    ends[first] = first + draw(first.size).astype(np.int64)
    return np.maximum.accumulate(ends) > np.arange(starts.size)


def happens(rng: np.random.Generator, chance: Minutes | float, count: int) -> Flags:
    """Independent minutes that are True with probability `chance`."""
    return rng.random(count, dtype=np.float32) < chance


def sigmoid(signal: Minutes) -> Minutes:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-signal))
