"""Tables described by a mapping: what each key does, and the message for each mistake."""

import datetime as dt

import numpy as np
import polars as pl
import pytest

from lsm_jax.errors import UserError
from lsm_jax.ingest.formats import make_reader
from lsm_jax.ingest.reader import ReaderOptions
from tests.ingest.reading import read_source

WIDE = """
[[tables]]
files = "*.csv"
person = { column = "who" }
time = { column = "when" }
[tables.channels]
heart_rate = { column = "hr" }
"""


def ingest(tmp_path, mapping, files, time_zone=None):
    """({raw id: windows}, report)."""
    found = read_source("table", tmp_path, files, mapping, time_zone=time_zone)
    return {person: [day.window for day in days] for person, days in found.people.items()}, found.report


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
    # The first file (glucose) says that day 0 is a Sunday; the log of meals tells no weekday and follows it.
    assert [(event.name, event.start, event.end) for event in sunday.events] == [("lunch", 30, 50)]
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


def test_files_without_a_weekday_follow_those_of_the_person_with_one(tmp_path):
    mapping = """
[[tables]]
files = "a*.csv"  # read before the file that tells the weekday
person = { file = 'p(\\d+)' }
time = { column = "hours", unit = "hours" }
channels = { steps = { column = "steps" } }

[[tables]]
files = "shared.csv"
person = { column = "who" }
time = { column = "hours", unit = "hours" }
channels = { glucose = { column = "g" } }

[[tables]]
files = "z*.csv"
person = { file = 'p(\\d+)' }
time = { column = "hours", unit = "hours", weekday = "wd", weekday_day = "day" }
channels = { heart_rate = { column = "hr" } }
"""
    files = {
        "a_p1.csv": "hours,steps\n25,7\n",
        "shared.csv": "who,hours,g\n1,26,5\n",
        "z_p1.csv": "hours,wd,day,hr\n24,3,1,60\n",
    }
    (window,) = ingest(tmp_path, mapping, files)[0]["1"]
    assert window.start.weekday() == 3 and window.observed.sum() == 3
    assert [column(window, name)[at] for name, at in (("heart_rate", 0), ("steps", 60), ("glucose", 120))] == [60, 7, 5]


ZONED = WIDE.replace('{ column = "when" }', '{ column = "when", time_zone = "America/New_York" }')


def test_days_are_cut_in_the_time_zone_of_the_mapping(tmp_path):
    files = {"a.csv": "who,when,hr\na,2024-05-01 00:00,60\na,2024-05-01 23:59,61\n"}
    (window,) = ingest(tmp_path, ZONED, files)[0]["a"]
    assert window.utc_offset_minutes == -240 and np.flatnonzero(window.observed[:, 0]).tolist() == [0, 1439]
    assert len(ingest(tmp_path, ZONED, files, time_zone="UTC")[0]["a"]) == 2
    two = ZONED + '[[events]]\nfiles = "*.txt"\nperson = { column = "who" }\nkind = "meal"\n'
    two += 'time = { column = "when", time_zone = "Europe/Berlin" }\n'
    assert ingest(tmp_path, two, files | {"e.txt": "who,when\n"}, time_zone="Europe/Berlin")[0]["a"]


FLAGS = {
    "doubles": pl.Series([1.0, 0.0, None, float("nan"), 2.0]),
    "whole": pl.Series([1, 0, None, None, 2]),
    "boolean": pl.Series([True, False, None, None, True]),
    "number text": pl.Series(["1.0", " 0.0", "", "NA", "1"]),
    "words": pl.Series(["TRUE", "no ", "", None, "y"]),
}


@pytest.mark.parametrize("kind", FLAGS)
def test_flags_of_any_type_are_read_as_flags(tmp_path, kind):
    frame = pl.DataFrame({"who": "a", "when": range(0, 300, 60), "hr": 60, "artifact": FLAGS[kind]})
    mapping = WIDE.replace("*.csv", "*.parquet").replace('"when" }', '"when", formats = ["unix_s"] }')
    frame = frame.with_columns(when=pl.col("when") + 1714521600)
    for rule, kept in (("== false", [1]), ("== true", [0, 4]), ("!= true", [1, 2, 3])):
        ruled = mapping.replace('"hr" }', f'"hr", keep = ["artifact {rule}"] }}')
        (window,) = ingest(tmp_path, ruled, {"a.parquet": frame})[0]["a"]
        assert np.flatnonzero(window.observed[:, 0]).tolist() == kept


