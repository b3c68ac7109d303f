"""The hour and the day of what was recorded: offsets in the text, zones of people, sites and files, none at all."""

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lsm_jax.errors import UserError
from tests.ingest.reading import read_source, values

MAPPING = """
[[tables]]
files = "*.csv"
person = { file = '(\\w+)\\.csv' }
time = { column = "time" }
channels = { heart_rate = { column = "hr" } }
"""
OF_COLUMN = MAPPING.replace("file = '(\\w+)\\.csv'", 'column = "who"')


def days_of(tmp_path, mapping, files, time_zone=None, format="table"):
    """({person: [(UTC start, offset in minutes, {minute: value}, events, labels)]}, what the terminal says)."""
    found = read_source(format, tmp_path, files, mapping, time_zone=time_zone)
    days = {
        person: [
            (
                f"{day.window.start:%m-%d %H:%M}",
                day.window.utc_offset_minutes,
                values(day.window, day.window.channels[0]),
                [event[1:] for event in day.events],
                day.window.labels,
            )
            for day in days
        ]
        for person, days in found.people.items()
        if days
    }
    return days, found.said


def only(days):
    ((person_days),) = days.values()
    return [day[:3] for day in person_days]


OFFSETS = {
    "2024-03-04T00:00:00-0800": ("03-04 08:00", -480),
    "2024-03-04 00:00:00 -08:00": ("03-04 08:00", -480),
    "2024-03-04T00:00:00.000-08": ("03-04 08:00", -480),
    "2024-03-04T00:00:00+05:30": ("03-03 18:30", 330),
    "2024-03-04 00:00 UTC+0545": ("03-03 18:15", 345),
}


@pytest.mark.parametrize("text", OFFSETS)
def test_an_offset_in_the_text_cuts_the_days(tmp_path, text):
    days, said = days_of(tmp_path, MAPPING, {"a.csv": f"time,hr\n{text},50\n"})
    assert only(days) == [(*OFFSETS[text], {0: 50})] and "time zone" not in said


@pytest.mark.parametrize("spelling", ["%d.%m.%Y %H:%M %z", "%d.%m.%Y %H:%M %:z", "%d.%m.%Y %z %H:%M"])
def test_an_offset_in_a_format_of_the_mapping(tmp_path, spelling):
    mapping = MAPPING.replace('"time" }', f'"time", formats = ["{spelling}"] }}')
    moment = dt.datetime(2024, 3, 4, tzinfo=dt.timezone(dt.timedelta(hours=-8)))
    text = moment.strftime(spelling.replace("%:z", "-08:00")) + ",50\n"
    assert only(days_of(tmp_path, mapping, {"a.csv": "time,hr\n" + text})[0]) == [("03-04 08:00", -480, {0: 50})]


def test_offsets_that_change_with_the_clock_or_the_place(tmp_path):
    rows = [
        "2024-03-09T12:00:00-0800",
        "2024-03-10T12:00:00-0700",  # summer time began
        "2024-03-12T00:00:00+0100",  # a journey
        "2024-03-12T01:00:00Z",  # names no place
    ]
    days, said = days_of(tmp_path, MAPPING, {"a.csv": "time,hr\n" + "".join(f"{row},50\n" for row in rows)})
    assert only(days) == [
        ("03-09 08:00", -480, {720: 50}),
        ("03-10 08:00", -480, {720: 50}),
        ("03-11 23:00", 60, {0: 50, 120: 50}),
    ]
    assert "time zone" not in said


def test_offsets_that_alternate_are_one_a_day(tmp_path):
    """Two devices, of which one is at another place's time or in UTC."""
    for other in ("+03:00", "+00:00", "Z"):
        rows = [f"2024-03-04T{hour:02d}:00:00{'+01:00' if hour % 3 else other}" for hour in range(8, 20)]
        days, _ = days_of(tmp_path, MAPPING, {"a.csv": "time,hr\n" + "".join(f"{row},50\n" for row in rows)})
        assert [day[:2] for day in only(days)] == [("03-03 23:00", 60)]


