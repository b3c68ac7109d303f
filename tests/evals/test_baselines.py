import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.evals.baselines import (
    BIN_MINUTES,
    BINS,
    FILLS,
    CellIndex,
    cohort_profile,
    person_profiles,
    predict_fills,
    time_bins,
)

_ = np.nan  # hidden, or never recorded: no baseline may read it


def predictions(series, cells, person=9.0, cohort=7.0):
    """One window, one channel: predictions of every method at the given steps."""
    values = np.array(series, np.float32)[None, :, None]
    at = CellIndex(np.zeros(len(cells), int), np.array(cells), np.zeros(len(cells), int))
    profile = np.full_like(values, person), np.full_like(values, cohort)
    return {k: v.tolist() for k, v in predict_fills(values, ~np.isnan(values), at, *profile).items()}


def test_by_hand():
    predicted = predictions([_, 1, _, _, _, 5, _, 3, _], cells=[0, 2, 3, 4, 6, 8])
    assert predicted == {
        "mean": [3, 3, 3, 3, 3, 3],
        "nearest": [1, 1, 1, 5, 5, 3],
        "last": [3, 1, 1, 1, 5, 3],  # nothing came before step 0: the visible mean
        "linear": [1, 2, 3, 4, 4, 3],
        "person_time_of_day": [9] * 6,
        "cohort_time_of_day": [7] * 6,
    }
    assert tuple(predicted) == FILLS


def test_a_channel_with_nothing_visible_falls_back_to_the_training_mean():
    predicted = predictions([_, _, _], cells=[0, 1, 2])
    assert all(predicted[name] == [0, 0, 0] for name in ("mean", "nearest", "last", "linear"))


def test_windows_and_channels_do_not_mix():
    values = np.array([[[1, 10], [0, 0], [3, 30]], [[5, 50], [0, 0], [7, 70]]], np.float32)
    visible = values > 0
    cells = CellIndex(*np.nonzero(~visible))
    flat = np.zeros_like(values)
    predicted = predict_fills(values, visible, cells, flat, flat)
    assert predicted["linear"].tolist() == predicted["mean"].tolist() == [2, 20, 6, 60]
    assert predicted["last"].tolist() == [1, 10, 5, 50]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), poison=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
def test_never_looks_at_hidden_cells(seed, poison):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(3, 40, 2)).astype(np.float32)
    visible = rng.random(values.shape) < rng.choice([0.0, 0.1, 0.7])
    cells = CellIndex(*np.nonzero(~visible))
    profile = rng.normal(size=values.shape).astype(np.float32)
    clean = predict_fills(values, visible, cells, profile, profile)
    poisoned = predict_fills(np.where(visible, values, poison), visible, cells, profile, profile)
    assert all((clean[name] == poisoned[name]).all() for name in FILLS)
    assert all(np.isfinite(clean[name]).all() for name in FILLS)


def day_batch(levels, observed=None):
    """Day windows of one channel, each level constant over its day."""
    values = np.repeat(np.array(levels, np.float32)[:, None], BINS * BIN_MINUTES, axis=1)[:, :, None]
    seen = np.ones(values.shape, bool) if observed is None else observed
    return values, seen, time_bins(np.zeros(len(levels), int), values.shape[1])


def test_a_persons_profile_is_the_mean_of_their_other_days():
    values, observed, bins = day_batch([1, 3, 8, 100])
    profiles = person_profiles(values, observed, bins, np.array([4, 4, 4, 5]), np.full((BINS, 1), -2.0))
    np.testing.assert_allclose(profiles[:, 0, 0], [5.5, 4.5, 2.0, -2.0], rtol=1e-6)
    np.testing.assert_allclose(profiles, np.broadcast_to(profiles[:, :1], profiles.shape), rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), poison=st.sampled_from([np.nan, np.inf, 1e30]))
def test_a_window_never_reaches_its_own_profile(seed, poison):
    rng = np.random.default_rng(seed)
    values, observed, bins = day_batch(rng.normal(size=4))
    person = np.array([0, 0, 1, 0])
    cohort = np.zeros((BINS, 1))
    before = person_profiles(values, observed, bins, person, cohort)
    values[1] = poison
    with np.errstate(invalid="ignore"):
        after = person_profiles(values, observed, bins, person, cohort)
    assert (before[1] == after[1]).all()
    assert (before[2] == after[2]).all()


def test_hours_nobody_recorded_fall_back_and_midnight_wraps():
    values, observed, bins = day_batch([2.0, 4.0])
    observed[:, 60:-60] = False
    cohort = np.full((BINS, 1), -2.0)
    profiles = person_profiles(values, observed, bins, np.array([0, 0]), cohort)
    assert profiles[0, BINS // 2, 0] == -2.0
    np.testing.assert_allclose(profiles[0, [0, -1], 0], 4.0, rtol=1e-6)


def test_the_cohort_follows_local_time():
    minutes = BINS * BIN_MINUTES
    local = np.arange(minutes) + 600
    values = np.where((local % minutes >= 720) & (local % minutes < 960), 5.0, 1.0).astype(np.float32)[None, :, None]
    bins = time_bins(np.array([600]), minutes)
    profile = cohort_profile([(values, np.ones(values.shape, bool), bins)], 1)
    assert profile[14 * 6, 0] == pytest.approx(5.0, abs=0.01)
    assert profile[2 * 6, 0] == pytest.approx(1.0, abs=0.01)
