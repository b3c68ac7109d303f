"""ActiLife epochs: the first lines, orders of the date, rows without times, what is not worn."""

import numpy as np
import pytest

from lsm_jax.errors import UserError
from lsm_jax.ingest.detect import detect_format
from tests.ingest.reading import read_source


def preamble(date_format="M/d/yyyy", start="5/13/2024", time="08:00:00", epoch="00:01:00"):
    named = f"date format {date_format} " if date_format else ""
    return (
        f"------------ Data Table File Created By ActiGraph GT3XPlus ActiLife v6.13.4 Firmware v2.5.0 {named}"
        f"Filter Normal -----------\nSerial Number: NEO1F00000000\nStart Time {time}\nStart Date {start}\n"
        f"Epoch Period (hh:mm:ss) {epoch}\nDownload Time 12:59:00\nDownload Date 6/13/2024\nCurrent Memory Address: 0\n"
        "Current Battery Voltage: 4.13     Mode = 61\n--------------------------------------------------\n"
    )


COLUMNS = "Axis1,Axis2,Axis3,Steps,HR,Lux,Inclinometer Off,Vector Magnitude\n"


def test_rows_without_times_follow_the_start(tmp_path):
    rows = "300,400,0,12,61,50,0,500\n6,x,8,0,0,5,0,10\nbad,1,1,1,1,1,0,1\n0,3,4,2,62,1,0,5\n"
    found = read_source("actigraph", tmp_path, {"P01 (2024-05-13)60sec.csv": preamble() + COLUMNS + rows})
    day = found.only("P01")
    assert day.window.start.isoformat() == "2024-05-13T00:00:00+00:00"
    minutes = slice(480, 484)
    assert np.nan_to_num(day.values("activity_count")[minutes], nan=-1).tolist() == [300, 6, -1, 0]
    assert np.nan_to_num(day.values("activity_count_vector")[minutes], nan=-1).tolist() == [500, -1, -1, 5]
    assert np.nan_to_num(day.values("heart_rate")[minutes], nan=-1).tolist() == [61, -1, -1, 62]
    assert day.values("steps")[[480, 483]].tolist() == [12, 2] and day.values("ambient_light")[480] == 50
    assert found.report.quarantined["value is not a number"].samples == ["P01 (2024-05-13)60sec.csv:14"]
    assert found.report.damaged_cells["activity_count_vector"].samples == ["P01 (2024-05-13)60sec.csv:13"]
    assert found.report.invalid["heart_rate"] == 1 and found.report.people_on_wall_clock == 1


@pytest.mark.parametrize(
    ("date_format", "date", "order"),
    [
        ("M/d/yyyy", "5/6/2024", None),
        ("dd/MM/yyyy", "06/05/2024", None),
        ("", "06-05-2024", "day"),
        ("", "2024-05-06", None),
    ],
)
def test_the_order_of_the_date_is_told_by_the_first_line(tmp_path, date_format, date, order):
    text = preamble(date_format, start=date) + f" Date, Time, Axis1\n{date},09:00:00,7\n{date},09:01:00,9\n"
    found = read_source("actigraph", tmp_path, {"P01.csv": text}, date_order=order, time_zone="Europe/Berlin")
    day = found.only("P01")
    assert day.window.start.isoformat() == "2024-05-05T22:00:00+00:00"
    assert day.values("activity_count")[540:542].tolist() == [7, 9]


def test_an_order_that_nothing_tells_is_refused_with_the_key(tmp_path):
    text = preamble("", start="06-05-2024") + "Date,Time,Axis1\n06-05-2024,09:00:00,7\n"
    with pytest.raises(UserError, match=r"P01\.csv: its dates do not tell .*--date-order day"):
        read_source("actigraph", tmp_path, {"P01.csv": text})
    told = text + "13-05-2024,09:00:00,7\n"
    found = read_source("actigraph", tmp_path, {"P01.csv": told})
    assert [day.window.start.month for day in found.people["P01"]] == [5, 5]


def test_short_epochs_are_added_and_vectors_are_of_whole_minutes(tmp_path):
    rows = "10,0,0,1\n" * 3 + "0,10,0,1\n" * 3 + "1,1,1,1\n"
    text = preamble(epoch="00:00:10") + "Axis1,Axis2,Axis3,Steps\n" + rows
    day = read_source("actigraph", tmp_path, {"P01.csv": text}).only("P01")
    assert day.values("activity_count")[480] == 30 and day.values("steps")[480] == 6
    assert day.values("activity_count_vector")[480] == pytest.approx(np.hypot(30, 30))
    assert not day.observed("steps")[481]  # 10 of 60 seconds


def test_a_start_just_before_midnight_adds_no_day(tmp_path):
    """Of the last minute of May 12 only 10 seconds are known, which is too little."""
    rows = "10,0,0\n" * 13
    text = preamble(start="5/12/2024", time="23:59:50", epoch="00:00:10") + "Axis1,Axis2,Axis3\n" + rows
    day = read_source("actigraph", tmp_path, {"P01.csv": text}).only("P01")
    assert day.window.start.day == 13 and day.values("activity_count")[:2].tolist() == [60, 60]
    assert day.values("activity_count_vector")[:2].tolist() == [60, 60]
    assert day.window.observed.sum() == 4


def test_zeros_stay_and_long_runs_of_them_are_said(tmp_path):
    text = preamble() + "Axis1\n" + "0\n" * 90 + "5\n" + "0\n" * 59
    found = read_source("actigraph", tmp_path, {"P01.csv": text})
    assert found.only("P01").observed("activity_count").sum() == 150
    assert "P01.csv: 90 minutes are in runs of 60 minutes or more without a count. They are kept as 0" in found.said


def test_people_are_files_or_folders_and_other_files_are_set_aside(tmp_path):
    good = preamble() + "Axis1\n5\n"
    files = {
        "P1.1.csv": good,
        "P1.2.csv": good,
        "P3/visit1.csv": good,
        "raw.csv": preamble(epoch="00:00:00") + "Accelerometer X\n0.1\n",
        "headless.csv": preamble() + "5,6,7\n",
        "notes.csv": "a,b\n1,2\n",
    }
    found = read_source("actigraph", tmp_path, files)
    assert sorted(person for person, days in found.people.items() if days) == ["P1.1", "P1.2", "P3"]
    aside = "\n".join(found.report.files_set_aside)
    assert (
        "raw.csv: no epoch period, or one of 0 seconds" in aside and "headless.csv: no header line with Axis1" in aside
    )
    assert found.report.files_ignored == ["notes.csv: does not say that ActiLife made it"]
    assert detect_format(tmp_path / "source")[0] == "actigraph"
