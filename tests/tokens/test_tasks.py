import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.tokens.tasks import GENERATIVE_TASKS, MARKS, OPENMHC_SCENARIOS, Context, Task, hidden_tokens

PATCHES, GROUPS = 24, 5


def rng(seed=0):
    return np.random.default_rng(seed)


def recorded_strategy():
    return st.tuples(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.05, 0.3, 0.8, 1.0])).map(
        lambda drawn: rng(drawn[0]).random((PATCHES, GROUPS)) < drawn[1]
    )


def test_the_suite_is_the_papers_tasks():
    assert [(task.name, task.setting) for task in GENERATIVE_TASKS] == [
        *(("random_imputation", setting) for setting in ("30%", "50%", "80%")),
        *(("temporal_interpolation", setting) for setting in ("10min", "30min", "60min", "180min")),
        *(("temporal_extrapolation", setting) for setting in ("10min", "30min", "60min", "180min")),
        *(("sensor_imputation", setting) for setting in ("25%", "50%", "75%")),
    ]


@settings(max_examples=60, deadline=None)
@given(recorded=recorded_strategy(), task=st.sampled_from(GENERATIVE_TASKS), seed=st.integers(0, 1000))
def test_hides_recorded_tokens_and_leaves_some(recorded, task, seed):
    hidden = hidden_tokens(task, recorded, 10, rng(seed))
    if hidden is None:
        return
    assert hidden.any()
    assert not (hidden & ~recorded).any()
    assert (recorded & ~hidden).any()
    assert (hidden == hidden_tokens(task, recorded, 10, rng(seed))).all()


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("count", [2, 3, 10, 77])
def test_random_hides_an_exact_count(share, count):
    recorded = np.zeros((PATCHES, GROUPS), bool)
    recorded.ravel()[rng(1).choice(recorded.size, count, replace=False)] = True
    hidden = hidden_tokens(Task("random_imputation", share=share), recorded, 10, rng())
    assert hidden.sum() == min(max(int(np.floor(share * count + 0.5)), 1), count - 1)


@pytest.mark.parametrize(
    ("share", "groups", "expected"), [(0.25, 4, 1), (0.5, 5, 3), (0.75, 4, 3), (0.25, 2, 1), (0.75, 2, 1), (0.5, 1, 0)]
)
def test_sensor_hides_whole_channels_never_all(share, groups, expected):
    recorded = np.zeros((PATCHES, GROUPS), bool)
    recorded[3:20, :groups] = True
    hidden = hidden_tokens(Task("sensor_imputation", share=share), recorded, 10, rng())
    if not expected:
        assert hidden is None
        return
    columns = hidden.any(axis=0)
    assert columns.sum() == expected
    assert (hidden == recorded & columns).all()


@settings(max_examples=40, deadline=None)
@given(recorded=recorded_strategy(), seed=st.integers(0, 1000))
def test_interpolation_lies_inside_the_recorded_span(recorded, seed):
    hidden = hidden_tokens(Task("temporal_interpolation", minutes=60), recorded, 10, rng(seed))
    if hidden is None:
        return
    patches = np.flatnonzero(hidden.any(axis=1))
    span = np.flatnonzero(recorded.any(axis=1))
    start = next(s for s in range(PATCHES) if (hidden == blocked(recorded, s, 6)).all())
    assert span[0] < start
    assert start + 6 <= span[-1]
    assert patches[-1] - patches[0] < 6


def blocked(recorded, start, length):
    hidden = np.zeros_like(recorded)
    hidden[start : start + length] = recorded[start : start + length]
    return hidden


def test_interpolation_reaches_every_start():
    recorded = np.ones((6, 1), bool)
    task = Task("temporal_interpolation", minutes=20)
    starts = {int(np.flatnonzero(hidden_tokens(task, recorded, 10, rng(seed))[:, 0])[0]) for seed in range(60)}
    assert starts == {1, 2, 3}


def test_extrapolation_hides_the_end_of_the_recorded_span():
    recorded = np.zeros((PATCHES, 2), bool)
    recorded[4:15, 0] = True
    recorded[4:17, 1] = True
    hidden = hidden_tokens(Task("temporal_extrapolation", minutes=30), recorded, 10, rng())
    assert np.argwhere(hidden).tolist() == [[14, 0], [14, 1], [15, 1], [16, 1]]


