"""Withings: arrays in cells, nights, activities, labels of days, damage."""

import datetime as dt
import random
import zoneinfo

import numpy as np
import pytest

from lsm_jax.ingest.detect import detect_format
from tests.ingest.reading import read_source

RAW = "start,duration,value\n"
HR = RAW + '2024-05-14T10:00:00+02:00,[60],[70]\n2024-05-14T10:05:00+02:00,"[60, 120]","[80,90]"\n'


def test_arrays_follow_each_other(tmp_path):
    files = {
        "ann.zip": "no zip",
        "P1/raw_tracker_hr.csv": HR,
        "P1/raw_tracker_steps.csv": RAW + '2024-05-14T10:00:00+02:00,"[60,120]","[100,60]"\n',
        "P1/raw_tracker_distance.csv": RAW + "2024-05-14T10:00:00+02:00,[60],[75.5]\n",
        "P1/raw_tracker_gps-speed.csv": RAW + "2024-05-14T10:00:00+02:00,[60],[7]\n",
    }
    found = read_source("withings", tmp_path, files)
    day = found.only("P1")
    assert day.window.utc_offset_minutes == 120
    assert day.values("heart_rate")[[600, 605, 606, 607]].tolist() == [70, 80, 90, 90]
    assert day.observed("heart_rate").sum() == 4
    assert day.values("steps")[600:603].tolist() == [100, 30, 30] and day.values("distance")[600] == 75.5
    assert "P1/raw_tracker_gps-speed.csv: no channel for gps-speed" in found.report.files_ignored
    assert found.report.rows_read == found.report.rows_kept == 4


def test_counts_of_one_start_and_value_repeat_each_other_only_where_they_last_as_long(tmp_path):
    rows = "".join(f"2024-05-14T10:00:00+02:00,[{length}],[40]\n" for length in (60, 600, 60))
    found = read_source("withings", tmp_path, {"P1/raw_tracker_steps.csv": RAW + rows})
    assert found.only("P1").values("steps")[600:610].tolist() == [44] + [4] * 9
    assert found.report.duplicates == {"steps": 1}


def test_bad_rows_are_set_aside_with_their_reason(tmp_path):
    bad = (
        'never,[60],[70]\n2024-05-14T10:20:00+02:00,"[60,60]",[1]\n2024-05-14T10:21:00+02:00,[60],[x]\n'
        "2024-05-14T10:22:00+02:00,[-5],[70]\n2024-05-14T10:23:00+02:00,[],[]\n"
    )
    found = read_source("withings", tmp_path, {"P1/raw_tracker_hr.csv": HR + bad})
    assert found.only("P1").observed("heart_rate").sum() == 4
    reasons = {reason: entry.samples for reason, entry in found.report.quarantined.items()}
    assert reasons == {
        "time is not readable": ["P1/raw_tracker_hr.csv:4"],
        "duration and value have different lengths": ["P1/raw_tracker_hr.csv:5"],
        "value is not a number": ["P1/raw_tracker_hr.csv:6", "P1/raw_tracker_hr.csv:8"],
        "duration is not from 0 to 7 days": ["P1/raw_tracker_hr.csv:7"],
    }


def test_nights_activities_and_labels_of_days(tmp_path):
    files = {
        "P1/raw_tracker_hr.csv": HR,
        "P1/raw_bed_sleep-state.csv": RAW + '2024-05-14T00:00:00+02:00,"[600,600,300,60]","[0,1,2,3]"\n',
        "P1/sleep.csv": "von,bis,leicht (s),tief (s),rem (s),wach (s)\n"  # of a German account
        "2024-05-13T23:50:00+02:00,2024-05-14T07:00:00+02:00,1,1,1,1\n",
        "P1/activities.csv": "from,to,Timezone,Activity type\n"
        "2024-05-14T12:00:00+02:00,2024-05-14T12:30:30+02:00,Europe/Paris,Running\n",
        "P1/weight.csv": 'Date,"Weight (lb)","Fat mass (lb)",Comments\n"2024-05-14 23:30:00",100,20,\n',
        "P1/bp.csv": "Date,Heart rate,Systolic,Diastolic,Comments\n"
        "2024-05-14 08:00:00,60,120,80,\n2024-05-14 09:00:00,60,,,\n",
    }
    found = read_source("withings", tmp_path, files)
    day = found.only("P1")
    assert {("sleep", "in bed", 0, 420), ("sleep", "deep", 20, 25), ("activity", "running", 720, 750.5)} <= {
        *day.events
    }
    assert day.values("sleep_awake")[[0, 15]].tolist() == [1, 0] and day.values("sleep_rem")[25] == 1
    assert not day.observed("sleep_rem")[26]
    # The evening's weight is of this day by the clock of the other files.
    assert day.window.labels == {
        "weight_kg": pytest.approx(45.36, abs=0.01),
        "systolic_mmhg": 120,
        "diastolic_mmhg": 80,
    }
    assert found.report.rows_quarantined == 1


