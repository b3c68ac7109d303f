"""Fitabase exports: every file kind, both spellings, what zeros mean, and rows that are wrong."""

import collections
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.errors import UserError
from tests.ingest.reading import read_folder

NARROW = "Id,ActivityMinute,{}\n"


def ingest(source, tmp_path, time_zone=None):
    """({channel: value at each minute of the first day}, windows, report)."""
    found = read_folder("fitbit", source, tmp_path / "scratch", time_zone=time_zone)
    days = [day for days in found.people.values() for day in days]
    first = {name: days[0].values(name) for name in days[0].window.channels} if days else {}
    return first, found.windows, found.report


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def clock(minute, twelve=True):
    hour, minute = divmod(minute, 60)
    if not twelve:
        return f"4/12/2016 {hour}:{minute:02d}"
    return f"4/12/2016 {(hour - 1) % 12 + 1}:{minute:02d}:00 {'AM' if hour < 12 else 'PM'}"


def test_narrow_wide_zipped_and_both_spellings_join(source, tmp_path):
    lines = [f"1,{clock(minute, twelve=minute % 2 == 0)},{minute % 4}" for minute in range(600, 620)]
    with zipfile.ZipFile(source / "minuteIntensitiesNarrow_merged.csv.zip", "w") as archive:
        archive.writestr("minuteIntensitiesNarrow_merged.csv", NARROW.format("Intensity") + "\n".join(lines))
    names = ",".join(f"Steps{minute:02d}" for minute in range(60))
    (source / "steps.csv").write_text(f"Id,ActivityHour,{names}\n1,4/12/2016 10:00,{','.join(map(str, range(60)))}\n")
    (source / "minuteMETsNarrow_merged.csv").write_text(NARROW.format("METs") + f"1,{clock(600)},37\n")
    days, _, report = ingest(source, tmp_path)
    assert days["steps"][600:660].tolist() == list(range(60))
    assert days["activity_intensity"][600:620].tolist() == [minute % 4 for minute in range(600, 620)]
    assert days["met"][600] == pytest.approx(3.7)
    assert report.rows_kept == report.rows_read == 22


def test_sleep_minutes_at_half_past_belong_to_their_minute_and_make_an_event(source, tmp_path):
    lines = [f"1,4/12/2016 1:{minute:02d}:30 AM,1,9" for minute in (*range(10), *range(20, 30))]
    (source / "minuteSleep_merged.csv").write_text("Id,date,value,logId\n" + "\n".join(lines))
    days, (window,), _ = ingest(source, tmp_path)
    assert np.flatnonzero(~np.isnan(days["sleep_state"])).tolist() == [*range(60, 70), *range(80, 90)]
    assert [(event.name, event.start, event.end) for event in window.events] == [("asleep", 60, 70), ("asleep", 80, 90)]


def test_heart_rate_seconds_become_minute_means(source, tmp_path):
    (source / "heartrate_seconds_merged.csv").write_text(
        "Id,Time,Value\n1,4/12/2016 7:21:00 AM,97\n1,4/12/2016 7:21:05 AM,101\n1,4/12/2016 7:22:00 AM,60\n"
    )
    days, _, _ = ingest(source, tmp_path)
    assert days["heart_rate"][441:443].tolist() == [99, 60]


@pytest.mark.parametrize(("zeros", "not_worn"), [(359, 0), (360, 360)])
def test_six_hours_of_zeros_are_not_worn(source, tmp_path, zeros, not_worn):
    lines = [f"1,{clock(minute)},{0 if 100 <= minute < 100 + zeros else 2}" for minute in range(700)]
    (source / "i.csv").write_text(NARROW.format("Intensity") + "\n".join(lines))
    days, _, report = ingest(source, tmp_path)
    assert np.isnan(days["activity_intensity"]).sum() == 1440 - 700 + not_worn == 740 + report.not_worn_minutes


