"""The structural level: trends, peaks and drops of a day averaged into bins of 40 minutes.

The thresholds are SensorLM's (arXiv 2506.09108): 36 bins a day; trends by linear regression over 6, 8 and 12 bins;
peaks and drops by their prominence. What is ours is the rule about gaps: a bin counts where at least half of its
minutes were observed; a trend is stated only where every bin it spans counts; and peaks and drops are sought within
unbroken runs of such bins, so that no gap makes one and none leans on what lies beyond a gap. A window shorter than a
day has fewer bins, counted from its start.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.signal import find_peaks

from lsm_jax.captions.channel_choice import choose_channels
from lsm_jax.captions.facts import Clock, Fact
from lsm_jax.captions.grammar import Statement
from lsm_jax.captions.phrases import spoken
from lsm_jax.windows import Window

BIN_MINUTES = 40
BIN_SUPPORT = 0.5
# Bins a trend spans, and the slope it needs, in fortieths of the channel's range per bin.
_TREND_SLOPES = {6: 1.5, 8: 1.3, 12: 1.0}
TREND_CHANGE = 0.2  # of the range, from its first bin to its last
_STEADY_SLOPE, STEADY_RANGE = 0.01, 0.1
_TRENDS_KEPT, _TREND_OVERLAP = 3, 0.3
_PROMINENCE, _PEAK_HEIGHT, _DROP_HEIGHT = 0.5, 0.6, -0.4
_WIDEST = 4  # bins, at half the prominence
_SENTENCES_PER_GROUP = 7
_WALL = 10.0  # higher than any z of a bin, which ends a run as the end of the series does


@dataclasses.dataclass(frozen=True)
class Bins:
    """Means of stretches of a window.

    Attributes:
      steps: steps of the window in a bin.
      mean: float64[C, N]; 0 where unsupported.
      supported: bool[C, N]; where enough was observed to speak of the bin.
      spread: float64[C], largest minus smallest supported bin; 0 where there are none.
    """

    steps: int
    mean: Float[np.ndarray, "c n"]
    supported: Bool[np.ndarray, "c n"]
    spread: Float[np.ndarray, " c"]


@dataclasses.dataclass(frozen=True)
class Found:
    """A trend, peak or drop: bins [first, last) of a channel (column), and how large it is in ranges of the channel."""

    kind: str
    column: int
    first: int
    last: int
    size: float


def structural_statements(window: Window, random: np.random.Generator) -> list[Statement]:
    """Trends, peaks and drops of the chosen channels, group by group in order of time, the largest 7 of a group."""
    clock = Clock(window)
    bins = bin_means(window)
    usable = (bins.supported.sum(axis=1) >= min(_TREND_SLOPES)) & (bins.spread > 0)
    chosen = choose_channels(window.channels, usable, random)
    columns = [column for group in chosen for column in group]
    found = _by_column(find_trends(bins, columns) + find_extremes(bins, columns))
    told = []
    for group in chosen:
        largest = sorted((each for column in group for each in found.get(column, ())), key=lambda each: -each.size)
        told += sorted(largest[:_SENTENCES_PER_GROUP], key=lambda each: (each.first, each.last, each.column))
    return [_statement(window, clock, bins, each) for each in told]


def bin_means(window: Window, columns: Sequence[int] | slice = slice(None)) -> Bins:
    """The bins of some columns of a window; steps after the last whole bin are left out."""
    steps = max(BIN_MINUTES // window.minutes_per_step, 1)
    values, observed = window.values.T[columns], window.observed.T[columns]
    count = values.shape[1] // steps
    shape = (len(values), count, steps)
    observed = observed[:, : count * steps].reshape(shape)
    values = values[:, : count * steps].reshape(shape)
    seen = np.count_nonzero(observed, axis=2)
    supported = seen >= max(BIN_SUPPORT * steps, 1)
    total = np.where(observed, values, 0).sum(axis=2, dtype=np.float64)
    mean = np.where(supported, total / np.maximum(seen, 1), 0)
    high = mean.max(axis=1, where=supported, initial=-np.inf)
    low = mean.min(axis=1, where=supported, initial=np.inf)
    return Bins(steps, mean, supported, np.where(high > low, high - low, 0.0))


def find_trends(bins: Bins, columns: Sequence[int]) -> list[Found]:
    """The trends of these columns: per column the 3 of largest change that overlap by at most 30 %."""
    stretches = _stretches(bins.mean.shape[1])
    flat = bins.spread[columns] <= 0
    z = bins.mean[columns] / np.where(flat, 1, bins.spread[columns])[:, None]
    slope, along = z @ stretches.regression, z[:, stretches.bins]
    change, extent = along[:, :, -1] - along[:, :, 0], along.max(axis=2) - along.min(axis=2)
    whole = bins.supported[columns][:, stretches.bins].all(axis=2) & ~flat[:, None]
    moving = (np.abs(slope) > stretches.steepness) & (np.abs(change) > TREND_CHANGE) & (slope * change > 0)
    steady = (np.abs(slope) < _STEADY_SLOPE) & (extent < STEADY_RANGE)
    candidates: dict[int, list[Found]] = {}
    for row, place in np.argwhere(whole & (moving | steady)).tolist():
        kind = "steady" if steady[row, place] else "increase" if slope[row, place] > 0 else "decrease"
        first, last = stretches.bins[place, 0], stretches.bins[place, -1] + 1
        found = Found(kind, columns[row], int(first), int(last), abs(float(change[row, place])))
        candidates.setdefault(row, []).append(found)
    return [each for few in candidates.values() for each in _apart(few)]


def find_extremes(bins: Bins, columns: Sequence[int], apart: int = 5) -> list[Found]:
    """Peaks and drops of these columns, of one bin each and this many bins apart; `size` is their prominence."""
    mean, supported, spread = bins.mean[columns], bins.supported[columns], bins.spread[columns]
    count = np.maximum(supported.sum(axis=1), 1)
    level = mean.sum(axis=1, where=supported) / count
    flat = spread <= 0
    z = (mean - level[:, None]) / np.where(flat, 1, spread)[:, None]
    allowed = supported & ~flat[:, None]
    found = []
    for kind, sign, height in (("peak", 1, _PEAK_HEIGHT), ("drop", -1, _DROP_HEIGHT)):
        # All columns as one series with walls between: one call, and a wall bounds a peak as the series' end would.
        walled = np.pad(np.where(allowed, sign * z, _WALL), ((0, 0), (apart, apart)), constant_values=_WALL)
        places, properties = find_peaks(
            walled.ravel(), height=(height, _WALL / 2), distance=apart, prominence=_PROMINENCE, width=(None, _WIDEST)
        )
        rows, bins_padded = np.divmod(places, walled.shape[1])
        for row, place, prominence in zip(rows, bins_padded - apart, properties["prominences"], strict=True):
            found.append(Found(kind, columns[row], int(place), int(place) + 1, float(prominence)))
    return found


def _statement(window: Window, clock: Clock, bins: Bins, found: Found) -> Statement:
    name = window.channels[found.column]
    first, last = found.first * bins.steps, found.last * bins.steps
    if found.kind in ("peak", "drop"):
        middle = clock.start(first + bins.steps // 2)
        value = spoken(name, bins.mean[found.column, found.first])
        return Statement("extreme", (Fact(found.kind, name, value, middle, middle),))
    return Statement("trend", (Fact(found.kind, name, None, clock.start(first), clock.end(last)),))


@dataclasses.dataclass(frozen=True)
class _Stretches:
    """Where trends are sought: stretches of each length, half their length apart.

    Attributes:
      bins: int[N, 12], the bins of a stretch; shorter ones repeat their last.
      regression: float64[count, N]; its product with the bins is the least-squares slope per bin over each stretch.
      steepness: float64[N], the slope that makes a trend, in ranges of the channel per bin.
    """

    bins: Int[np.ndarray, "n longest"]
    regression: Float[np.ndarray, "count n"]
    steepness: Float[np.ndarray, " n"]


@functools.cache
def _stretches(count: int) -> _Stretches:
    """The stretches of a series of this many bins."""
    longest = max(_TREND_SLOPES)
    spans = [(first, length) for length in _TREND_SLOPES for first in range(0, count - length + 1, length // 2)]
    regression = np.zeros((count, len(spans)))
    for place, (first, length) in enumerate(spans):
        centred = np.arange(length) - (length - 1) / 2
        regression[first : first + length, place] = centred / (centred @ centred)
    bins = [first + np.minimum(np.arange(longest), length - 1) for first, length in spans]
    steepness = [_TREND_SLOPES[length] / BIN_MINUTES for _, length in spans]
    return _Stretches(np.array(bins, np.int64).reshape(-1, longest), regression, np.array(steepness))


def _apart(candidates: Iterable[Found]) -> list[Found]:
    """The largest few, each overlapping no larger one by more than the allowed share of the shorter."""
    kept: list[Found] = []
    for each in sorted(candidates, key=lambda each: (-each.size, each.first, each.last)):
        shared = [min(each.last, other.last) - max(each.first, other.first) for other in kept]
        shortest = [min(each.last - each.first, other.last - other.first) for other in kept]
        if all(bins <= _TREND_OVERLAP * length for bins, length in zip(shared, shortest, strict=True)):
            kept.append(each)
        if len(kept) == _TRENDS_KEPT:
            break
    return kept


def _by_column(found: Iterable[Found]) -> dict[int, list[Found]]:
    columns: dict[int, list[Found]] = {}
    for each in found:
        columns.setdefault(each.column, []).append(each)
    return columns
