"""The structural level: trends, peaks and drops of a day that is averaged into bins of 40 minutes.

Thresholds are SensorLM's (arXiv 2506.09108): 36 bins a day; trends by linear regression over 6, 8 and 12 bins; peaks
and drops by their prominence. The treatment of gaps is ours. A bin is supported if at least half of its minutes were
observed. A trend needs support in all of its bins. Peaks and drops are detected within unbroken runs of supported bins,
so that no gap creates one and those on either side of a gap do not compete. A window shorter than a day has fewer bins,
counted from its start.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.captions.channel_choice import choose_channels
from lsm_jax.captions.facts import Fact, LocalClock
from lsm_jax.captions.grammar import Statement
from lsm_jax.captions.phrases import rounded
from lsm_jax.windows import Window

BIN_MINUTES = 40
BIN_SUPPORT = 0.5
# Bins of a trend: its minimum slope, in 1/40 of the channel's range per bin.
_MIN_SLOPES = {6: 1.5, 8: 1.3, 12: 1.0}
TREND_CHANGE = 0.2  # share of the range, from the first bin to the last
_MAX_STEADY_SLOPE, STEADY_RANGE = 0.01, 0.1
_MAX_TRENDS, _MAX_OVERLAP = 3, 0.3
_PROMINENCE, _PEAK_HEIGHT, _DROP_HEIGHT = 0.5, 0.6, -0.4
_MAX_WIDTH = 4  # bins, at half the prominence
_MAX_SENTENCES_PER_GROUP = 7
_WALL = 10.0  # above any normalised bin mean, so that it ends a run of bins like the end of the series


@dataclasses.dataclass(frozen=True)
class Bins:
    """Means of consecutive bins of a window.

    Attributes:
      steps: steps of the window in a bin.
      mean: float64[C, N]; 0 where unsupported.
      supported: bool[C, N]; whether enough of the bin was observed.
      spread: float64[C], largest minus smallest supported bin; 0 if there are none.
    """

    steps: int
    mean: Float[np.ndarray, "c n"]
    supported: Bool[np.ndarray, "c n"]
    spread: Float[np.ndarray, " c"]


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A trend, peak or drop in the bins [first, last) of a column; `size` is in units of `Bins.spread`."""

    kind: str
    column: int
    first: int
    last: int
    size: float


def structural_statements(window: Window, random: np.random.Generator) -> list[Statement]:
    """The 7 largest trends, peaks and drops of each group of chosen channels, in order of time."""
    clock = LocalClock(window)
    bins = bin_means(window)
    usable = (bins.supported.sum(axis=1) >= min(_MIN_SLOPES)) & (bins.spread > 0)
    chosen = choose_channels(window.channels, usable, random)
    columns = [column for group in chosen for column in group]
    patterns = find_trends(bins, columns) + find_extremes(bins, columns)
    kept = []
    for group in chosen:
        # Column by column, so that patterns of equal size keep the order of the group's channels.
        candidates = [pattern for column in group for pattern in patterns if pattern.column == column]
        largest = sorted(candidates, key=lambda pattern: -pattern.size)[:_MAX_SENTENCES_PER_GROUP]
        kept += sorted(largest, key=lambda pattern: (pattern.first, pattern.last, pattern.column))
    return [_statement(window, clock, bins, pattern) for pattern in kept]


