"""Tables described by a mapping: what each key does, and what a mistake in it is answered with."""

import datetime as dt

import numpy as np
import polars as pl
import pytest

from lsm_jax.errors import UserError
from lsm_jax.readers.base import ReaderOptions, reader
from lsm_jax.readers.days import day_windows
from lsm_jax.readers.report import IngestReport

WIDE = """
[[tables]]
files = "*.csv"
person = { column = "who" }
time = { column = "when" }
[tables.channels]
heart_rate = { column = "hr" }
"""


def ingest(tmp_path, mapping, files, time_zone=None):
    source, scratch = tmp_path / "source", tmp_path / "scratch"
    source.mkdir(exist_ok=True)
    scratch.mkdir(exist_ok=True)
    for name, content in files.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content) if isinstance(content, str) else content.write_parquet(path)
    (tmp_path / "m.toml").write_text(mapping)
    report = IngestReport()
    people = reader("table", ReaderOptions(time_zone, tmp_path / "m.toml", scratch))
    channels = people.channels(source)
    windows = {}
    for key in people.people(source, report):
        record = people.read(source, key, report)
        windows[key.person] = list(day_windows(record, channels, "s", report)) if record else []
    return windows, report


def column(window, channel):
    place = window.channels.index(channel)
    return np.where(window.observed[:, place], window.values[:, place], np.nan)


def test_wide_table_of_many_people_mixes_spellings_and_sets_bad_rows_aside(tmp_path):
    windows, report = ingest(
        tmp_path,
        WIDE,
        {
            "a.csv": "when,who,hr\n2024-05-01 00:00:00,ann,60\n2024-05-01T00:01:00Z,ben,70\n"
            "2024-05-01 00:02,ann,80\nnever,ann,1\n2024-05-01 00:03,,1\n2024-05-01 00:04,ann,fast\n"
            "2024-05-01 00:05,ann,\n"
        },
    )
    assert column(windows["ann"][0], "heart_rate")[:3].tolist()[::2] == [60, 80]
    assert column(windows["ben"][0], "heart_rate")[1] == 70
    assert {reason: entry.samples for reason, entry in report.quarantined.items()} == {
        "time is not readable": ["a.csv:5"],
        "no person id": ["a.csv:6"],
        "value is not a number": ["a.csv:7"],
    }
    assert report.rows_read == 7 == report.rows_kept + 3


def test_long_table_with_sensors_units_and_rules(tmp_path):
    mapping = """
[[tables]]
files = "minutes.parquet"
person = { column = "p" }
time = { column = "t", formats = ["unix_s"] }
signal = "kind"
value = "v"
sensor = "device"
keep = ["ok == true"]
[tables.channels]
skin_temperature = { signal = "temp", unit = "deg F", keep = ["v < 120"] }
steps = { signal = "steps", aggregate = "sum" }
"""
    start = int(dt.datetime(2024, 5, 1, tzinfo=dt.UTC).timestamp())
    rows = [
        (1, start, "temp", 95.0, "watch", True),
        (1, start + 60, "temp", 500.0, "watch", True),
        (1, start + 120, "temp", 95.0, "watch", False),
        (1, start, "steps", 10.0, "watch", True),
        (1, start + 5, "steps", 15.0, "watch", True),
        (1, start + 5, "steps", 80.0, "phone", True),
        (1, start, "unasked", 1.0, "watch", True),
    ]
    frame = pl.DataFrame(rows, schema=["p", "t", "kind", "v", "device", "ok"], orient="row")
    windows, report = ingest(tmp_path, mapping, {"minutes.parquet": frame})
    (window,) = windows["1"]
    assert column(window, "skin_temperature")[0] == pytest.approx(35)
    assert window.observed.sum() == 2 and column(window, "steps")[0] == 80
    assert report.invalid == {"skin_temperature": 2, "steps": 0} and report.rows_ignored == 1
    assert report.overlaps["steps"] == 1


def test_files_per_person_relative_times_weekdays_labels_and_events(tmp_path):
    mapping = """
[[tables]]
files = "hr/*.csv"
person = { file = 'p(\\d+)' }
time = { column = "hours", unit = "hours", weekday = "wd", weekday_day = "day" }
period_minutes = 5
[tables.channels]
heart_rate = { column = "hr" }

[[tables]]
files = "glucose/*.csv"
person = { file = 'p(\\d+)' }
time = { column = "hours", unit = "hours", weekday = "wd", weekday_day = "day" }
period_minutes = 15
separator = ";"
decimal = ","
[tables.channels]
glucose = { column = "mg", unit = "mg/dL" }

[[events]]
files = "meals.csv"
person = { column = "who" }
time = { column = "hours", unit = "hours" }
kind = "meal"
name_column = "what"
minutes = 20

[[labels]]
files = "people.csv"
person = { column = "who" }
columns = { age = "age", sex = "sex" }
"""
    files = {
        "hr/p7.csv": "hours,wd,day,hr\n30.0000001,6,1,60\n30.25,6,1,62\n",
        "glucose/p7-1.csv": "hours;wd;day;mg\n6,5;6;0;90,078\n",
        "glucose/nobody.csv": "hours;wd;day;mg\n6,5;6;0;90,078\n",
        "meals.csv": "who,hours,what\n7,0.5, Lunch \n9,0.5,x\n",
        "people.csv": "who,age,sex\n7,41,F\n",
    }
    windows, report = ingest(tmp_path, mapping, files)
    sunday = windows["7"][-1]
    assert sunday.start.weekday() == 6 and sunday.labels == {"age": 41.0, "sex": "F"}
    heart = column(sunday, "heart_rate")
    assert np.flatnonzero(~np.isnan(heart)).tolist() == [*range(360, 365), *range(375, 380)]
    glucose = column(sunday, "glucose")
    assert np.flatnonzero(~np.isnan(glucose)).tolist() == list(range(390, 405))
    assert glucose[390] == pytest.approx(5.0)
    assert "finds no id" in report.files_set_aside[0] and "1 people have labels or events" in report.notes[0]


