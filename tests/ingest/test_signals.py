"""Minute features: right values for simple signals, and missing samples do not change the rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.channels import REGISTRY
from lsm_jax.errors import UserError
from lsm_jax.ingest.signals.grid import mean_level, minute_grid, quantile
from lsm_jax.ingest.signals.heart import heart_beat_features
from lsm_jax.ingest.signals.motion import acceleration_features
from lsm_jax.ingest.signals.skin import robust_line, skin_conductance_features, skin_temperature_features

RATE = 32.0
START = 1_700_000_040.0  # a whole minute


def acceleration(*axes, minutes=4):
    """[minutes, 1920, 3] of three functions of time (s), in g."""
    time = np.arange(int(minutes * 60 * RATE)) / RATE
    samples = np.stack([np.broadcast_to(axis(time), time.shape) for axis in axes], axis=1)
    return minute_grid(samples, START, RATE)[1]


def still(value):
    return lambda time: np.full_like(time, value)


def sine(hertz, size=0.5, offset=0.0):
    return lambda time: offset + size * np.sin(2 * np.pi * hertz * time + 0.3)


def assert_plausible(features):
    for name, values in features.items():
        kind = REGISTRY[name]
        known = values[~np.isnan(values)]
        assert np.isfinite(known).all()
        assert ((known >= kind.low) & (known <= kind.high)).all(), name


# The grid of minutes.


@given(
    lead=st.integers(0, 239), count=st.integers(1, 700), rate=st.sampled_from([1.0, 4.0]), day=st.integers(0, 20_000)
)
def test_grid_keeps_every_sample_at_its_time(lead, count, rate, day):
    start = day * 86400 + lead / 4 if rate == 4 else day * 86400.0 + lead // 4
    samples = np.arange(count, dtype=float)
    first, grid = minute_grid(samples, start, rate)
    flat = grid.reshape(-1)
    place = np.flatnonzero(~np.isnan(flat))
    np.testing.assert_array_equal(flat[place], samples)
    np.testing.assert_allclose(first * 60 + place / rate, start + samples / rate)


def test_grid_refuses_a_rate_without_whole_minutes():
    with pytest.raises(UserError, match="whole number of samples"):
        minute_grid(np.zeros(10), 0.0, 0.33)


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=30), st.floats(0, 1))
def test_quantile_equals_numpy(values, q):
    row = np.array(values)
    if np.isnan(row).all():
        assert np.isnan(quantile(row[None], q)[0])
    else:
        np.testing.assert_allclose(quantile(row[None], q)[0], np.nanquantile(row, q), rtol=1e-9, atol=1e-6)


# Heart beats.


def beats(interval, start=START):
    interval = np.asarray(interval, float)
    return start + np.cumsum(interval), interval


def test_a_steady_heart_has_no_variability():
    features = heart_beat_features(*beats(np.full(300, 0.75)), int(START // 60), 3)
    np.testing.assert_allclose(features["heart_rate"], 80)
    for name in ("rmssd", "sdnn", "rr_entropy", "rr_difference_entropy", "pnn20"):
        np.testing.assert_allclose(features[name], 0, atol=1e-9)
    for name in ("rr_20th_percentile", "rr_median", "rr_80th_percentile"):
        np.testing.assert_allclose(features[name], 750)
    np.testing.assert_allclose(features["rr_percent_valid"], 1, atol=0.02)


def test_rmssd_and_entropy_of_alternating_beats():
    features = heart_beat_features(*beats(np.tile([0.75, 0.8125], 100)), int(START // 60), 2)
    np.testing.assert_allclose(features["rmssd"], 62.5)
    np.testing.assert_allclose(features["pnn20"], 1)
    np.testing.assert_allclose(features["rr_entropy"], np.log(2), atol=0.01)
    np.testing.assert_allclose(features["rr_difference_entropy"], np.log(2), atol=0.01)


def test_one_ectopic_beat_changes_only_the_valid_share():
    regular = np.full(80, 0.75)
    ectopic = regular.copy()
    ectopic[30:32] = 0.45, 1.05
    clean = heart_beat_features(*beats(regular), int(START // 60), 1)
    disturbed = heart_beat_features(*beats(ectopic), int(START // 60), 1)
    assert disturbed["rr_percent_valid"][0] < clean["rr_percent_valid"][0]
    for name in clean.keys() - {"rr_percent_valid"}:
        np.testing.assert_allclose(disturbed[name], clean[name], atol=1e-9)


def test_a_difference_never_spans_lost_beats():
    seconds, interval = beats(np.r_[np.full(20, 0.7), np.full(20, 0.8)])
    lost = np.r_[np.arange(15), np.arange(25, 40)]  # what lies between the two rhythms was not recorded
    features = heart_beat_features(seconds[lost], interval[lost], int(START // 60), 1)
    np.testing.assert_allclose(features["rmssd"], 0, atol=1e-9)
    assert features["sdnn"][0] > 40


def test_a_minute_with_few_beats_has_only_a_valid_share():
    seconds, interval = beats(np.full(5, 0.8))
    features = heart_beat_features(seconds, interval, int(START // 60), 2)
    np.testing.assert_allclose(features["rr_percent_valid"], [4 / 60, 0])
    for name in features.keys() - {"rr_percent_valid"}:
        assert np.isnan(features[name]).all(), name


@given(st.lists(st.floats(0, 3) | st.sampled_from([float("nan"), float("inf"), -1.0]), max_size=200))
def test_any_intervals_give_plausible_features_or_none(intervals):
    interval = np.array(intervals, float)
    seconds = START + np.cumsum(np.clip(np.nan_to_num(interval, posinf=1), 0.1, 3))
    features = heart_beat_features(seconds, interval, int(START // 60), 8)
    assert all(len(values) == 8 for values in features.values())
    assert_plausible(features)


# Motion.


@pytest.mark.parametrize("hertz", [0.5, 1.0, 2.0, 4.0])
def test_zero_crossings_of_a_sine_come_twice_a_period(hertz):
    features = acceleration_features(acceleration(sine(hertz), still(0), still(1)), RATE)
    seconds = (2 ** (features["acc_zero_crossing_mean"] / 25.6) - 1) / 32
    np.testing.assert_allclose(seconds, 1 / (2 * hertz), rtol=0.02)
    assert (features["acc_zero_crossing_sd"] < 15).all()  # below half a sample


def test_energy_and_axis_of_a_sine():
    features = acceleration_features(acceleration(sine(2, 0.5), still(0.25), still(1)), RATE)
    np.testing.assert_allclose(features["acc_log_energy"], 25.6 * np.log2(1 + 256 * 0.5 / np.sqrt(2)), rtol=0.005)
    np.testing.assert_allclose(features["acc_log_energy_ratio"], 256, atol=1)
    np.testing.assert_allclose(features["acc_axis_mean"], 128, atol=1)  # along x, where gravity has no part
    lag = np.cos(2 * np.pi * 2 / 32)
    np.testing.assert_allclose(features["jerk_autocorrelation"], 128 * (1 + lag), rtol=0.01)


def test_kurtosis_separates_bursts_from_steady_motion():
    steady = acceleration_features(acceleration(sine(2), still(0), still(1)), RATE)
    burst = acceleration_features(acceleration(lambda time: sine(2)(time) * (time % 60 < 5), still(0), still(1)), RATE)
    assert (burst["acc_kurtosis"] > steady["acc_kurtosis"] + 50).all()


def test_features_do_not_depend_on_how_the_watch_is_turned():
    """All but the axis mean and the sleep coefficient, which refer to the device's own axes."""
    rng = np.random.default_rng(0)
    grid = acceleration(sine(2, 0.6), sine(1.3, 0.3), sine(3.1, 0.15, 1)) + rng.normal(0, 0.01, (4, 1920, 3))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    plain, turned = (acceleration_features(turn, RATE) for turn in (grid, grid @ rotation))
    for name in plain.keys() - {"acc_axis_mean", "sleep_coefficient"}:
        np.testing.assert_allclose(turned[name], plain[name], rtol=1e-6, atol=1e-6, err_msg=name)


