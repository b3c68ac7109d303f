"""Building blocks of synthetic signals: arrays with one value per minute of a person."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from scipy.signal import lfilter

Minutes = Float[np.ndarray, " n"]
Flags = Bool[np.ndarray, " n"]


def ar1_noise(rng: np.random.Generator, count: int, minutes: float, sd: float) -> Minutes:
    """Stationary first-order autoregressive noise, float32[count], with a time constant and standard deviation."""
    keep = np.exp(-1 / minutes)
    kicks = rng.standard_normal(count, dtype=np.float32) * np.float32(sd * np.sqrt(1 - keep**2))
    kicks[0] /= np.sqrt(1 - keep**2)
    return lfilter(np.array([1], np.float32), np.array([1, -keep], np.float32), kicks)


def low_pass(signal: Minutes, minutes: float) -> Minutes:
    """First-order low-pass filter with a time constant of `minutes`, starting from the first value."""
    keep = np.exp(-1 / minutes)
    before = np.array([keep * signal[0]], np.float32)
    followed, _ = lfilter(np.array([1 - keep], np.float32), np.array([1, -keep], np.float32), signal, zi=before)
    return followed


def hold(starts: Flags, draw: Callable[[int], np.ndarray]) -> Minutes:
    """A value drawn at the first minute and at every start, constant until the next; `draw(k)` gives k values."""
    return draw(int(starts.sum()) + 1).astype(np.float32)[np.cumsum(starts)]


def bouts(starts: Flags, draw: Callable[[int], np.ndarray]) -> Flags:
    """True from every start for a drawn number of minutes; overlapping bouts merge."""
    ends = np.zeros(starts.size, np.int64)
    (first,) = starts.nonzero()
    ends[first] = first + draw(first.size).astype(np.int64)
    return np.maximum.accumulate(ends) > np.arange(starts.size)


def bernoulli(rng: np.random.Generator, chance: Minutes | float, count: int) -> Flags:
    """Independent for each minute, True with probability `chance`."""
    return rng.random(count, dtype=np.float32) < chance


def sigmoid(signal: Minutes) -> Minutes:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-signal))