def bin_means(window: Window, columns: Sequence[int] | slice = slice(None)) -> Bins:
    """The bins of some columns of a window, without the steps after the last whole bin."""
    steps = max(BIN_MINUTES // window.minutes_per_step, 1)
    values, observed = window.values.T[columns], window.observed.T[columns]
    count = values.shape[1] // steps
    shape = (len(values), count, steps)
    observed = observed[:, : count * steps].reshape(shape)
    values = values[:, : count * steps].reshape(shape)
    cells = np.count_nonzero(observed, axis=2)
    supported = cells >= max(BIN_SUPPORT * steps, 1)
    total = np.where(observed, values, 0).sum(axis=2, dtype=np.float64)
    mean = np.where(supported, total / np.maximum(cells, 1), 0)
    high = mean.max(axis=1, where=supported, initial=-np.inf)
    low = mean.min(axis=1, where=supported, initial=np.inf)
    return Bins(steps, mean, supported, np.where(high > low, high - low, 0.0))


def find_trends(bins: Bins, columns: Sequence[int]) -> list[Pattern]:
    """The trends of these columns: for each the 3 of largest change that overlap by at most 30 %."""
    spans = _trend_spans(bins.mean.shape[1])
    flat = bins.spread[columns] <= 0
    z = bins.mean[columns] / np.where(flat, 1, bins.spread[columns])[:, None]
    slope, span_z = z @ spans.regression, z[:, spans.bins]
    change, extent = span_z[:, :, -1] - span_z[:, :, 0], span_z.max(axis=2) - span_z.min(axis=2)
    whole = bins.supported[columns][:, spans.bins].all(axis=2) & ~flat[:, None]
    moving = (np.abs(slope) > spans.min_slope) & (np.abs(change) > TREND_CHANGE) & (slope * change > 0)
    steady = (np.abs(slope) < _MAX_STEADY_SLOPE) & (extent < STEADY_RANGE)
    candidates: dict[int, list[Pattern]] = {}
    for row, span in np.argwhere(whole & (moving | steady)).tolist():
        kind = "steady" if steady[row, span] else "increase" if slope[row, span] > 0 else "decrease"
        first, last = spans.bins[span, 0], spans.bins[span, -1] + 1
        trend = Pattern(kind, columns[row], int(first), int(last), abs(float(change[row, span])))
        candidates.setdefault(row, []).append(trend)
    return [trend for trends in candidates.values() for trend in _without_overlap(trends)]


def find_extremes(bins: Bins, columns: Sequence[int], min_distance: int = 5) -> list[Pattern]:
    """Peaks and drops of these columns, each one bin wide; `size` is prominence.

    Within an unbroken run of supported bins they are at least `min_distance` bins apart.
    """
    from scipy.signal import find_peaks  # not above: it takes two seconds to import, and most runs write no captions

    mean, supported, spread = bins.mean[columns], bins.supported[columns], bins.spread[columns]
    count = np.maximum(supported.sum(axis=1), 1)
    level = mean.sum(axis=1, where=supported) / count
    flat = spread <= 0
    z = (mean - level[:, None]) / np.where(flat, 1, spread)[:, None]
    allowed = supported & ~flat[:, None]
    extremes = []
    for kind, sign, height in (("peak", 1, _PEAK_HEIGHT), ("drop", -1, _DROP_HEIGHT)):
        # One call for all columns, joined into one series with walls between them.
        walled = np.pad(np.where(allowed, sign * z, _WALL), ((0, 0), (1, 1)), constant_values=_WALL)
        # Walls are as thick as peaks must be apart, so that peaks on either side of one do not compete.
        thickness = np.where(walled < _WALL, 1, min_distance).ravel()
        place = np.repeat(np.arange(walled.size), thickness)
        positions, properties = find_peaks(
            walled.ravel()[place],
            height=(height, _WALL / 2),
            distance=min_distance,
            prominence=_PROMINENCE,
            width=(None, _MAX_WIDTH),
        )
        rows, padded = np.divmod(place[positions], walled.shape[1])
        for row, at, prominence in zip(rows, padded - 1, properties["prominences"], strict=True):
            extremes.append(Pattern(kind, columns[row], int(at), int(at) + 1, float(prominence)))
    return extremes


def _statement(window: Window, clock: LocalClock, bins: Bins, pattern: Pattern) -> Statement:
    name = window.channels[pattern.column]
    first, last = pattern.first * bins.steps, pattern.last * bins.steps
    if pattern.kind in ("peak", "drop"):
        middle = clock.start(first + bins.steps // 2)
        value = rounded(name, bins.mean[pattern.column, pattern.first])
        return Statement("extreme", (Fact(pattern.kind, name, value, middle, middle),))
    return Statement("trend", (Fact(pattern.kind, name, None, clock.start(first), clock.end(last)),))


@dataclasses.dataclass(frozen=True)
class _TrendSpans:
    """The spans of bins in which trends are detected: of each length, half a length apart.

    Attributes:
      bins: int[N, 12], the bins of a span; shorter spans repeat their last bin.
      regression: float64[count, N]; bin means times this matrix are the least-squares slopes per bin of each span.
      min_slope: float64[N], the minimum slope of a trend, in ranges of the channel per bin.
    """

    bins: Int[np.ndarray, "n longest"]
    regression: Float[np.ndarray, "count n"]
    min_slope: Float[np.ndarray, " n"]


@functools.cache
def _trend_spans(count: int) -> _TrendSpans:
    """The spans of a series of `count` bins."""
    longest = max(_MIN_SLOPES)
    spans = [(first, length) for length in _MIN_SLOPES for first in range(0, count - length + 1, length // 2)]
    regression = np.zeros((count, len(spans)))
    for column, (first, length) in enumerate(spans):
        centred = np.arange(length) - (length - 1) / 2
        regression[first : first + length, column] = centred / (centred @ centred)
    bins = [first + np.minimum(np.arange(longest), length - 1) for first, length in spans]
    min_slope = [_MIN_SLOPES[length] / BIN_MINUTES for _, length in spans]
    return _TrendSpans(np.array(bins, np.int64).reshape(-1, longest), regression, np.array(min_slope))


def _without_overlap(candidates: Iterable[Pattern]) -> list[Pattern]:
    """The largest few; each overlaps every larger one by at most `_MAX_OVERLAP` of the shorter of the two."""
    kept: list[Pattern] = []
    for each in sorted(candidates, key=lambda each: (-each.size, each.first, each.last)):
        shared = [min(each.last, other.last) - max(each.first, other.first) for other in kept]
        shortest = [min(each.last - each.first, other.last - other.first) for other in kept]
        if all(bins <= _MAX_OVERLAP * length for bins, length in zip(shared, shortest, strict=True)):
            kept.append(each)
        if len(kept) == _MAX_TRENDS:
            break
    return kept
