"""From records to days: the wall clock, repeats, disorder, several sensors, events."""

import datetime as dt
import itertools
import zoneinfo

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.errors import UserError
from lsm_jax.ingest.minutes.days import day_windows
from lsm_jax.ingest.minutes.series import minute_series
from lsm_jax.ingest.reader import PersonRecord, RecordEvent
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.text import ISO_FORMATS, epoch_seconds

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def minute_of(year, month, day, hour=0, minute=0, zone=dt.UTC, fold=0):
    return int(dt.datetime(year, month, day, hour, minute, tzinfo=zone, fold=fold).timestamp()) // 60


def series(channel, minutes, values):
    """Samples of one sensor: channel, second, value."""
    return channel, np.array(minutes, np.int64) * 60, np.array(values, np.float64)


def cut(*samples, zone="UTC", events=()):
    report = IngestReport()
    all_series = tuple(minute_series(*each, report) for each in samples)
    record = PersonRecord("anna", all_series, tuple(events), {"age": 40.0}, zone)
    channels = tuple(dict.fromkeys(each.channel for each in all_series))
    return list(day_windows(record, channels, "salt", report)), report


def test_a_person_of_one_minute_gives_one_day():
    (window,), report = cut(series("steps", [minute_of(2024, 5, 1, 23, 59)], [7]))
    assert window.observed.sum() == 1 and window.values[1439, 0] == 7
    assert window.start == dt.datetime(2024, 5, 1, tzinfo=dt.UTC) and window.labels == {"age": 40.0}
    assert window.participant != "anna" and len(window.participant) == 16
    assert (report.people, report.days) == (1, 1)


def test_the_skipped_hour_of_spring_is_unobserved():
    start = minute_of(2024, 3, 31, zone=BERLIN)
    (window,), _ = cut(series("heart_rate", range(start, start + 23 * 60), [60] * 1380), zone="Europe/Berlin")
    hours = window.observed[:, 0].reshape(24, 60).all(axis=1)
    assert hours.tolist() == [hour != 2 for hour in range(24)]
    assert window.utc_offset_minutes == 60 and window.start == dt.datetime(2024, 3, 30, 23, tzinfo=dt.UTC)


def test_of_the_repeated_hour_of_autumn_the_first_pass_is_kept():
    start = minute_of(2024, 10, 27, zone=BERLIN)
    values = np.repeat(np.arange(60, 85), 60)  # 60 bpm in the first hour of the day, 84 in its 25th
    (window,), report = cut(series("heart_rate", range(start, start + 25 * 60), values), zone="Europe/Berlin")
    assert window.observed.all() and window.utc_offset_minutes == 120
    assert window.values[2 * 60, 0] == 62 and window.values[3 * 60, 0] == 64
    assert report.repeated_hour_minutes == 60


def test_wall_clock_text_at_both_changes_of_summer_time():
    text = ["2024-03-31 02:30:00", "2024-10-27 02:30:00", "2024-10-27T02:30:00+01:00", "1959-01-01 00:00", "?"]
    seconds, reason = epoch_seconds(pl.Series(text), ISO_FORMATS, "Europe/Berlin")
    first, second = (minute_of(2024, 10, 27, 2, 30, BERLIN, fold) * 60 for fold in (0, 1))
    assert seconds.to_list() == [None, first, second, None, None]
    assert "skipped" in reason[0] and "1990" in reason[3] and "not readable" in reason[4]


def test_overlapping_sensors_average_levels_and_take_the_largest_burst():
    day = minute_of(2024, 5, 1)
    (window,), report = cut(
        series("glucose", [day, day + 1], [5, 5]),
        series("glucose", [day + 1, day + 2], [7, 7]),
        series("steps", [day], [0]),
        series("steps", [day], [90]),
    )
    assert window.values[:3, 0].tolist() == [5, 6, 7] and window.values[0, 1] == 90
    assert report.overlaps == {"glucose": 1, "steps": 1}


def test_an_impossible_value_is_removed_before_sensors_are_averaged():
    day = minute_of(2024, 5, 1)
    (window,), report = cut(series("glucose", [day, day + 1], [5, np.inf]), series("glucose", [day, day + 1], [500, 6]))
    assert window.values[:2, 0].tolist() == [5, 6] and report.implausible == {"glucose": 2}