def test_a_watch_on_the_table_is_at_the_floor_of_every_scale():
    features = acceleration_features(acceleration(still(0), still(0), still(1)), RATE)
    for name in ("steps", "acc_log_energy", "acc_covariance_condition", "sleep_coefficient", "acc_zero_crossing_sd"):
        np.testing.assert_allclose(features[name], 0, atol=1e-3, err_msg=name)
    np.testing.assert_allclose(features["acc_zero_crossing_mean"], 25.6 * np.log2(1 + 60 * 32))
    assert_plausible(features)


@pytest.mark.parametrize("cadence", [1.5, 1.9, 2.8])
def test_steps_of_a_walk_are_counted_and_those_of_a_gesture_are_not(cadence):
    walk = acceleration(still(0), sine(cadence / 2, 0.1), sine(cadence, 0.4, 1))
    steps = acceleration_features(walk, RATE)["steps"]
    np.testing.assert_allclose(steps, 60 * cadence, rtol=0.03)
    gesture = acceleration(
        still(0), still(0), lambda time: 1 + 0.4 * np.sin(2 * np.pi * cadence * time) * (time % 30 < 2)
    )
    assert (acceleration_features(gesture, RATE)["steps"] == 0).all()


def test_a_gap_makes_its_minute_missing_and_leaves_the_others_alone():
    grid = acceleration(sine(2), sine(1, 0.2), still(1))
    whole = acceleration_features(grid, RATE)
    grid[2] = np.nan
    grid[0, 100:300] = np.nan
    gapped = acceleration_features(grid, RATE)
    for name, values in gapped.items():
        assert list(np.isnan(values)) == [False, False, True, False], name
    for name in ("acc_log_energy", "acc_log_energy_ratio", "jerk_autocorrelation", "sleep_coefficient"):
        np.testing.assert_allclose(gapped[name][[0, 1, 3]], whole[name][[0, 1, 3]], rtol=0.05, err_msg=name)


