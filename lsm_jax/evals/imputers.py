"""Baselines of the generative suite that are fitted to a dataset's training split.

All of them predict residuals: values minus the mean by time of day of the person's other windows. Where nothing
visible helps, for example because every channel is hidden at that minute, their prediction is that mean.

- `conditional_gaussian`: the mean of the hidden channels given the visible ones of the same minute, for normally
  distributed residuals with the training cohort's covariance.
- `conditional_gaussian_person`: the same with the covariance of the person's other windows, shrunk to the cohort's.
- `knn`: k-nearest neighbours (scikit-learn's `NearestNeighbors`). A day is its half-hour means; a half-hour without a
  visible minute is the mean of that half-hour in the training days that are nearest in the visible half-hours.
- `iterative`: chained Bayesian ridge regressions (scikit-learn's `IterativeImputer`) of every channel on the other
  channels of the minute and on all channels' lines between visible neighbours, which count less the longer the gap.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # it makes IterativeImputer importable
from sklearn.impute import IterativeImputer
from sklearn.neighbors import NearestNeighbors

from lsm_jax.evals.baselines import (
    BINS,
    FILLS,
    CellIndex,
    cohort_profile,
    line_and_gap,
    person_profiles,
    sums_by_bin,
)
from lsm_jax.evals.task_batches import WindowStack

FITTED: tuple[str, ...] = ("conditional_gaussian", "conditional_gaussian_person", "knn", "iterative")
BASELINES: tuple[str, ...] = (*FILLS, *FITTED)
_FIT_WINDOWS = 500  # of people taken whole; more hardly change the fits
_OTHER_WINDOWS = 28  # of a person, the nearest in time: the covariance of four weeks
_COHORT_PRIOR_MINUTES, _PERSON_PRIOR_MINUTES = 1440.0, 10_080.0
_SMALLEST_EIGENVALUE = 1e-3  # of a correlation matrix
_CANDIDATES, _NEIGHBOURS, _BINS_OF_A_STEP = 100, 10, 3
_ROWS, _ROUNDS, _REACH_MINUTES = 8000, 2, (20.0, 180.0)
_HIDDEN_MINUTES = (10, 30, 60, 180, 1440)
_MINUTES_AT_ONCE = 4096


class Neighbours:
    """Training days as half-hour means of residuals, [days, half-hours x channels], NaN where there is none."""

    def __init__(self, days: Float[np.ndarray, "n f"]) -> None:
        self._days = days
        self._index = NearestNeighbors(n_neighbors=min(_CANDIDATES, len(days)), metric="nan_euclidean").fit(days)

    def filled(self, days: Float[np.ndarray, "b f"]) -> Float[np.ndarray, "b f"]:
        """Days with the mean of the nearest days that have a value where they lack one; 0 where no day near has one."""
        ranked = self._index.kneighbors(days, return_distance=False)
        total, count = np.zeros(days.shape), np.zeros(days.shape, int)
        for neighbour in ranked.T:
            values = self._days[neighbour]
            used = ~np.isnan(values) & (count < _NEIGHBOURS)
            total[used] += values[used]
            count += used
            if (count >= _NEIGHBOURS).all():
                break
        return np.where(np.isnan(days), total / np.maximum(count, 1), days)


@dataclasses.dataclass(frozen=True)
class Cohort:
    """What the baselines learn from a training split.

    Attributes:
      profile: mean by time of day, z-scored.
      covariance: of residuals at a minute.
      knn, iterative: None where the split has no recorded cell.
    """

    profile: Float[np.ndarray, "k c"]
    covariance: Float[np.ndarray, "c c"]
    knn: Neighbours | None
    iterative: IterativeImputer | None


@dataclasses.dataclass(frozen=True)
class People:
    """What the baselines learn for each window from the person's other windows.

    Attributes:
      profile: mean by time of day, z-scored; the cohort's where the other windows have none.
      covariance: of residuals at a minute, shrunk to the cohort's.
    """

    profile: Float[np.ndarray, "w k c"]
    covariance: Float[np.ndarray, "w c c"]

    def __getitem__(self, rows: Int[np.ndarray, " b"]) -> People:
        return People(self.profile[rows], self.covariance[rows])

    def at_minutes(self, bins: Int[np.ndarray, "w t"]) -> Float[np.ndarray, "w t c"]:
        """The profile at every minute of the windows, whose time-of-day bins are given."""
        return _at_minutes(self.profile, bins)


def fit_cohort(stacks: Iterable[WindowStack], channels: int) -> Cohort:
    """Fits the baselines to stacks of whole people, which are read once.

    The mean by time of day is of all stacks, the rest of the first windows.
    """
    kept: list[WindowStack] = []

    def read() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for stack in stacks:
            if sum(len(part.values) for part in kept) < _FIT_WINDOWS:
                kept.append(stack)
            yield stack.values, stack.observed, stack.bins

    profile = cohort_profile(read(), channels)
    if not any(stack.observed.any() for stack in kept):
        return Cohort(profile, np.eye(channels), None, None)
    parts = []
    for stack in kept:
        own = person_profiles(stack.values, stack.observed, stack.bins, stack.person, profile)
        parts.append(_residuals(stack.values, stack.observed, _at_minutes(own, stack.bins)))
    residual, observed, bins = (
        np.concatenate(part) for part in (parts, [s.observed for s in kept], [s.bins for s in kept])
    )
    covariance = _covariance(*_moments(residual, observed), np.eye(channels), _COHORT_PRIOR_MINUTES)
    knn = Neighbours(_half_hours(residual, observed, bins))
    return Cohort(profile, covariance, knn, _fit_iterative(residual, observed))


def fit_people(windows: WindowStack, cohort: Cohort) -> People:
    """Fits the baselines to the other windows of each window's person; all of them must be in the stack."""
    values, observed, bins = windows.values, windows.observed, windows.bins
    profile = person_profiles(values, observed, bins, windows.person, cohort.profile)
    covariance = np.empty((len(values), *cohort.covariance.shape))
    for row, one in enumerate(windows.person):
        own = np.flatnonzero(windows.person == one)
        # Around the profile of this window, in which it has no part: residuals around theirs would reveal it.
        others = own[np.argsort(np.abs(own - row), kind="stable")][1 : 1 + _OTHER_WINDOWS]
        residual = _residuals(values[others], observed[others], profile[row][bins[others]])
        moments = _moments(residual, observed[others])
        covariance[row] = _covariance(*moments, cohort.covariance, _PERSON_PRIOR_MINUTES)
    return People(profile, covariance)