def test_a_flag_that_is_neither_true_nor_false_passes_no_rule(tmp_path):
    for rule in ("== false", "== true", "!= true", "!= false"):
        mapping = WIDE.replace('"hr" }', f'"hr", keep = ["ok {rule}"] }}')
        windows, report = ingest(tmp_path, mapping, {"a.csv": "who,when,hr,ok\na,2024-05-01 00:00,60,maybe\n"})
        assert windows["a"] == [] and report.invalid["heart_rate"] == 1


@pytest.mark.parametrize("ids", [[62161.0, 1503960366.0], ["62161.0", " 1503960366.0"], [62161, 1503960366]])
def test_an_id_saved_with_a_decimal_is_the_same_person(tmp_path, ids):
    mapping = WIDE.replace("*.csv", "*.parquet")
    mapping += '[[labels]]\nfiles = "p.csv"\nperson = { column = "who" }\ncolumns = { age = "age" }\n'
    frame = pl.DataFrame({"who": ids, "when": "2024-05-01 00:00", "hr": 60.0})
    windows, _ = ingest(tmp_path, mapping, {"a.parquet": frame, "p.csv": "who,age\n62161,40\n1503960366.0,50\n"})
    assert {person: each[0].labels["age"] for person, each in windows.items()} == {"62161": 40, "1503960366": 50}


TIMES = {
    "categories": (pl.Series(["2024-05-01 00:00"], dtype=pl.Categorical), 1),
    "dates": (pl.Series([dt.date(2024, 5, 1)]), 1),
    "booleans": (pl.Series([True]), 0),
    "nothing": (pl.Series([None]), 0),
    "bytes": (pl.Series([b"\xff"]), 0),
}


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("relative", ["", ', unit = "minutes"'])
def test_columns_of_any_type_are_read_or_reported(tmp_path, kind, relative):
    times, good = TIMES[kind]
    mapping = WIDE.replace("*.csv", "*.parquet").replace('"when" }', f'"when"{relative} }}')
    for who, value in (("a", 60.0), (times, 60.0), ("a", times)):
        frame = pl.DataFrame({"who": who, "when": times, "hr": value})
        windows, report = ingest(tmp_path, mapping, {"a.parquet": frame})
        assert report.rows_read == 1 == report.rows_kept + report.rows_quarantined
        if not relative and value is not times:
            assert sum(map(len, windows.values())) == good == report.rows_kept


@pytest.mark.parametrize("cell", [["2024-05-01"], dt.timedelta(days=1), dt.time(12)])
def test_a_nested_or_duration_column_costs_its_rows(tmp_path, cell):
    frame = pl.DataFrame({"who": "a", "when": [cell], "hr": 60.0})
    files = {"a.parquet": frame, "b.csv": "who,when,hr\nb,2024-05-01 00:00,60\n"}
    windows, report = ingest(tmp_path, WIDE.replace("*.csv", "*"), files)
    assert list(windows) == ["b"]
    assert report.quarantined["time is not readable"].samples == ["a.parquet:1"] and report.rows_kept == 1


def test_a_file_without_the_column_is_set_aside_and_the_others_are_read(tmp_path):
    files = {"a.csv": "who,when,hr\na,2024-05-01 00:00,60\n", "b.csv": "who,when,bpm\nb,2024-05-01 00:00,60\n"}
    windows, report = ingest(tmp_path, WIDE, files)
    assert list(windows) == ["a"]
    assert report.files_set_aside == ["b.csv: line 1 lacks the column 'hr', which tables[0] of the mapping names"]