def test_diary_and_labels_without_an_offset_are_on_the_clock_of_the_recording(tmp_path):
    mapping = OF_COLUMN + (
        '[[events]]\nfiles = "meals.txt"\nperson = { column = "who" }\ntime = { column = "time" }\nkind = "meal"\n'
        'name = "lunch"\n[[labels]]\nfiles = "days.txt"\nperson = { column = "who" }\ncolumns = { mood = "mood" }\n'
        'time = { column = "day", formats = ["%Y-%m-%d"] }\n'
    )
    files = {
        "a.csv": "who,time,hr\na,2024-03-04T00:00:00-0800,50\n",
        "meals.txt": "who,time\na,2024-03-04 12:30\n",
        "days.txt": "who,day,mood\na,2024-03-04,3\n",
    }
    ((day,),) = days_of(tmp_path, mapping, files)[0].values()
    assert day == ("03-04 08:00", -480, {0: 50}, [("lunch", 750, 751)], {"mood": 3})


SITES = {"berlin": ("03-03 23:00", 60), "boston": ("03-04 05:00", -300)}
SITE_FILES = {f"{site}/{site[:2]}.csv": "time,hr\n2024-03-04 00:00:00,50\n" for site in SITES}
ZONES = 'zones = { berlin = "Europe/Berlin", boston = "America/New_York" }'


def test_two_sites_are_one_dataset(tmp_path):
    """By a section for each, by a pattern on the path, by a column of sites or of zones, by a table of people."""
    expected = {site[:2]: [(*start, {0: 50}, [], {})] for site, start in SITES.items()}
    section = MAPPING.replace("*.csv", "SITE/*.csv").replace('"time" }', '"time", time_zone = "ZONE" }')
    by_section = "".join(
        section.replace("SITE", site).replace("ZONE", zone)
        for site, zone in (("berlin", "Europe/Berlin"), ("boston", "America/New_York"))
    )
    by_path = MAPPING.replace('"time" }', f"\"time\", time_zone = {{ file = '^(\\w+)/', {ZONES} }} }}")
    for mapping in (by_section, by_path):
        days, said = days_of(tmp_path, mapping, SITE_FILES)
        assert days == expected and "time zone" not in said


def test_zones_by_row_and_by_person(tmp_path):
    rows = [("be", "berlin", "Europe/Berlin"), ("bo", "boston", "-05:00")]
    files = {
        "all.csv": "who,time,hr,site,zone\n" + "".join(f"{who},2024-03-04 00:00,50,{s},{z}\n" for who, s, z in rows),
        "people.txt": "who,site\n" + "".join(f"{who},{site}\n" for who, site, _ in rows),
    }
    expected = {site[:2]: [(*start, {0: 50}, [], {})] for site, start in SITES.items()}
    people = '[[labels]]\nfiles = "people.txt"\nperson = { column = "who" }\n'
    for mapping in (
        OF_COLUMN.replace('"time" }', '"time", time_zone = { column = "zone" } }'),
        OF_COLUMN.replace('"time" }', f'"time", time_zone = {{ column = "site", {ZONES} }} }}'),
        OF_COLUMN + people + f'time_zone = {{ column = "site", {ZONES} }}\n',
    ):
        days, said = days_of(tmp_path, mapping, files)
        assert days == expected and "time zone" not in said
    files["all.csv"] += "bo,2024-03-04 00:01,51,paris,Mars/Olympus\n"
    days, said = days_of(tmp_path, OF_COLUMN.replace('"time" }', '"time", time_zone = { column = "zone" } }'), files)
    assert days == expected and "1 rows: time zone is neither an IANA name, an offset nor" in said


def test_people_who_wore_fitbit_or_e4_at_two_sites(tmp_path):
    people = f"""
[[labels]]
files = "people.txt"
person = {{ column = "who" }}
time_zone = {{ column = "site", {ZONES} }}
"""
    table = "who,site\n1,berlin\n2,boston\n"
    steps = "Id,ActivityMinute,Steps\n" + "".join(f"{who},3/4/2024 12:00:00 AM,5\n" for who in (1, 2))
    days, said = days_of(tmp_path, people, {"steps.csv": steps, "people.txt": table}, format="fitbit")
    assert {who: each[0][:3] for who, each in days.items()} == {
        "1": (*SITES["berlin"], {0: 5}),
        "2": (*SITES["boston"], {0: 5}),
    }
    assert "time zone" not in said