def test_zeros_in_sleep_or_with_a_heart_rate_are_worn(source, tmp_path):
    (source / "i.csv").write_text(
        NARROW.format("Intensity") + "\n".join(f"1,{clock(minute)},0" for minute in range(1440))
    )
    (source / "sleep.csv").write_text(
        "Id,date,value,logId\n" + "\n".join(f"1,{clock(minute)},1,9" for minute in range(300, 700))
    )
    (source / "hr.csv").write_text(f"Id,Time,Value\n1,{clock(1000)},60\n")
    days, _, _ = ingest(source, tmp_path)
    worn = ~np.isnan(days["activity_intensity"])
    # 0-300 is too short to count, 300-700 is sleep, 700-1000 and 1001-1440: only the last stretch is long enough.
    assert np.flatnonzero(~worn).tolist() == list(range(1001, 1440))


def test_implausible_values_do_not_count_as_sleep_or_heart_rate(source, tmp_path):
    zeros = [f"1,{clock(minute)},0" for minute in range(300, 1100)]
    (source / "i.csv").write_text(NARROW.format("Intensity") + f"1,{clock(0)},1\n" + "\n".join(zeros))
    (source / "hr.csv").write_text("Id,Time,Value\n" + "\n".join(f"1,{clock(minute)},0" for minute in range(300, 1100)))
    (source / "sleep.csv").write_text(f"Id,date,value,logId\n1,{clock(720)},0,1\n1,{clock(900)},9,1\n")
    _, (window,), report = ingest(source, tmp_path)
    assert window.events == () and report.not_worn_minutes == 800 and window.observed.sum() == 1
    assert report.implausible == {"heart_rate": 800, "sleep_state": 2}


def test_files_of_other_kinds_and_wrong_headers_are_named(source, tmp_path):
    (source / "dailyActivity_merged.csv").write_text("Id,ActivityDate,TotalSteps\n")
    (source / "hourlySteps_merged.csv").write_text("Id,ActivityHour,StepTotal\n")
    (source / "sleepDay_merged.csv").write_text("Id,SleepDay,TotalMinutesAsleep\n")
    (source / "weightLogInfo_merged.csv").write_text("Id,Date,WeightKg\n")
    (source / "minuteStepsNarrow_merged.csv").write_text("Id,Minute,Steps\n1,2,3\n")
    (source / "empty.csv").write_text("")
    with pytest.raises(UserError, match="no Fitbit minute file"):
        ingest(source, tmp_path)
    (source / "i.csv").write_text(NARROW.format("Intensity") + f"1,{clock(5)},1\n")
    _, _, report = ingest(source, tmp_path)
    assert len(report.files_ignored) == 4 and all("not minute data" in line for line in report.files_ignored)
    aside = dict(line.split(": ", 1) for line in report.files_set_aside)
    assert "lacks ActivityMinute" in aside["minuteStepsNarrow_merged.csv"] and "empty" in aside["empty.csv"]


def test_a_wide_row_with_one_bad_cell_keeps_its_other_minutes(source, tmp_path):
    names = ",".join(f"Steps{minute:02d}" for minute in range(60))
    cells = ["7"] * 60
    cells[3], cells[4] = "x", ""
    (source / "s.csv").write_text(f"Id,ActivityHour,{names}\n1,4/12/2016 0:00,{','.join(cells)}\n")
    days, _, report = ingest(source, tmp_path)
    assert np.flatnonzero(~np.isnan(days["steps"])).tolist() == [*range(3), *range(5, 60)]
    assert report.damaged_cells["steps"].samples == ["s.csv:2"] and report.rows_kept == 1


BAD = {
    "1.5E+09,4/12/2016 1:00:00 AM,1": "person id is not a whole number",
    ",4/12/2016 1:00:00 AM,1": "person id is not a whole number",
    "1,13/45/2016 1:00:00 AM,1": "time is not readable",
    "1,4/12/1916 1:00:00 AM,1": "date before 1990 or after 2099",
    "1,4/12/2016 1:00:00 AM,one": "value is not a number",
    "1,4/12/2016 1:00:00 AM": "wrong number of fields",
    '1,"4/12/2016 1:00:00 AM,1': "wrong number of fields",
    "Id,ActivityMinute,Intensity": "person id is not a whole number",
}


