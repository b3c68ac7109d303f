"""Small inputs that are easily misread, with the mappings that people wrote: each is read right, or refused."""

import pytest

from lsm_jax.errors import UserError
from tests.ingest.reading import read_source, values

TABLE = """
[[tables]]
files = "*.csv"
person = { file = '(A\\d)' }
time = { column = "time" }
"""


def read(tmp_path, mapping, files, format="table"):
    """(windows, what is observed: {channel: {minute: value}} of all days together, report)."""
    found, seen = read_source(format, tmp_path, files, mapping), {}
    for window in found.windows:
        for channel in window.channels:
            if minutes := values(window, channel):
                seen.setdefault(channel, {}).update(minutes)
    return found.windows, seen, found.report


HEART = "channels = { heart_rate = { column = 'hr' } }\n"
STEPS = "channels = { steps = { column = 'steps' } }\n"
SAME_STAMP = TABLE.replace("file = '(A\\d)'", "column = 'id'") + (
    "channels = { heart_rate = { column = 'hr' }, steps = { column = 'steps', aggregate = 'sum' } }\n"
)
LABELS = TABLE + HEART + TABLE.replace("tables", "events") + "kind = 'activity'\nname_column = 'label'\nminutes = 1\n"
READ = {
    "rows of one time stamp": (
        SAME_STAMP,
        "id,time,hr,steps\n" + "B,2024-05-01 10:00:00,70,1\n" * 30,
        {"heart_rate": {600: 70}, "steps": {600: 30}},
    ),
    "half minutes of a count": (
        TABLE + STEPS,
        "time,steps\n2024-03-04 00:00:00,10\n2024-03-04 00:00:30,10\n",
        {"steps": {0: 20}},
    ),
    "five minutes of a count": (
        TABLE + "period_minutes = 5\n" + STEPS,
        "time,steps\n2024-03-04 00:00:00,250\n2024-03-04 00:05:00,250\n",
        {"steps": dict.fromkeys(range(10), 50)},
    ),
    "an offset in the text": (TABLE + HEART, "time,hr\n2024-03-04T00:00:00-0800,50\n", {"heart_rate": {0: 50}}),
    "date and time in two columns": (
        TABLE.replace('"time"', '["Date", "Time"], formats = ["%d/%m/%Y %H:%M:%S"]') + HEART,
        "Date,Time,hr\n04/03/2024,00:00:00,60\n04/03/2024,00:01:00,61\n04/03/2024,00:02:00,62\n",
        {"heart_rate": {0: 60, 1: 61, 2: 62}},
    ),
    "lines before the header": (
        TABLE + HEART,
        "Made by X\nStart 4\ntime,hr\n2024-03-04 00:00:00,60\n",
        {"heart_rate": {0: 60}},
    ),
    "a label per minute": (
        LABELS,
        "time,hr,label\n2024-03-04 00:00:00,60,running\n2024-03-04 00:01:00,60,running\n2024-03-04 00:02:00,60,\n",
        {"heart_rate": dict.fromkeys(range(3), 60)},
    ),
}


@pytest.mark.parametrize("case", READ)
def test_read_right(tmp_path, case):
    mapping, text, expected = READ[case]
    windows, seen, report = read(tmp_path, mapping, {"A1.csv": text})
    assert seen == expected and len(windows) == 1 and not report.rows_quarantined
    names = [(event.name, event.start, event.end) for event in windows[0].events]
    assert names == ([("running", 0, 2)] if case == "a label per minute" else [])
    if case in ("an offset in the text", "date and time in two columns"):
        start = windows[0].start
        assert (start.month, start.day, windows[0].utc_offset_minutes) == (3, 4, -480 if start.hour else 0)


REFUSED = {
    "date and time in two columns, of which one is named": (
        TABLE.replace('"time"', '"Date", formats = ["%d/%m/%Y"]') + HEART,
        "Date,Time,hr\n04/03/2024,00:00:00,60\n",
        r"m\.toml:5: .*'%d/%m/%Y', which names no hour: column = \['Date', 'Time'\] joins",
    ),
    "hours up to 12 without their half of the day": (
        TABLE.replace('"time"', '"hora", formats = ["%d/%m/%Y %I:%M:%S"]') + HEART,
        "hora,hr\n04/03/2024 01:00:00 p. m.,60\n",
        r"m\.toml:5: .*'%d/%m/%Y %I:%M:%S', which has hours up to 12 \(%I\) and lacks %p",
    ),
    "a decimal comma": (
        TABLE + "channels = { skin_temperature = { column = 'temp' } }\n",
        "time;temp\n2024-03-04 00:00;33\n2024-03-04 00:01;33,5\n",
        r"A1\.csv:3: column 'temp' has decimal commas.* Say decimal = \",\" in tables\[0\] of the mapping",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
    mapping, text, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        read(tmp_path, mapping, {"A1.csv": text})


def test_days_before_months_of_a_fitabase_file(tmp_path):
    rows = "Id,ActivityMinute,Steps\n1,10/03/2024 00:00:00,5\n1,13/03/2024 00:00:00,5\n"
    windows, _, _ = read(tmp_path, "", {"minuteStepsNarrow_merged.csv": rows}, format="fitbit")
    assert [(window.start.month, window.start.day) for window in windows] == [(3, 10), (3, 13)]


def test_seconds_before_an_event_and_stages_of_30_seconds_after_it(tmp_path):
    """No header, negative times; the event's clock time is the mapping's to give."""
    rule = """
files = "*_FILES.txt"
person = { file = '(A\\d)' }
time = { column = "1", unit = "seconds", zero = "23:30" }
header = false
"""
    mapping = (
        "[[tables]]" + rule.replace("FILES", "hr") + "channels = { heart_rate = { column = '2' } }\n"
        "[[events]]" + rule.replace("FILES", "labels") + "kind = 'sleep'\nname_column = '2'\nminutes = 0.5\n"
        "names = { 0 = 'wake', 1 = 'n1', 2 = 'n2', 3 = 'n3', 5 = 'rem' }\n"
    )
    files = {"A1_hr.txt": "-5,60\n-3.5,62\n2,64\n", "A1_labels.txt": "0 0\n30 1\n60 2\n90 2\n120 5\n"}
    (window,), seen, report = read(tmp_path, mapping, files)
    assert seen == {"heart_rate": {1409: 61, 1410: 64}} and report.rows_kept == 8
    spells = [(event.name, 60 * (event.start - 1410), 60 * (event.end - 1410)) for event in window.events]
    assert spells == [("wake", 0, 30), ("n1", 30, 60), ("n2", 60, 120), ("rem", 120, 150)]