NOT_KNOWN = "no time zone is known, so hours and days are those of UTC"
WALL = "hours and days are those of the clock in the files, whose time zone is not known"


def test_the_terminal_says_where_no_zone_is_known(tmp_path):
    for offset, sentence in {"": WALL, "Z": NOT_KNOWN, "+00:00": NOT_KNOWN}.items():
        files = {"a.csv": f"time,hr\n2024-03-04T00:00{offset},50\n"}
        days, said = days_of(tmp_path, MAPPING, files)
        assert only(days) == [("03-04 00:00", 0, {0: 50})] and f"1 people: {sentence}" in said
        assert "time zone" not in days_of(tmp_path, MAPPING, files, time_zone="UTC")[1]
    files = {"a.csv": "time,hr\n2024-03-04 00:00,50\n2024-03-04T00:01Z,50\n"}
    assert "they may be hours apart. Name the zone" in days_of(tmp_path, MAPPING, files)[1]


@pytest.mark.parametrize(("zone", "start"), [("+05:30", ("03-03 18:30", 330)), ("Europe/Berlin", ("03-03 23:00", 60))])
def test_the_zone_of_a_parquet_column(tmp_path, zone, start):
    (tmp_path / "source").mkdir()
    moment = int(dt.datetime(2024, 3, 4, tzinfo=dt.UTC).timestamp()) - 60 * start[1]
    times = pa.array([moment * 1000], pa.timestamp("ms", tz=zone))
    pq.write_table(pa.table({"time": times, "hr": [50.0]}), tmp_path / "source" / "a.parquet")
    days, said = days_of(tmp_path, MAPPING.replace("csv", "parquet"), {})
    assert only(days) == [(*start, {0: 50})] and "time zone" not in said


def test_zones_that_cannot_be_right_are_refused(tmp_path):
    for zone, message in {
        '"Mars/Olympus"': r"m\.toml:5: .*time_zone is 'Mars/Olympus'",
        '"localtime"': r"m\.toml:5: .*time_zone is 'localtime'",
        "{ column = \"site\", zones = { boston = 'EDT' } }": r"m\.toml:5: .*zones\.boston is 'EDT'",
        "{}": r"time_zone takes an IANA name, or column",
    }.items():
        with pytest.raises(UserError, match=message):
            days_of(tmp_path, MAPPING.replace('"time" }', f'"time", time_zone = {zone} }}'), {"a.csv": "time,hr\n"})
    named = MAPPING.replace('"time" }', '"time", formats = ["%Y-%m-%d %H:%M %Z"] }')
    with pytest.raises(UserError, match=r"%Z.*time_zone"):
        days_of(tmp_path, named, {"a.csv": "time,hr\n"})
    known = named.replace('%Z"]', '%Z"], time_zone = "America/New_York"')
    assert only(days_of(tmp_path, known, {"a.csv": "time,hr\n2024-03-04 00:00 EST,50\n"})[0])[0][1] == -300


def test_a_file_whose_path_names_no_zone_is_set_aside(tmp_path):
    by_path = MAPPING.replace('"time" }', f"\"time\", time_zone = {{ file = '^(\\w+)/', {ZONES} }} }}")
    days, said = days_of(tmp_path, by_path, SITE_FILES | {"paris/pa.csv": "time,hr\n2024-03-04 00:00:00,50\n"})
    assert {*days} == {"be", "bo"}
    assert "paris/pa.csv: time_zone.file = " in said


def test_the_hour_that_a_person_s_clock_skips(tmp_path):
    """Where the zone is known only from a table of people: read on the clock before the change, nothing is lost."""
    mapping = OF_COLUMN + '[[labels]]\nfiles = "p.txt"\nperson = { column = "who" }\ntime_zone = { column = "zone" }\n'
    files = {
        "a.csv": "who,time,hr\na,2024-03-10 01:59,50\na,2024-03-10 02:30,51\na,2024-11-03 01:30,52\n",
        "p.txt": "who,zone\na,America/New_York\n",
    }
    assert only(days_of(tmp_path, mapping, files)[0]) == [
        ("03-10 05:00", -300, {119: 50, 210: 51}),
        ("11-03 04:00", -240, {90: 52}),
    ]