MISTAKES = {
    "files = ": ("fils = ", r"m.toml:3: tables\[0\].fils.*'files'"),
    "heart_rate = {": ("hart_rate = {", r"m.toml:7: .*hart_rate is no channel.*heart_rate"),
    'column = "hr" }': ('column = "hr", unit = "furlong" }', r"m.toml:7: .*unit is 'furlong'"),
    'column = "hr"  }': ('column = "hr", keep = ["hr"] }', r"m.toml:7: .*keep\[0\] is 'hr'"),
    'time = { column = "when" }': ('time = { column = "when", unit = "years" }', r"m.toml:5: .*unit is 'years'"),
    'person = { column = "who" }': ("person = { file = 'p' }", r"m.toml:4: .*a group around"),
    'person = { column = "who"  }': ("person = { file = '(' }", r"m.toml:4: .*no regular expression"),
    "[tables.channels]": ("period_minutes = 0\n[tables.channels]", r"m.toml:6: .*period_minutes is 0"),
    "[tables.channels] ": ("keep = 3\n[tables.channels]", r"m.toml:6: .*keep is 3, expected a valid list"),
    "person = {": ('separator = "::"\nperson = {', r"m.toml:4: .*separator is '::'"),
    "[[tables]]": ("[[tables", "cannot be read.*line 2"),
    "[[tables]] ": ("[[labels]]", r"m.toml:\d+: tables .*write it as \[\[tables\]\]"),
    '"*.csv"': ('"*.cvs"', r"files = '\*.cvs' matches none"),
}


@pytest.mark.parametrize("change", MISTAKES)
def test_mistakes_in_a_mapping_name_key_and_line(tmp_path, change):
    wrong, message = MISTAKES[change]
    target = " ".join(change.split())
    assert target in WIDE
    with pytest.raises(UserError, match=message):
        ingest(tmp_path, WIDE.replace(target, wrong), {"a.csv": "who,when,hr\n"})


EVENTS = '[[events]]\nfiles = "*"\nperson = { column = "who" }\nkind = "KIND"\ntime = { column = "when"TIME }\n'
WHOLE_FILES = {
    "# none": r"no \[\[tables\]\] section",
    WIDE + EVENTS.replace("KIND", "party").replace("TIME", ""): r"m.toml:11: events\[0\].kind is 'party', .*'meal'",
    WIDE + EVENTS.replace("KIND", "meal").replace("TIME", ', unit = "hours"'): "mixes relative and absolute times",
    WIDE.replace('"when" }', '"when", time_zone = "Mars/Olympus" }'): r"m.toml:5: .*time_zone is 'Mars/Olympus'",
    WIDE.replace('"when" }', '"when", weekday = "d", weekday_day = "n" }'): "weekday needs files of one person each",
    WIDE.replace("[tables.", 'signal = "kind"\n[tables.'): r"m.toml:6: .*signal and value go together",
    WIDE.replace("[tables.", 'signal = "kind"\nvalue = "v"\n[tables.'): r"m.toml:9: .*takes the key 'signal'",
    WIDE + WIDE.replace('heart_rate = { column = "hr" }', 'glucose.column = "g"\nglucose.unit = "furlong"'): (
        r"m.toml:15: tables\[1\].channels.glucose.unit is 'furlong'; .*mg/dL"
    ),
}


@pytest.mark.parametrize("text", WHOLE_FILES, ids=range(len(WHOLE_FILES)))
def test_mappings_that_contradict_themselves_are_refused(tmp_path, text):
    with pytest.raises(UserError, match=WHOLE_FILES[text]):
        ingest(tmp_path, text, {"a.csv": "who,when,hr\n"})


def test_mapping_is_needed(tmp_path):
    with pytest.raises(UserError, match="--mapping"):
        make_reader("table", ReaderOptions())
    with pytest.raises(UserError, match="Did you mean 'table'"):
        make_reader("tabel", ReaderOptions())
    with pytest.raises(UserError, match="cannot be read"):
        make_reader("table", ReaderOptions(mapping=tmp_path / "none.toml"))


def minutes(windows):
    """{(month, day, minute): heart rate} of the only person."""
    (days,) = windows.values()
    return {
        (window.start.month, window.start.day, int(minute)): float(window.values[minute, 0])
        for window in days
        for minute in np.flatnonzero(window.observed[:, 0])
    }


def timed(columns, *formats):
    return WIDE.replace('column = "when"', f"column = {columns}, formats = {list(formats)}").replace("'", '"')


def test_date_and_time_in_two_columns_below_lines_that_are_no_header(tmp_path):
    mapping = timed(["Date", "Time"], "%d/%m/%Y %H:%M:%S")
    text = (
        "Made by X\nStart 4\n\nwho,Date,Time,hr\na,04/03/2024,00:00:00,60\na,04/03/2024,00:02:00,62\na,04/03/2024,,1\n"
    )
    windows, report = ingest(tmp_path, mapping, {"a.csv": text})
    assert minutes(windows) == {(3, 4, 0): 60, (3, 4, 2): 62}
    assert report.quarantined["time is not readable"].samples == ["a.csv:7"] and report.rows_read == 3