@pytest.mark.parametrize(
    "task", [Task("temporal_interpolation", minutes=60), Task("temporal_extrapolation", minutes=60)]
)
def test_a_session_shorter_than_the_block_is_left_out(task):
    recorded = np.zeros((PATCHES, 2), bool)
    recorded[4:9] = True
    assert hidden_tokens(task, recorded, 10, rng()) is None


def test_a_block_that_is_no_whole_number_of_patches_is_left_out():
    assert hidden_tokens(Task("temporal_extrapolation", minutes=10), np.ones((48, 2), bool), 30, rng()) is None


@pytest.mark.parametrize("task", GENERATIVE_TASKS)
def test_nothing_recorded_is_left_out(task):
    assert hidden_tokens(task, np.zeros((PATCHES, GROUPS), bool), 10, rng()) is None


CONTEXT = Context(
    {
        name: np.isin(np.arange(PATCHES), patches)
        for name, patches in zip(MARKS, ([2, 3, 4, 9], [12, 13], [13]), strict=True)
    },
    [frozenset({sensor}) for sensor in ("PPG", "PPG", "ACC", "SLEEP", "ENERGY")],
)
SCENARIOS = {task.name: task for task in OPENMHC_SCENARIOS}


@settings(max_examples=60, deadline=None)
@given(recorded=recorded_strategy(), task=st.sampled_from(OPENMHC_SCENARIOS), seed=st.integers(0, 1000))
def test_scenarios_hide_recorded_tokens_and_leave_some(recorded, task, seed):
    hidden = hidden_tokens(task, recorded, 10, rng(seed), CONTEXT)
    if hidden is None:
        return
    assert hidden.any()
    assert not (hidden & ~recorded).any()
    assert (recorded & ~hidden).any()
    assert (hidden == hidden_tokens(task, recorded, 10, rng(seed), CONTEXT)).all()


@given(recorded=recorded_strategy(), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_random_patches_hide_half_of_the_half_hours_of_groups(recorded, seed):
    hidden = hidden_tokens(SCENARIOS["random_patches"], recorded, 10, rng(seed))
    if hidden is None:
        return
    half_hours, hidden = (part.reshape(-1, 3, GROUPS).any(axis=1) for part in (recorded, hidden))
    assert hidden.sum() == np.floor(0.5 * half_hours.sum() + 0.5)
    whole = hidden_tokens(SCENARIOS["random_patches"], np.ones_like(recorded), 10, rng(seed)).reshape(-1, 3, GROUPS)
    assert (whole.all(axis=1) == whole.any(axis=1)).all()


@given(recorded=recorded_strategy(), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_time_blocks_hide_a_quarter_of_the_recorded_time_in_all_groups(recorded, seed):
    hidden = hidden_tokens(SCENARIOS["time_blocks"], recorded, 10, rng(seed))
    if hidden is None:
        return
    patches = recorded.any(axis=1)
    assert hidden.any(axis=1).sum() == max(np.floor(0.25 * patches.sum() + 0.5), 1)
    assert (hidden == recorded & hidden.any(axis=1)[:, None]).all()


def test_signals_hide_half_of_the_groups_or_one_sensor():
    recorded, seen = np.ones((PATCHES, GROUPS), bool), set()
    for seed in range(40):
        hidden = hidden_tokens(SCENARIOS["signals"], recorded, 10, rng(seed), CONTEXT)
        groups = hidden.any(axis=0)
        assert (hidden == groups).all()
        seen.add(tuple(np.flatnonzero(groups).tolist()))
    assert {(0, 1), (2,), (3,), (4,)} < seen
    assert {len(groups) for groups in seen - {(0, 1), (2,), (3,), (4,)}} == {3}


@pytest.mark.parametrize(
    ("name", "patches", "groups"),
    [
        ("sleep_gap", [2, 3, 4, 9], [0, 1, 2, 4]),  # what a sleep tracker says stays
        ("workout_gap", [12, 13], [0, 1, 4]),
        ("intensity_failure", [13], [0, 1, 4]),
    ],
)
def test_semantic_scenarios_hide_the_marked_patches_of_the_sensors_that_fail(name, patches, groups):
    hidden = hidden_tokens(SCENARIOS[name], np.ones((PATCHES, GROUPS), bool), 10, rng(), CONTEXT)
    assert (np.argwhere(hidden) == [(patch, group) for patch in patches for group in groups]).all()
    nothing = Context({mark: np.zeros(PATCHES, bool) for mark in MARKS}, CONTEXT.sensors)
    assert hidden_tokens(SCENARIOS[name], np.ones((PATCHES, GROUPS), bool), 10, rng(), nothing) is None