def predict_fitted(
    values: Float[np.ndarray, "b t c"],
    visible: Bool[np.ndarray, "b t c"],
    bins: Int[np.ndarray, "b t"],
    cells: CellIndex,
    cohort: Cohort,
    people: People,
) -> Mapping[str, Float[np.ndarray, " n"]]:
    """The z-scored prediction of every fitted baseline at `cells`.

    Args:
      values: z-scored; read only where `visible`.
      cells: hidden cells.
      people: of these b windows.
    """
    profile = people.at_minutes(bins)
    residual, at_cells = _residuals(values, visible, profile), profile[tuple(cells)]
    shared = np.broadcast_to(cohort.covariance, (len(values), *cohort.covariance.shape))
    return {
        "conditional_gaussian": at_cells + conditional_mean(residual, visible, cells, shared),
        "conditional_gaussian_person": at_cells + conditional_mean(residual, visible, cells, people.covariance),
        "knn": at_cells + _nearest_days(residual, visible, bins, cells, cohort.knn),
        "iterative": at_cells + _chained_regressions(residual, visible, cells, cohort.iterative),
    }


def conditional_mean(
    residual: Float[np.ndarray, "b t c"],
    visible: Bool[np.ndarray, "b t c"],
    cells: CellIndex,
    covariance: Float[np.ndarray, "b c c"],
) -> Float[np.ndarray, " n"]:
    """The mean of normal variables of mean 0 at `cells`, given the visible channels of the same minute.

    Minutes of a window with the same visible channels share one matrix inversion.

    Args:
      residual: 0 where not visible.
      covariance: of each window, positive definite.
    """
    minutes = _Minutes.of(cells, visible.shape[1])
    seen, given = visible[minutes.window, minutes.step], residual[minutes.window, minutes.step].astype(np.float64)
    _, pattern = np.unique(np.packbits(seen, axis=1), axis=0, return_inverse=True)
    _, first, group = np.unique(
        minutes.window * (len(seen) + 1) + pattern.ravel(), return_index=True, return_inverse=True
    )
    order = np.argsort(group, kind="stable")
    solved = np.empty(given.shape)
    for begin in range(0, len(order), _MINUTES_AT_ONCE):
        chosen = order[begin : begin + _MINUTES_AT_ONCE]
        leaders = first[group[chosen[0]] : group[chosen[-1]] + 1]
        both = seen[leaders, :, None] & seen[leaders, None, :]
        # Ones on the diagonal of hidden channels leave the inverse of the visible block as it is.
        block = np.where(both, covariance[minutes.window[leaders]], 0)
        block[:, range(block.shape[1]), range(block.shape[1])] += ~seen[leaders]
        solved[chosen] = np.matmul(np.linalg.inv(block)[group[chosen] - group[chosen[0]]], given[chosen, :, None])[
            :, :, 0
        ]
    return np.einsum("nc,nc->n", covariance[cells.window, cells.channel], (solved * seen)[minutes.of_cell])