def test_a_day_without_any_value_is_left_out_and_counted():
    day = minute_of(2024, 5, 1)
    windows, report = cut(series("heart_rate", [day, day + 1440, day + 2880], [60, np.nan, 999]))
    assert len(windows) == 1 and report.days_without_data == 2
    windows, report = cut(series("heart_rate", [day], [np.nan]))
    assert windows == [] and report.people_without_data == 1


def test_events_are_clipped_to_their_days():
    day = minute_of(2024, 5, 1)
    events = [
        RecordEvent("sleep", "asleep", day + 1380, day + 1440 + 420),
        RecordEvent("meal", "meal", day + 720, day + 720),
        RecordEvent("meal", "meal", day + 9 * 1440, day + 9 * 1440 + 1),
    ]
    windows, _ = cut(series("steps", [day, day + 1440], [1, 1]), events=events)
    spans = [[(event.kind, event.start, event.end) for event in window.events] for window in windows]
    assert spans == [[("meal", 720, 720), ("sleep", 1380, 1440)], [("sleep", 0, 420)]]


def test_an_unknown_channel_is_refused_by_name():
    with pytest.raises(UserError, match="heart_rat"):
        cut(series("heart_rat", [0], [1]))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(40, 45)), min_size=1, max_size=60))
def test_disorder_and_repeats_lose_no_minute(samples):
    day = minute_of(2024, 5, 1)
    minutes = [day + minute for minute, _ in samples]
    (window,), report = cut(series("heart_rate", minutes, [value for _, value in samples]))
    different = {minute: {value for each, value in samples if each == minute} for minute, _ in samples}
    assert np.flatnonzero(window.observed).tolist() == sorted(different)
    for minute, values in different.items():
        assert window.values[minute, 0] == pytest.approx(sum(values) / len(values))
    assert report.duplicates["heart_rate"] == len(samples) - sum(map(len, different.values()))
    assert report.conflicts["heart_rate"] == sum(map(len, different.values())) - len(different)
    assert report.disordered == sum(a > b for a, b in itertools.pairwise(minutes))


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=30, unique=True),
    st.integers(2, 20),
)
def test_slow_samples_fill_their_own_period_and_no_more(minutes, period):
    report = IngestReport()
    filled = minute_series(
        "acc_kurtosis", np.array(minutes) * 60, np.array(minutes, np.float64), report, period_minutes=period
    )
    expected = {}
    for minute in sorted(minutes):
        expected.update(dict.fromkeys(range(minute, minute + period), minute))
    assert dict(zip(filled.minute.tolist(), filled.value.tolist(), strict=True)) == expected


@given(
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from([0, 24, 241, -np.inf, np.inf, 60, 62, 240])), max_size=40),
    st.sampled_from(["mean", "max", "min", "last"]),
)
def test_an_impossible_sample_is_ignored(samples, aggregate):
    def minutes(samples):
        report = IngestReport()
        second, value = np.array([*zip(*samples, strict=True)] or [[], []], float)
        made = minute_series("heart_rate", second, value, report, aggregate=aggregate)
        seen = ~np.isnan(made.value)
        return dict(zip(made.minute[seen].tolist(), made.value[seen].tolist(), strict=True)), report

    real = [(second, value) for second, value in samples if 25 <= value <= 240]
    found, report = minutes(samples)
    assert found == minutes(real)[0]
    assert report.implausible["heart_rate"] == len(samples) - len(real)


def test_only_negative_samples_of_a_sum_are_impossible():
    report = IngestReport()
    second = np.array([0, 20, 40])
    parts = minute_series("met", second, np.array([0.4, 0.4, -5]), report, aggregate="sum")
    assert parts.value.tolist() == pytest.approx([0.8]) and report.implausible == {"met": 1}
    slopes = minute_series("skin_temperature_slope", second, np.array([1.0, -3, 0]), report, aggregate="sum")
    assert slopes.value.tolist() == [-2]


