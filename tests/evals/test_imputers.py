import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # it makes IterativeImputer importable
from sklearn.impute import IterativeImputer

from lsm_jax.evals.baselines import CellIndex
from lsm_jax.evals.imputers import (
    FITTED,
    _covariance,
    apply_regressions,
    conditional_mean,
    fit_cohort,
    fit_people,
    predict_fitted,
)
from lsm_jax.evals.task_batches import WindowStack

MINUTES = 240


def stack(people=6, days=3, seed=0):
    """Four-hour windows of three channels: the second is minus half of the first, the third is noise."""
    rng = np.random.default_rng(seed)
    count = people * days
    slow = np.repeat(rng.normal(size=(count, MINUTES // 10)), 10, axis=1)
    values = np.stack([slow, -slow / 2, rng.normal(size=slow.shape)], axis=2).astype(np.float32)
    observed = rng.random(values.shape) < 0.9
    start = np.zeros(count, np.int64)
    person = np.repeat(np.arange(people), days)
    marked = np.zeros((count, MINUTES, 3), bool)
    return WindowStack(np.where(observed, values, 0), observed, start, start, person, np.arange(count), marked)


@pytest.fixture(scope="module")
def cohort():
    return fit_cohort([stack()], 3)


def hidden_blocks(windows, seed=1):
    """The visible cells where blocks of channels and of minutes are hidden, and the index of hidden recorded cells."""
    rng = np.random.default_rng(seed)
    hidden = np.repeat(rng.random((len(windows.values), MINUTES // 30, 3)) < 0.5, 30, axis=1)
    hidden[0, 30:90] = True
    hidden[1, :, 0] = True
    return windows.observed & ~hidden, CellIndex(*np.nonzero(windows.observed & hidden))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), channels=st.integers(2, 12))
def test_the_conditional_mean_is_the_textbook_formula(seed, channels):
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(2, channels, channels + 2))
    covariance = factors @ factors.transpose(0, 2, 1)
    values = rng.normal(size=(2, 30, channels))
    visible = rng.random(values.shape) < rng.choice([0.0, 0.3, 0.9])
    cells = CellIndex(*np.nonzero(~visible))
    predicted = conditional_mean(np.where(visible, values, 0), visible, cells, covariance)
    for window, step, channel, number in zip(*cells, predicted, strict=True):
        seen = np.flatnonzero(visible[window, step])
        inner = covariance[window][np.ix_(seen, seen)]
        expected = covariance[window, channel, seen] @ np.linalg.solve(inner, values[window, step, seen])
        np.testing.assert_allclose(number, expected, atol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e30])
def test_hidden_cells_are_never_read(cohort, poison):
    windows = stack(people=2, seed=5)
    visible, cells = hidden_blocks(windows)
    people = fit_people(windows, cohort)
    clean = predict_fitted(windows.values, visible, windows.bins, cells, cohort, people)
    poisoned = np.where(visible, windows.values, poison).astype(np.float32)
    again = predict_fitted(poisoned, visible, windows.bins, cells, cohort, people)
    assert tuple(clean) == FITTED
    for name in FITTED:
        assert np.isfinite(clean[name]).all()
        assert (clean[name] == again[name]).all(), name


def test_a_window_has_no_part_in_its_own_fits(cohort):
    windows = stack(people=2, seed=5)
    before = fit_people(windows, cohort)
    values = windows.values.copy()
    values[1] = 1e6
    after = fit_people(dataclasses.replace(windows, values=values), cohort)
    assert (before.profile[1] == after.profile[1]).all()
    assert (before.covariance[1] == after.covariance[1]).all()
    assert (before.covariance[0] != after.covariance[0]).any()


def test_a_second_fit_is_the_same_and_other_windows_matter(cohort):
    windows = stack(people=2, seed=5)
    visible, cells = hidden_blocks(windows)
    again = fit_cohort([stack()], 3)
    one, other = (
        predict_fitted(windows.values, visible, windows.bins, cells, fit, fit_people(windows, fit))
        for fit in (cohort, again)
    )
    assert all((one[name] == other[name]).all() for name in FITTED)
    assert not np.allclose(one["conditional_gaussian"], one["conditional_gaussian_person"])


def test_a_channel_that_follows_from_another_is_found(cohort):
    windows = stack(people=4, seed=7)
    visible = windows.observed.copy()
    visible[:, :, 1] = False
    cells = CellIndex(*np.nonzero((windows.observed & ~visible) & windows.observed[:, :, :1]))
    people = fit_people(windows, cohort)
    truth, profile = windows.values[tuple(cells)], people.at_minutes(windows.bins)[tuple(cells)]
    predicted = predict_fitted(windows.values, visible, windows.bins, cells, cohort, people)
    without = np.mean((profile - truth) ** 2)
    for name in ("conditional_gaussian", "conditional_gaussian_person", "iterative"):
        assert np.mean((predicted[name] - truth) ** 2) < 0.1 * without


@pytest.mark.parametrize("stacks", [[], [dataclasses.replace(stack(), observed=np.zeros((18, MINUTES, 3), bool))]])
def test_without_training_data_the_person_is_what_is_left(stacks):
    windows = stack(people=2, seed=5)
    nothing = fit_cohort(stacks, 3)
    people = fit_people(windows, nothing)
    visible = np.zeros_like(windows.observed)
    visible[:, :, 2] = windows.observed[:, :, 2]
    cells = CellIndex(*np.nonzero(windows.observed & ~visible))
    predicted = predict_fitted(windows.values, visible, windows.bins, cells, nothing, people)
    profile = people.at_minutes(windows.bins)[tuple(cells)]
    for name in ("conditional_gaussian", "knn", "iterative"):
        np.testing.assert_array_equal(predicted[name], profile)


def test_pairs_of_different_minutes_that_contradict_each_other_give_a_positive_definite_matrix():
    products = np.array([[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]]) * 1000
    covariance = _covariance(products, np.full((3, 3), 1000.0), np.eye(3), 1.0)
    assert np.linalg.eigvalsh(covariance)[0] > 0
    assert np.linalg.eigvalsh(products)[0] < 0


def test_regressions_are_applied_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 6)) + 0.1 * rng.normal(size=(300, 6))
    rows[rng.random(rows.shape) < [0.4, 0.4, 0.4, 0, 0, 0]] = np.nan
    imputer = IterativeImputer(max_iter=2, skip_complete=True, keep_empty_features=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        imputer.fit(rows)
    rows[:3, 4] = np.nan  # complete when it was fitted
    rows[0] = np.nan
    np.testing.assert_allclose(apply_regressions(imputer, rows), imputer.transform(rows), rtol=1e-9)
