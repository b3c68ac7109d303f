"""The few shapes of time every synthetic signal is made of, vectorised over a person's minutes."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.signal import lfilter

Minutes = Float[np.ndarray, " n"]
Flags = Bool[np.ndarray, " n"]


def wander(rng: np.random.Generator, count: int, minutes: float, sd: float) -> Minutes:
    """Stationary first-order noise, float32[count], forgetting itself over `minutes`, standard deviation `sd`."""
    keep = np.exp(-1 / minutes)
    kicks = rng.standard_normal(count, dtype=np.float32) * np.float32(sd * np.sqrt(1 - keep**2))
    kicks[0] /= np.sqrt(1 - keep**2)
    return lfilter(np.float32([1]), np.float32([1, -keep]), kicks)


def lag(signal: Minutes, minutes: float) -> Minutes:
    """What follows `signal` with a time constant of `minutes`, starting from its first value."""
    keep = np.float32(np.exp(-1 / minutes))
    followed, _ = lfilter(np.float32([1 - keep]), np.float32([1, -keep]), signal, zi=np.float32([keep * signal[0]]))
    return followed


def held(starts: Flags, drawn: Minutes) -> Minutes:
    """The value of `drawn` at the latest start, held until the next one (from the first minute on)."""
    index = np.where(starts, np.arange(starts.size), 0)
    return drawn[np.maximum.accumulate(index)]


def bouts(starts: Flags, minutes: Int[np.ndarray, " n"]) -> Flags:
    """True from every start for the number of minutes drawn there; overlapping bouts merge."""
    clock = np.arange(starts.size)
    return np.maximum.accumulate(np.where(starts, clock + minutes, 0)) > clock


def sigmoid(signal: Minutes) -> Minutes:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-signal))
