"""Encoded windows: exact where cells are whole numbers, within the stated error elsewhere."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow_datasets.proto import tf_example_pb2

from lsm_jax.data.codec import RecordEncoder, encode_cells, parse_record
from lsm_jax.windows import Event, Window

CHANNELS = ("heart_rate", "activity_count", "glucose")


def window_of(values: np.ndarray, observed: np.ndarray, **parts) -> Window:
    return Window(
        values=np.where(observed, values, 0).astype(np.float32),
        observed=observed,
        channels=CHANNELS[: values.shape[1]],
        participant="0123456789abcdef",
        start=dt.datetime(2024, 2, 29, 23, 0, tzinfo=dt.UTC),
        **parts,
    )


def stored(window: Window) -> Window:
    return parse_record(RecordEncoder(window.channels).record(window), len(window.channels)).window(window.channels)


shapes = st.tuples(st.integers(1, 40), st.integers(1, 3))


@given(st.data(), shapes)
def test_any_finite_cells_come_back_within_the_stated_error(data, shape) -> None:
    finite = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)
    values = data.draw(hnp.arrays(np.float32, shape, elements=finite))
    observed = data.draw(hnp.arrays(np.bool_, shape))
    window = window_of(values, observed)
    back = stored(window)
    np.testing.assert_array_equal(back.observed, observed)
    assert not back.values[~observed].any()
    for column in range(shape[1]):
        seen = window.values[observed[:, column], column].astype(np.float64)
        if not seen.size:
            continue
        ends = np.spacing(np.float32(np.abs(seen).max())).astype(np.float64)
        allowed = max(np.ptp(seen) / 32_764, ends, 5e-31) + 2 * ends
        assert np.abs(back.values[observed[:, column], column] - seen).max() <= allowed


@given(st.data(), shapes, st.integers(-100_000, 100_000))
def test_whole_numbers_come_back_exactly(data, shape, base) -> None:
    values = base + data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 65_534)))
    observed = data.draw(hnp.arrays(np.bool_, shape))
    window = window_of(values, observed)
    np.testing.assert_array_equal(stored(window).values, window.values)


@given(st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False), st.integers(1, 30))
def test_a_channel_with_one_value_comes_back_exactly(value, steps) -> None:
    window = window_of(np.full((steps, 1), value, np.float32), np.ones((steps, 1), bool))
    np.testing.assert_array_equal(stored(window).values, window.values)


def test_everything_beside_the_cells_comes_back() -> None:
    window = window_of(
        np.zeros((30, 2)),
        np.ones((30, 2), bool),
        utc_offset_minutes=-210,
        minutes_per_step=1,
        labels={"age": 41.5, "sex": "F", "unknown": float("nan")},
        events=(Event("sleep", "asleep", 0, 20), Event("mood", "calm", 7, 7)),
    )
    back = stored(window)
    assert back.labels == {"age": 41.5, "sex": "F"}, "a label that is not a number is no label"
    assert (back.events, back.start, back.participant) == (window.events, window.start, window.participant)
    assert (back.utc_offset_minutes, back.minutes_per_step, back.channels) == (-210, 1, window.channels)


def test_days_that_lack_half_their_cells_take_less_than_a_third_of_raw_float32(tmp_path) -> None:
    """Half is what the papers' days lack; a walk in the remaining half compresses as badly as signals come."""
    random = np.random.default_rng(0)
    writer = ArrayRecordWriter(str(tmp_path / "walk"), "group_size:1")
    for _ in range(100):
        values = 80 + np.cumsum(random.normal(0, 0.3, (1440, 3)), axis=0)
        observed = np.ones((1440, 3), bool)
        for column, start in enumerate(random.integers(0, 720, 3)):
            observed[start : start + 720, column] = False
        writer.write(RecordEncoder(CHANNELS).record(window_of(values, observed)))
    writer.close()
    assert (tmp_path / "walk").stat().st_size < 0.33 * 100 * 1440 * 3 * 4


def test_missing_cells_take_the_code_zero_and_no_other_cell_does() -> None:
    random = np.random.default_rng(1)
    observed = random.random((500, 3)) < 0.5
    codes, _, _ = encode_cells(window_of(random.normal(828, 1e-4, (500, 3)), observed))
    np.testing.assert_array_equal(codes.T != 0, observed)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_record_are_a_value_error(garbage) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_record(garbage, 3)


@given(st.sampled_from(("offset", "step")), st.floats(width=32) | st.floats(2.0**100, 2.0**127, width=32))
def test_a_damaged_scale_is_a_value_error_or_gives_finite_values(part, damage) -> None:
    window = window_of(np.arange(60.0).reshape(20, 3), np.ones((20, 3), bool))
    example = tf_example_pb2.Example.FromString(RecordEncoder(CHANNELS).record(window))
    example.features.feature[part].float_list.value[1] = damage
    try:
        back = parse_record(example.SerializeToString(), 3).window(CHANNELS)
    except ValueError:
        assert not abs(damage) <= 2.0**110
        return
    assert np.isfinite(back.values).all()


@given(st.data())
def test_a_damaged_record_is_a_value_error_or_a_window_without_nan(data) -> None:
    window = window_of(np.arange(60.0).reshape(20, 3), np.ones((20, 3), bool), labels={"age": 3.0})
    damaged = bytearray(RecordEncoder(CHANNELS).record(window))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        back = parse_record(bytes(damaged), 3).window(CHANNELS)
    except (ValueError, TypeError, OverflowError):
        return
    assert np.isfinite(back.values).all()