AFTERNOONS = (
    "p. m.",
    "PM",
    "pm",
    "p.m.",
    "\u202fPM",
    "下午",
    "오후",
    "μ.μ.",
    "م",
    "ب.ظ.",
    "หลังเที่ยง",
    "CH",
    "ip.",
    "אחה״צ",
)


@pytest.mark.parametrize("word", AFTERNOONS)
def test_halves_of_the_day_in_other_spellings(tmp_path, word):
    mapping = timed("'when'", "%d/%m/%Y %I:%M:%S %p")
    rows = "".join(f"a,04/03/2024 {hour} {word},{value}\n" for hour, value in (("01:00:00", 60), ("12:01:00", 61)))
    windows, _ = ingest(tmp_path, mapping, {"a.csv": "who,when,hr\n" + rows + "a,04/03/2024 12:02:00 a. m.,62\n"})
    assert minutes(windows) == {(3, 4, 780): 60, (3, 4, 721): 61, (3, 4, 2): 62}


def test_the_order_of_day_and_month_is_that_of_the_whole_column(tmp_path):
    both = timed("'when'", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M")
    header, early, late = "who,when,hr\n", "a,10/03/2024 00:00,60\n", "a,13/03/2024 00:00,61\n"
    windows, _ = ingest(tmp_path, both, {"a.csv": header + early + late})
    assert minutes(windows) == {(3, 10, 0): 60, (3, 13, 0): 61}
    with pytest.raises(UserError, match=r"a\.csv: the dates in column 'when' do not tell.*--date-order day"):
        ingest(tmp_path, both, {"a.csv": header + early})
    with pytest.raises(UserError, match=r"start with the day, and tables\[0\]\.time\.formats are '%m/%d/%Y %H:%M'"):
        ingest(tmp_path, timed("'when'", "%m/%d/%Y %H:%M"), {"a.csv": header + early + late})


DATES = {
    "in another file": (["when"], "FORMAT %H:%M", "10/03/2024 00:00,60", "13/03/2024 00:00,61"),
    "in another column": (["day", "when"], "FORMAT %H:%M", "10/03/2024,00:00,60", "13/03/2024,00:00,61"),
    "after the time": (["when"], "%H:%M FORMAT", "00:00 10/03/2024,60", "00:00 13/03/2024,61"),
    "after the weekday": (["when"], "%a FORMAT %H:%M", "Sun 10/03/2024 00:00,60", "Wed 13/03/2024 00:00,61"),
    "without marks": (["when"], "FORMAT %H%M", "10032024 0000,60", "13032024 0000,61"),
}


@pytest.mark.parametrize("place", DATES)
def test_a_file_follows_the_other_files_of_its_section(tmp_path, place):
    columns, spelling, early, late = DATES[place]
    dates = ("%m%d%Y", "%d%m%Y") if place == "without marks" else ("%m/%d/%Y", "%d/%m/%Y")
    both = timed(columns, *(spelling.replace("FORMAT", date) for date in dates))
    header = ",".join(["who", *columns, "hr"]) + "\n"
    windows, _ = ingest(tmp_path, both, {"a.csv": f"{header}a,{early}\n", "b.csv": f"{header}a,{late}\n"})
    assert minutes(windows) == {(3, 10, 0): 60, (3, 13, 0): 61}


def test_marks_tell_apart_what_their_order_does_not(tmp_path):
    """Dates with points start with the day, those with slashes with the month, and ISO dates are neither."""
    mixed = timed("'when'", "%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M", "%d-%m-%Y %H:%M", "%Y-%m-%d %H:%M")
    rows = ["10.03.2024 00:00,60", "03/11/2024 00:00,61", "2024-03-13 00:00,62", "12-03-2024 00:00,63"]
    windows, _ = ingest(tmp_path, mixed, {"a.csv": "who,when,hr\n" + "".join(f"a,{row}\n" for row in rows)})
    assert minutes(windows) == {(3, 10, 0): 60, (3, 11, 0): 61, (3, 12, 0): 63, (3, 13, 0): 62}


def test_files_of_both_orders_leave_a_third_undecided(tmp_path):
    both = timed("'when'", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M")
    days = {"a.csv": "13/03/2024", "b.csv": "03/14/2024", "c.csv": "10/03/2024"}
    files = {name: f"who,when,hr\na,{day} 00:00,60\n" for name, day in days.items()}
    with pytest.raises(UserError, match=r"c\.csv: .* do not tell"):
        ingest(tmp_path, both, files)
    files["c.csv"] = "who,when,hr\na,13/03/2024 00:00,60\na,03/14/2024 00:00,60\n"
    with pytest.raises(UserError, match=r"c\.csv: .* start with the day and with the month"):
        ingest(tmp_path, both, files)


@pytest.mark.parametrize(
    ("spelling", "fault"),
    [
        ("%d/%m/%Y %I:%M:%S", r"has hours up to 12 \(%I\) and lacks %p"),
        ("%d/%m/%Y", "names no hour"),
        ("%Y-%m-%d %H", "is no strptime format"),
    ],
)
def test_formats_that_cannot_be_right_are_refused(tmp_path, spelling, fault):
    with pytest.raises(UserError, match=rf"m\.toml:5: .*formats has '{spelling}', which {fault}"):
        ingest(tmp_path, timed("'when'", spelling), {"a.csv": "who,when,hr\n"})


def test_a_time_may_count_from_a_date(tmp_path):
    mapping = WIDE.replace('"when" }', '"when", unit = "hours", zero = "2024-03-09 23:00" }')
    files = {"a.csv": "who,when,hr\na,-0.5,60\na,1,61\na,4,62\n", "a.txt": "who,when\na,2024-03-10 01:00\n"}
    meals = '[[events]]\nfiles = "*.txt"\nperson = { column = "who" }\nkind = "meal"\ntime = { column = "when" }\n'
    windows, _ = ingest(tmp_path, mapping + meals, files, time_zone="America/New_York")
    (saturday, sunday) = windows["a"]
    assert saturday.utc_offset_minutes == -300 and np.flatnonzero(saturday.observed[:, 0]).tolist() == [22 * 60 + 30]
    # Summer time begins: four hours after 23:00 the clock shows 4:00.
    assert np.flatnonzero(sunday.observed[:, 0]).tolist() == [0, 240] and sunday.events[0].start == 60
    for zero in ("2024-13-09 23:00", "25:00", "noon"):
        with pytest.raises(UserError, match=rf"m\.toml:5: .*zero is '{zero}', expected the time of day"):
            ingest(tmp_path, mapping.replace("2024-03-09 23:00", zero), files)
    weekday = mapping.replace("zero", 'weekday = "d", weekday_day = "n", zero')
    with pytest.raises(UserError, match="zero has a date, so neither a weekday"):
        ingest(tmp_path, weekday, files)


def test_counts_of_intervals_and_rows_of_one_time_stamp(tmp_path):
    mapping = WIDE.replace("[tables.", 'end = "to"\n[tables.') + 'steps = { column = "steps" }\n'
    rows = "a,2024-05-01 00:00,2024-05-01 00:05,60,250\n" * 2 + "a,2024-05-01 00:05,2024-05-01 00:04,60,1\n"
    windows, report = ingest(tmp_path, mapping, {"a.csv": "who,when,to,hr,steps\n" + rows})
    (window,) = windows["a"]
    assert window.values[:5].tolist() == [[60, 50]] * 5 and window.observed.sum() == 10
    assert report.duplicates == {"heart_rate": 1, "steps": 1} and report.rows_quarantined == 1
    same = "a,2024-05-01 00:00,60,1\na,2024-05-01 00:00,61,1\na,2024-05-01 00:00,61,1\n"
    for rule, steps in (("", 2), (', aggregate = "sum"', 3)):
        mapping = WIDE + f'steps = {{ column = "steps"{rule} }}\n'
        (window,) = ingest(tmp_path, mapping, {"a.csv": "who,when,hr,steps\n" + same})[0]["a"]
        assert window.values[0].tolist() == [60.5, steps]


def test_a_time_before_the_event_needs_the_event_s_clock_time(tmp_path):
    mapping = WIDE.replace('"when" }', '"when", unit = "seconds" }')
    files = {"a.csv": "who,when,hr\na,-60,60\na,0,61\n"}
    windows, report = ingest(tmp_path, mapping, files)
    assert minutes(windows) == {(1, 1, 0): 61} and report.rows_quarantined == 1
    windows, _ = ingest(tmp_path, mapping.replace('"seconds"', '"seconds", zero = "22:30"'), files)
    assert minutes(windows) == {(1, 1, 1349): 60, (1, 1, 1350): 61}