def test_what_two_files_tell_is_told_once(tmp_path):
    files = {
        "raw_tracker_hr.csv": HR,
        "raw_tracker_sleep-state.csv": RAW + '2024-05-14T00:00:00+02:00,"[600,600]","[1,2]"\n',
        "activities.csv": "from,to,Timezone,Activity type\n"
        "2024-05-14T12:00:00+02:00,2024-05-14T12:30:30+02:00,Europe/Paris,Running\n",
    }
    both = {f"P1/{folder}/{name}": text for name, text in files.items() for folder in ("a", "b")}
    found = read_source("withings", tmp_path, both)
    assert [event[1] for event in found.only("P1").events] == ["light", "asleep", "deep", "running"]
    assert found.report.quarantined["event that another row tells too"].samples == ["P1/b/activities.csv"]
    assert found.report.duplicates["stages of sleep"] == 2


@pytest.mark.parametrize("order", ["descending", "shuffled"])
def test_days_are_those_of_the_offsets_in_any_order_of_the_rows(tmp_path, order):
    """Clocks change on October 27."""
    start, berlin = dt.datetime(2024, 10, 24, tzinfo=dt.UTC), zoneinfo.ZoneInfo("Europe/Berlin")
    times = [(start + dt.timedelta(hours=hour)).astimezone(berlin).isoformat() for hour in range(7 * 24)]
    rows = [f"{time},[60],[{60 + place % 30}]\n" for place, time in enumerate(times)]
    other = [*reversed(rows)] if order == "descending" else random.Random(0).sample(rows, len(rows))
    names = ("a/raw_tracker_hr.csv", "b/raw_tracker_hr.csv")  # read one by one, as the blocks of a large file are
    ascending = {f"P1/{name}": RAW + "".join(rows[at::2]) for at, name in enumerate(names)}
    mixed = {f"P1/{name}": RAW + "".join(other[at * 84 :][:84]) for at, name in enumerate(names)}
    first, second = (
        read_source("withings", tmp_path / folder, files) for folder, files in (("a", ascending), ("b", mixed))
    )
    assert [window.utc_offset_minutes for window in first.windows] == [120] * 4 + [60] * 4
    assert len(second.windows) == 8
    for expected, found in zip(first.windows, second.windows, strict=True):
        assert (found.start, found.utc_offset_minutes) == (expected.start, expected.utc_offset_minutes)
        np.testing.assert_array_equal(found.values, expected.values)


def test_withings_is_recognised(tmp_path):
    (tmp_path / "raw_tracker_hr.csv").write_text(HR)
    assert detect_format(tmp_path)[0] == "withings"
    found = read_source("withings", tmp_path, {"raw_tracker_hr.csv": HR})
    assert np.isfinite(found.only("source").values("heart_rate")).sum() == 4


def test_the_older_mat_knows_no_stages(tmp_path):
    files = {"P1/raw_sleep-monitor_sleep-state.csv": RAW + '2024-05-14T01:00:00+02:00,"[600,1200]","[0,1]"\n'}
    day = read_source("withings", tmp_path, files).only("P1")
    assert day.values("sleep_state")[[60, 70, 89]].tolist() == [3, 1, 1] and not day.observed("sleep_light").any()
    assert ("sleep", "asleep", 70, 90) in day.events