def test_samples_within_a_second_are_separate():
    text = [f"2024-05-01 00:00:00.{millisecond:03d}" for millisecond in (0, 250, 500, 500, 750)]
    report = IngestReport()
    for cells, formats in (
        (pl.Series(text), ISO_FORMATS),
        (pl.Series(text).str.to_datetime(time_unit="ns"), ISO_FORMATS),
        (pl.Series([1714521600.0, 1714521600.25, 1714521600.5, 1714521600.5, 1714521600.75]), ("unix_s",)),
        (pl.Series([1714521600000, 1714521600250, 1714521600500, 1714521600500, 1714521600750]), ("unix_ms",)),
    ):
        second, reason = epoch_seconds(cells, formats, "Europe/Berlin" if cells.dtype == pl.String else "UTC")
        assert reason.null_count() == 5
        made = minute_series("heart_rate", second.to_numpy(), np.array([60.0, 62, 64, 66, 68]), report)
        assert made.value.tolist() == [64] and made.minute.dtype == np.int64
    assert report.conflicts == {"heart_rate": 4}


@pytest.mark.parametrize(
    ("aggregate", "expected"), [("mean", 2.0), ("sum", 6.0), ("max", 3.0), ("min", 1.0), ("last", 2.0)]
)
def test_seconds_become_minutes(aggregate, expected):
    filled = minute_series(
        "steps", np.array([0, 10, 59, 60]), np.array([1.0, 3, 2, 9]), IngestReport(), aggregate=aggregate
    )
    assert filled.minute.tolist() == [0, 1] and filled.value.tolist() == [expected, 9]


def counts(rows, **settings):
    """{minute: steps} of (second, count) rows, and the report."""
    report = IngestReport()
    second, value = np.array([*zip(*rows, strict=True)], float)
    made = minute_series("steps", second, value, report, **settings)
    seen = ~np.isnan(made.value)
    return dict(zip(made.minute[seen].tolist(), made.value[seen].round(4).tolist(), strict=True)), report


def test_counts_are_added_spread_and_scaled_to_what_was_covered():
    assert counts([(0, 10), (30, 10)])[0] == {0: 20}
    assert counts([(0, 250), (300, 250)], period_minutes=5)[0] == dict.fromkeys(range(10), 50)
    assert counts([(30, 60), (90, 60)], length=np.array([60.0, 60]))[0] == {0: 60, 1: 60, 2: 60}
    # Half of minute 1 is lost: its other half says 20 steps a minute. Of minute 3 a sixth is not enough to say.
    half = [(0, 10), (30, 10), (60, 10), (120, 10), (150, 10)]
    assert counts(half, period_minutes=0.5)[0] == {0: 20, 1: 20, 2: 20}
    known, report = counts([(10 * place, 1) for place in (*range(19), 24)])
    assert known == {0: 6, 1: 6, 2: 6} and report.partial_minutes == {"steps": 2}
    assert counts([(0, 250)], period_minutes=5, aggregate="mean")[0] == dict.fromkeys(range(5), 250)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]])
def test_counts_that_start_together_are_spread_each_over_its_own_interval(order):
    rows, length = np.array([(0, 40), (0, 100), (0, 40), (0, 3)]), np.array([60, 600, 60, np.nan])
    known, report = counts(rows[order].tolist(), length=length[order], row=np.array([0, 1, 0, 2])[order])
    assert known == {0: 53} | dict.fromkeys(range(1, 10), 10) and report.duplicates == {"steps": 1}
    # Equal intervals are one, of which half a minute is known.
    assert counts([(0, 5), (0, 6)], length=np.array([30.0, 30]))[0] == {0: 22}


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 90)), min_size=1, max_size=30, unique_by=lambda row: row[0])
)
def test_spread_counts_keep_their_sum(rows):
    rows = [(120 * second, count) for second, count in sorted(rows)]
    spread, _ = counts(rows, period_minutes=2)
    assert sum(spread.values()) == pytest.approx(sum(count for _, count in rows), abs=0.01)


def test_a_running_total_becomes_counts_and_its_resets_are_recognised():
    totals = [(0, 100), (60, 110), (120, 110), (300, 140), (360, 6), (20000, 5000), (20060, 5007)]
    assert counts(totals, aggregate="difference")[0] == {0: 10, 1: 0, 2: 10, 3: 10, 4: 10, 5: 6, 333: 7}


def test_rows_of_one_time_stamp_are_aggregated_and_only_equal_rows_are_repeats():
    same = [(0, 1)] * 30
    assert counts(same, aggregate="sum")[0] == {0: 30}
    assert counts(same)[0] == {0: 1} and counts(same)[1].duplicates == {"steps": 29}
    assert counts(same, row=np.arange(30))[0] == {0: 30}
    assert counts([(0, 3), (0, 4), (0, 3)])[0] == {0: 7}