def test_day_and_minute_columns_and_impossible_minutes(tmp_path):
    mapping = WIDE.replace('{ column = "when" }', '{ day = "day", minute = "minute", first_day = 1 }')
    windows, report = ingest(
        tmp_path, mapping, {"a.csv": "who,day,minute,hr\n1,1,0,60\n1,2,1439,61\n1,1,1440,62\n1,-5,0,63\n1,1e99,0,64\n"}
    )
    assert [window.start.day for window in windows["1"]] == [1, 2]
    assert report.quarantined["time is not readable"].samples == ["a.csv:4", "a.csv:5", "a.csv:6"]


def test_events_end_where_a_column_says(tmp_path):
    mapping = (
        WIDE
        + """
[[events]]
files = "naps.txt"
person = { column = "who" }
time = { column = "from" }
end = "to"
kind = "sleep"
"""
    )
    naps = "who,from,to\na,2024-05-01 00:10,2024-05-01 00:20\na,2024-05-01 00:10,2024-05-01 00:05\n"
    windows, report = ingest(tmp_path, mapping, {"a.csv": "who,when,hr\na,2024-05-01 00:00,60\n", "naps.txt": naps})
    assert [(event.start, event.end) for event in windows["a"][0].events] == [(10, 20)]
    assert report.quarantined["ends before it starts"].samples == ["naps.txt:3"]


def test_a_file_without_the_column_is_set_aside_and_the_others_are_read(tmp_path):
    files = {"a.csv": "who,when,hr\na,2024-05-01 00:00,60\n", "b.csv": "who,when,bpm\nb,2024-05-01 00:00,60\n"}
    windows, report = ingest(tmp_path, WIDE, files)
    assert list(windows) == ["a"]
    assert report.files_set_aside == ["b.csv: line 1 lacks the column 'hr', which tables[0] of the mapping names"]


MISTAKES = {
    "files = ": ("fils = ", r"m.toml:3: tables\[0\].fils.*'files'"),
    "heart_rate = {": ("hart_rate = {", r"m.toml:7: .*hart_rate is no channel.*heart_rate"),
    'column = "hr" }': ('column = "hr", unit = "furlong" }', r"m.toml:7: .*unit is 'furlong'"),
    'column = "hr"  }': ('column = "hr", keep = ["hr"] }', r"m.toml:7: .*keep holds 'hr'"),
    'time = { column = "when" }': ('time = { column = "when", unit = "years" }', r"m.toml:5: .*unit is 'years'"),
    'person = { column = "who" }': ("person = { file = 'p' }", r"m.toml:4: .*exactly one group"),
    'person = { column = "who"  }': ("person = { file = '(' }", r"m.toml:4: .*no regular expression"),
    "[tables.channels]": ("period_minutes = 0\n[tables.channels]", r"m.toml:6: .*period_minutes is 0"),
    "[tables.channels] ": ("keep = 3\n[tables.channels]", r"m.toml:6: .*expected list"),
    "[[tables]]": ("[[tables", "cannot be read.*line 2"),
    "[[tables]] ": ("[[labels]]", r"m.toml:\d+: mapping.tables write it as"),
    '"*.csv"': ('"*.cvs"', r"files = '\*.cvs' matches none"),
}


@pytest.mark.parametrize("change", MISTAKES)
def test_mistakes_in_a_mapping_are_answered_with_key_and_line(tmp_path, change):
    wrong, said = MISTAKES[change]
    target = " ".join(change.split())
    assert target in WIDE
    with pytest.raises(UserError, match=said):
        ingest(tmp_path, WIDE.replace(target, wrong), {"a.csv": "who,when,hr\n"})


def test_mapping_is_needed(tmp_path):
    with pytest.raises(UserError, match="--mapping"):
        reader("table", ReaderOptions())
    with pytest.raises(UserError, match="Did you mean 'table'"):
        reader("tabel", ReaderOptions())
    with pytest.raises(UserError, match="cannot be read"):
        reader("table", ReaderOptions(mapping=tmp_path / "none.toml"))