def test_features_need_half_a_minute_of_motion():
    samples = np.ones((int(60 * RATE) + 800, 3))
    _, grid = minute_grid(samples, START, RATE)
    assert list(np.isnan(acceleration_features(grid, RATE)["acc_log_energy"])) == [False, True]


@given(
    seed=st.integers(0, 2**31), size=st.sampled_from([0.0, 1e-3, 1.0, 16.0]), missing=st.sampled_from([0, 0.3, 0.7, 1])
)
def test_any_motion_gives_plausible_features_or_none(seed, size, missing):
    rng = np.random.default_rng(seed)
    grid = rng.normal(0, size, (2, 600, 3))
    grid[rng.random((2, 600)) < missing] = np.nan
    features = acceleration_features(grid, 10.0)
    assert len(features) == 10
    assert_plausible(features)
    assert missing < 1 or all(np.isnan(values).all() for values in features.values())


def test_a_low_sampling_rate_of_acceleration_is_refused():
    with pytest.raises(UserError, match="too slow"):
        acceleration_features(np.zeros((1, 240, 3)), 4.0)


# Skin.


def test_a_ramp_has_its_slope_and_the_level_of_its_middle():
    time = np.arange(3 * 240) / 240
    _, grid = minute_grid(2 + 0.5 * time, START, 4.0)
    features = skin_conductance_features(grid)
    np.testing.assert_allclose(features["skin_conductance_slope"], 0.5)
    np.testing.assert_allclose(features["skin_conductance_level"], [2.25, 2.75, 3.25], atol=0.002)
    np.testing.assert_allclose(features["eda_lead_contact"], 240)


def test_spikes_and_a_loose_electrode_do_not_change_the_line():
    rng = np.random.default_rng(1)
    _, clean = minute_grid(np.full(240, 5.0), START, 4.0)
    spoilt = clean.copy()
    spoilt[0, rng.choice(240, 30, replace=False)] = 60
    spoilt[0, 200:225] = 0
    features = skin_conductance_features(spoilt)
    np.testing.assert_allclose(features["skin_conductance_level"], 5)
    np.testing.assert_allclose(features["skin_conductance_slope"], 0, atol=1e-9)
    assert features["eda_lead_contact"][0] == 215


def test_no_contact_gives_a_contact_count_of_zero_and_no_level():
    features = skin_conductance_features(np.zeros((1, 240)))
    assert features["eda_lead_contact"][0] == 0
    assert np.isnan(features["skin_conductance_level"][0]) and np.isnan(features["skin_conductance_slope"][0])


def test_a_failed_thermometer_is_missing():
    grid = np.full((2, 240), 33.0)
    grid[1] = 228.9
    features = skin_temperature_features(grid)
    np.testing.assert_allclose(features["skin_temperature"], [33, np.nan])
    np.testing.assert_allclose(features["skin_temperature_slope"], [0, np.nan])


@given(
    samples=st.integers(1, 300),
    values=st.lists(st.floats(-50, 150) | st.just(float("nan")), min_size=1, max_size=40),
    shift=st.integers(-5, 5),
)
def test_robust_line_follows_a_shift(samples, values, shift):
    grid = np.resize(np.array(values), (2, samples))
    level, slope = robust_line(grid)
    shifted_level, shifted_slope = robust_line(grid + shift)
    np.testing.assert_allclose(shifted_level, level + shift, atol=1e-9)
    np.testing.assert_allclose(shifted_slope, slope, atol=1e-9)
    assert np.isnan(level).all() or not np.isnan(grid).all()


def test_mean_level_ignores_implausible_samples():
    grid = np.full((2, 60), 70.0)
    grid[0, :20] = 400
    grid[1, :40] = 0
    np.testing.assert_allclose(mean_level(grid, 25, 240), [70, np.nan])