class _Minutes(NamedTuple):
    """The distinct minutes of some cells.

    Attributes:
      of_cell: the minute of each cell.
    """

    window: Int[np.ndarray, " m"]
    step: Int[np.ndarray, " m"]
    of_cell: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, cells: CellIndex, steps: int) -> _Minutes:
        minutes, of_cell = np.unique(cells.window.astype(np.int64) * steps + cells.step, return_inverse=True)
        return cls(*np.divmod(minutes, steps), of_cell)


def _residuals(values: np.ndarray, seen: np.ndarray, profile: np.ndarray) -> np.ndarray:
    """Values minus the profile at every minute; 0 where not seen."""
    return np.subtract(values, profile, out=np.zeros(values.shape, np.float32), where=seen)


def _at_minutes(profile: Float[np.ndarray, "b k c"], bins: Int[np.ndarray, "b t"]) -> Float[np.ndarray, "b t c"]:
    return np.take_along_axis(profile, bins[:, :, None], axis=1)


def _moments(residual: np.ndarray, observed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of products of all pairs of channels, and the numbers of minutes that have both, [C, C]."""
    channels = residual.shape[2]
    rows, seen = (part.reshape(-1, channels).astype(np.float64) for part in (residual, observed))
    return rows.T @ rows, seen.T @ seen


def _covariance(
    products: Float[np.ndarray, "c c"],
    minutes: Float[np.ndarray, "c c"],
    prior: Float[np.ndarray, "c c"],
    prior_minutes: float,
) -> Float[np.ndarray, "c c"]:
    """Covariance from the minutes that each pair of channels shares and from a prior, which counts as so many minutes.

    Correlations are shrunk to 0 just enough for a positive definite matrix: pairs of different minutes may contradict
    each other.
    """
    covariance = (products + prior_minutes * prior) / (minutes + prior_minutes)
    sd = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(sd, sd)
    smallest = np.linalg.eigvalsh(correlation)[0]
    shrink = max(0.0, (_SMALLEST_EIGENVALUE - smallest) / (1 - smallest)) if smallest < 1 else 0.0
    return ((1 - shrink) * correlation + shrink * np.eye(len(sd))) * np.outer(sd, sd)


def _half_hours(residual: np.ndarray, seen: np.ndarray, bins: np.ndarray) -> Float[np.ndarray, "b f"]:
    """Means by half-hour of the day and channel, NaN where nothing is seen."""
    sums, counts = (
        part.reshape(len(part), BINS // _BINS_OF_A_STEP, _BINS_OF_A_STEP, -1).sum(axis=2)
        for part in sums_by_bin(residual, seen, bins)
    )
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return means.reshape(len(means), -1)


def _nearest_days(
    residual: np.ndarray, visible: np.ndarray, bins: np.ndarray, cells: CellIndex, knn: Neighbours | None
) -> Float[np.ndarray, " n"]:
    if knn is None:
        return np.zeros(len(cells.step))
    filled = knn.filled(_half_hours(residual, visible, bins)).reshape(len(residual), -1, residual.shape[2])
    return filled[cells.window, bins[cells.window, cells.step] // _BINS_OF_A_STEP, cells.channel]


def _fit_iterative(residual: np.ndarray, observed: np.ndarray) -> IterativeImputer | None:
    """Fits the regressions on minutes of which blocks of several lengths are hidden, as in the tasks."""
    rng = np.random.default_rng(0)
    windows, steps, channels = residual.shape
    visible = observed.copy()
    for row in range(windows):
        minutes = _HIDDEN_MINUTES[row % len(_HIDDEN_MINUTES)]
        block = (np.arange(steps) + rng.integers(minutes)) // minutes
        # Every other round of lengths hides all channels of a block, the others each channel by itself.
        width = channels if row // len(_HIDDEN_MINUTES) % 2 or minutes >= steps else 1
        visible[row] &= (rng.random((block[-1] + 1, width)) < 0.5)[block]
    hidden = (observed & ~visible).any(axis=2)
    candidates = np.flatnonzero(hidden)
    if not len(candidates):
        return None
    chosen = np.sort(rng.choice(candidates, min(_ROWS, len(candidates)), replace=False))
    window, step = np.unravel_index(chosen, hidden.shape)
    known = observed[window, step] & (rng.random((len(chosen), channels)) < 0.8)
    rows = _minute_rows(residual, visible, window, step, known)
    imputer = IterativeImputer(max_iter=_ROUNDS, skip_complete=True, keep_empty_features=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the rounds are bounded on purpose
        return imputer.fit(rows)


def _chained_regressions(
    residual: np.ndarray, visible: np.ndarray, cells: CellIndex, imputer: IterativeImputer | None
) -> Float[np.ndarray, " n"]:
    if imputer is None:
        return np.zeros(len(cells.step))
    window, step, of_cell = _Minutes.of(cells, visible.shape[1])
    filled = apply_regressions(imputer, _minute_rows(residual, visible, window, step, visible[window, step]))
    return filled[of_cell, cells.channel]


def apply_regressions(imputer: IterativeImputer, rows: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n f"]:
    """`imputer.transform(rows)`, as a matrix product for each regression; scikit-learn copies the rows every time."""
    missing = np.isnan(rows)
    # By feature, so that a regression reads and writes whole rows of memory.
    filled = np.ascontiguousarray(imputer.initial_imputer_.transform(rows).T)
    for feature, others, regression in imputer.imputation_sequence_:
        weights = np.zeros(len(filled))
        weights[others] = regression.coef_
        predicted = weights @ filled + regression.intercept_
        filled[feature] = np.where(missing[:, feature], predicted, filled[feature])
    return filled.T


def _minute_rows(
    residual: np.ndarray, visible: np.ndarray, window: np.ndarray, step: np.ndarray, known: np.ndarray
) -> Float[np.ndarray, "n f"]:
    """The known channels of some minutes, then lines between visible neighbours, weighted by the distance to them."""
    line, gap = line_and_gap(residual, visible, window, step)
    channels = np.where(known, residual[window, step], np.nan)
    return np.concatenate([channels, *(line * np.exp(-gap / reach) for reach in _REACH_MINUTES)], axis=1)