@settings(max_examples=25)
@given(st.lists(st.one_of(st.integers(0, 1439), st.sampled_from(sorted(BAD))), min_size=1, max_size=30))
def test_bad_rows_cost_only_themselves(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("fitbit")
    (folder / "source").mkdir()
    lines = [row if isinstance(row, str) else f"1,{clock(row)},2" for row in rows]
    (folder / "source" / "i.csv").write_text(NARROW.format("Intensity") + "\n".join(lines) + "\n")
    days, _, report = ingest(folder / "source", folder)
    good = sorted({row for row in rows if not isinstance(row, str)})
    assert (np.flatnonzero(~np.isnan(days["activity_intensity"])).tolist() if days else []) == good
    expected = collections.Counter(BAD[row] for row in rows if isinstance(row, str))
    assert {reason: entry.rows for reason, entry in report.quarantined.items()} == expected
    assert report.rows_read == len(rows) == report.rows_kept + report.rows_quarantined
    for entry in report.quarantined.values():
        assert all(lines[int(place.split(":")[1]) - 2] in BAD for place in entry.samples)


def test_wall_clock_times_are_of_the_given_zone(source, tmp_path):
    (source / "i.csv").write_text(NARROW.format("Intensity") + f"1,{clock(90)},1\n")
    days, (window,), _ = ingest(source, tmp_path, time_zone="America/New_York")
    assert days["activity_intensity"][90] == 1 and window.utc_offset_minutes == -240
    with pytest.raises(UserError, match="time zone"):
        ingest(source, tmp_path, time_zone="Mars/Olympus")


def test_the_order_of_day_and_month_is_that_of_the_whole_column(source, tmp_path):
    """Files of one study that tell nothing follow those that do; dates that no file explains are refused."""
    unclear = NARROW.format("METs") + "1,10/03/2024 00:00:00,20\n"
    (source / "m.csv").write_text(unclear)
    with pytest.raises(UserError, match=r"m\.csv: the dates in column 'ActivityMinute' do not tell"):
        ingest(source, tmp_path)
    (source / "s.csv").write_text(NARROW.format("Steps") + "1,10/03/2024 00:00:00,5\n1,13/03/2024 00:00:00,5\n")
    _, windows, report = ingest(source, tmp_path)
    assert [(window.start.month, window.start.day) for window in windows] == [(3, 10), (3, 13)]
    assert windows[0].observed.sum() == 2 and report.rows_quarantined == 0


def test_what_a_spreadsheet_of_another_country_makes_of_a_file(source, tmp_path):
    rows = "1;12.04.2016 00:00:00;1,5\n1;12.04.2016 00:01;2\n"
    (source / "calories.csv").write_text(NARROW.replace(",", ";").format("Calories") + rows)
    days, (window,), report = ingest(source, tmp_path)
    assert days["calories"][:2].tolist() == [1.5, 2] and (window.start.month, window.start.day) == (4, 12)
    assert "calories.csv: numbers with a comma were read as decimals." in report.notes


@pytest.mark.parametrize("time", ["00:00:00", "12:00:00 AM"])
def test_days_that_do_not_tell_their_order_are_never_taken_for_months(source, tmp_path, time):
    rows = [f"1,{day}/03/2024 {time},5\n" for day in (10, 13)]
    (source / "steps.csv").write_text(NARROW.format("Steps") + rows[0])
    with pytest.raises(UserError, match=r"do not tell whether day or month comes first.*Say it with --date-order day"):
        ingest(source, tmp_path)
    (source / "steps.csv").write_text(NARROW.format("Steps") + "".join(rows))
    _, windows, _ = ingest(source, tmp_path)
    assert [(window.start.month, window.start.day) for window in windows] == [(3, 10), (3, 13)]
