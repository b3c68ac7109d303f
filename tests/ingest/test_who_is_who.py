"""Who is who: ids in columns and paths, spellings that meet or are refused, and folders of recordings."""

import json

import numpy as np
import polars as pl
import pytest

from lsm_jax.errors import UserError
from lsm_jax.ingest.formats import make_reader
from lsm_jax.ingest.people.ids import LOST_DIGITS, identity
from lsm_jax.ingest.people.roster import AmbiguousPeople
from lsm_jax.ingest.people.rules import people_rule
from lsm_jax.ingest.pipeline import People
from lsm_jax.ingest.reader import ReaderOptions
from lsm_jax.ingest.report import IngestReport
from tests.ingest.reading import write_source

TABLE = """
[[tables]]
files = "hr*"
person = { column = "who" }
time = { column = "when" }
channels = { heart_rate = { column = "hr" } }
"""
LABELS = '[[labels]]\nfiles = "people*"\nperson = { column = "id" }\ncolumns = { age = "age" }\n'
BEAT = ",2024-05-01 00:00,60\n"


def read(tmp_path, mapping, files, format="table", person=None):
    """({raw id: record}, participants of the windows, report)."""
    path, source = write_source(tmp_path, files, mapping), tmp_path / "source"
    (tmp_path / "scratch").mkdir(exist_ok=True)
    reader = make_reader(format, ReaderOptions(mapping=path, scratch=tmp_path / "scratch", people=people_rule(person)))
    report = IngestReport()
    channels = reader.channels(source)
    keys = list(reader.people(source, report))
    records = {reader.person(key): reader.read(source, key, report) for key in keys}
    people = People(reader, source, channels, "s")
    windows = [window for key in keys for window in people.person_windows(key, IngestReport())]
    return records, {window.participant for window in windows}, report


def hr(*ids):
    return "who,when,hr\n" + "".join(f"{each}{BEAT}" for each in ids)


@pytest.mark.parametrize(
    ("device", "survey"), [("007", "7"), ("p01", "P01"), ("S_1", "S-01"), ("7.0", " 7 "), ("é", "é")]
)
def test_spellings_of_device_and_questionnaire_meet(tmp_path, device, survey):
    files = {"hr.csv": hr(device, "ann"), "people.csv": f"id,age\n{survey},41\nann,30\n"}
    records, participants, report = read(tmp_path, TABLE + LABELS, files)
    assert {name: dict(record.labels) for name, record in records.items()} == {
        device.removesuffix(".0"): {"age": 41.0},
        "ann": {"age": 30.0},
    }
    # A dataset of the other spelling has the same pseudonym, so that no split separates the person.
    _, again, _ = read(tmp_path / "other", TABLE, {"hr.csv": hr(survey.strip(), "ann")})
    assert again == participants and len(participants) == 2
    said = [note for note in report.notes if "1 people are spelt in several ways" in note]
    assert len(said) == (device not in ("7.0",) and device != survey)


def test_two_spellings_in_one_section_are_refused_until_the_mapping_says_what_they_are(tmp_path):
    files = {"hr_a.csv": hr("P01"), "hr_b.csv": hr("p1")}
    with pytest.raises(
        AmbiguousPeople, match=r"1 ids of tables\[0\] are spelt .*hr_a\.csv and hr_b\.csv.*same = "
    ) as e:
        read(tmp_path, TABLE, files)
    assert e.value.spellings == [("P01", "p1")] and "P01" not in str(e.value)
    records, participants, _ = read(tmp_path, "[people]\nsame = []\n" + TABLE, files)
    assert set(records) == {"P01", "p1"} and len(participants) == 2
    records, participants, report = read(tmp_path, '[people]\nsame = ["case", "zeros"]\n' + TABLE, files)
    assert set(records) == {"P01"} and len(participants) == 1 and report.rows_kept == 2
    assert identity("P 007.0A") == identity("p_7-0a") != identity("p 70a")


def test_an_id_of_several_columns(tmp_path):
    mapping = TABLE.replace('"who"', '["site", "who"]') + LABELS
    rows = f"site,who,when,hr\nA,1{BEAT}B,1{BEAT}A-B,1{BEAT},1{BEAT}"
    records, participants, report = read(tmp_path, mapping, {"hr.csv": rows, "people.csv": "id,age\nB-1,50\n"})
    assert set(records) == {"A-1", "B-1"} and len(participants) == 2 and records["B-1"].labels == {"age": 50}
    assert {reason: entry.samples for reason, entry in report.quarantined.items()} == {
        "part of a person id holds '-': give another join": ["hr.csv:4"],
        "no person id": ["hr.csv:5"],
    }
    joined = TABLE.replace('{ column = "who" }', '{ column = ["site", "who"], join = "/" }')
    assert set(read(tmp_path, joined, {"hr.csv": rows})[0]) == {"A/1", "B/1", "A-B/1"}


def test_ids_in_scientific_notation_are_read_or_set_aside(tmp_path):
    ids = ["1.23457E+11", "1,23457E+11", "1E+12", "7.0E+00", "1.234E+03", "12E5", "5e3", "123456789012"]
    rows = "who;when;hr\n" + "".join(f"{each};2024-05-01 00:00;60\n" for each in ids)
    records, _, report = read(tmp_path, TABLE, {"hr.csv": rows})
    assert set(records) == {"7", "1234", "12E5", "5e3", "123456789012"}
    assert report.quarantined[LOST_DIGITS].samples == ["hr.csv:2", "hr.csv:3", "hr.csv:4"]
    frame = pl.DataFrame({"who": [1503960366.0, 5.0], "when": "2024-05-01 00:00", "hr": 60.0})
    records, _, report = read(tmp_path / "f", TABLE, {"hr.parquet": frame.with_columns(pl.col("who").cast(pl.Float32))})
    assert set(records) == {"5"} and report.quarantined[LOST_DIGITS].rows == 1


def test_an_id_is_a_part_of_a_cell(tmp_path):
    mapping = TABLE.replace('"who" }', """"who", pattern = 'sub-(\\d+)' }""")
    records, _, report = read(tmp_path, mapping, {"hr.csv": hr("sub-01_ses-1", "sub-01_ses-2", "pilot")})
    assert set(records) == {"01"} and report.rows_kept == 2
    assert report.quarantined["person id is not of the pattern of the mapping"].samples == ["hr.csv:4"]


PATHS = {
    "file = '(P\\d)'": ({"P1", "P2"}, "site2/P3_of_P4/hr.csv: tables[0].person finds several ids in its path"),
    "path = '*/{person}/hr.csv'": ({"P1", "P2", "P3_of_P4", "other"}, None),
    "path = '{person}/{person}'": ({"site1-P1", "site2-P2", "site2-P3_of_P4", "site2-other"}, None),
    "path = '**/P{person}/*'": ({"1", "2", "3_of_P4"}, "site2/other/hr.csv: tables[0].person finds no id"),
    "constant = 'me'": ({"me"}, None),
}


@pytest.mark.parametrize("rule", PATHS)
def test_the_person_of_a_path(tmp_path, rule):
    mapping = TABLE.replace('"hr*"', '"*"').replace('column = "who"', rule)
    places = ("site1/P1", "site2/P2", "site2/P3_of_P4", "site2/other")
    files = {f"{place}/hr.csv": f"when,hr\n2024-05-01 00:0{at},60\n" for at, place in enumerate(places)}
    records, _, report = read(tmp_path, mapping, files)
    people, fault = PATHS[rule]
    assert set(records) == people
    assert any(str(fault) in each for each in report.files_set_aside) == bool(fault)


def test_one_rule_serves_every_section(tmp_path):
    mapping = "[people]\npath = '{person}/*'\n" + TABLE.replace('person = { column = "who" }\n', "").replace(
        '"hr*"', '"*/hr*"'
    )
    mapping += '[[labels]]\nfiles = "*/about.csv"\ncolumns = { age = "age" }\n'
    files = {"P1/hr.csv": "when,hr\n2024-05-01 00:00,60\n", "P1/about.csv": "age\n40\n"}
    assert read(tmp_path, mapping, files)[0]["P1"].labels == {"age": 40.0}


MISTAKES = {
    "": "tables[0].person takes one of column",
    'column = "who", constant = "me"': "tables[0].person takes one of column",
    "file = 'P'": "person.file needs a group around the id",
    "file = '('": "person.file is no regular expression",
    "path = 'P*/hr.csv'": "person.path is 'P*/hr.csv', expected a path with {person}",
    "column = ['a', 'b'], pattern = '(x)'": "person.pattern takes the id out of one column",
    "column = ['a', 'b'], join = ''": "person.join is empty",
    "columm = 'a'": "Did you mean 'column'",
}


@pytest.mark.parametrize("rule", MISTAKES)
def test_mistakes_in_a_rule_are_named(tmp_path, rule):
    with pytest.raises(UserError) as error:
        read(tmp_path, TABLE.replace('column = "who"', rule), {})
    assert "m.toml:4: " in str(error.value) and MISTAKES[rule] in str(error.value)
    with pytest.raises(
        UserError, match=r"m\.toml:2: people\.same\[0\] is 'cases', expected 'case', 'zeros' or 'marks'"
    ):
        read(tmp_path, '[people]\nsame = ["cases"]\n' + TABLE, {})


# Folders of recordings.

HEART = "1709560800.0\n1.0\n" + "60\n" * 60
FOLDERS = {
    # Parts of a person on two levels of folders.
    ("S1", "S1/part 2", "S1/part 3", "S2"): {"S1": 3, "S2": 1},
    # Sessions of one person.
    ("P01/rest", "P01/run"): {"P01": 2},
    ("rest/P01", "run/P01"): {"P01": 2},
    # Letters of parts.
    ("S1", "S2_a", "S2_b", "S3"): {"S1": 1, "S2": 2, "S3": 1},
    ("S1_a", "S1_b", "S2_a", "S2_b"): {"S1": 2, "S2": 2},
    ("E4/P01", "E4/P02"): {"P01": 1, "P02": 1},
    # One folder of a class is spelt differently.
    ("rest/S01", "rest/S02", "run/s01", "run/S02"): {"S01": 2, "S02": 2},
}


def sessions(places):
    return {
        f"{place}/HR.csv": HEART.replace("1709560800", str(1709560800 + 86400 * at)) for at, place in enumerate(places)
    }


def people_of(tmp_path, places, person=None, mapping=""):
    records, _, report = read(tmp_path, mapping, sessions(places), "empatica", person)
    return {name: len(record.series) for name, record in records.items()}, report


@pytest.mark.parametrize("places", FOLDERS, ids=range(len(FOLDERS)))
def test_people_of_folders(tmp_path, places):
    assert people_of(tmp_path, places)[0] == FOLDERS[places]


UNCLEAR = {
    ("P01/S1", "P01/S2", "P01/S3", "P02/S1", "P02/S2", "P02/S3"): ("{person}", {"P01": 3, "P02": 3}),
    ("ann/rest", "ann/run", "ann/ride", "ben/rest", "ben/run", "ben/ride"): ("{person}", {"ann": 3, "ben": 3}),
    ("P01/S1", "P01/S2"): ("*/{person}", {"S1": 1, "S2": 1}),
    ("subj_a", "subj_b"): ("{person}_?", {"subj": 2}),
}


@pytest.mark.parametrize("places", UNCLEAR, ids=range(len(UNCLEAR)))
def test_folders_that_could_be_read_in_two_ways_are_refused_until_the_user_says_it(tmp_path, places):
    rule, people = UNCLEAR[places]
    with pytest.raises(UserError, match=r"--person '.*\{person\}.*'"):
        people_of(tmp_path, places)
    found, report = people_of(tmp_path, places, rule)
    assert found == people and report.files_set_aside == []
    assert people_of(tmp_path, places, mapping=f"[people]\npath = '{rule}'\n")[0] == people


def test_the_rule_of_the_user_keeps_classes_and_sets_other_sessions_aside(tmp_path):
    places = ("study/rest/P1", "study/run/P1", "study/rest/P2", "study/run/P2", "P9")
    records, _, report = read(tmp_path, "", sessions(places), "empatica", "study/*/{person}")
    assert {event.name for record in records.values() for event in record.events} == {"rest", "run"}
    assert set(records) == {"P1", "P2"} and report.files_set_aside == ["P9: the rule of people finds no id in its path"]
    assert set(read(tmp_path, "", {}, "empatica", "me")[0]) == {"me"}


def test_a_rule_for_files_that_name_their_people_is_refused(tmp_path):
    with pytest.raises(UserError, match="--person: files of format fitbit name their people themselves"):
        read(tmp_path, "", {}, "fitbit", "{person}")


def test_fitbit_ids_that_lost_digits_are_set_aside_and_the_others_meet_the_survey(tmp_path):
    steps = "Id,ActivityMinute,Steps\n" + "".join(
        f"{each},3/14/2024 7:00:00 AM,5\n" for each in ("1503960366", "1503960366.0", "1.50396E+09", "007")
    )
    records, _, report = read(tmp_path, LABELS, {"steps.csv": steps, "people.csv": "id,age\n7,41\n"}, "fitbit")
    assert set(records) == {"1503960366", "007"} and records["007"].labels == {"age": 41.0}
    assert report.quarantined["person id is not a whole number"].samples == ["steps.csv:4"]
    assert np.isfinite(records["007"].series[0].value).sum() == 1
    both = {"steps.csv": steps + "7,3/14/2024 7:01:00 AM,5\n"}
    with pytest.raises(AmbiguousPeople, match=r"1 ids of recordings are spelt .*\(as in steps\.csv\)"):
        read(tmp_path / "two", "", both, "fitbit")
    records, participants, _ = read(tmp_path / "one", '[people]\nsame = ["zeros"]\n', both, "fitbit")
    assert set(records) == {"007", "1503960366"} and len(participants) == 2
    assert np.isfinite(records["007"].series[0].value).sum() == 2


# Exports of one person each.

DAY = {"steps": 1, "day": "2024-05-14", "timestamp": "2024-05-14T04:00:00+02:00", "class_5_min": "12345"}
DAY["met"] = {"interval": 60, "items": [0.9, 3.5], "timestamp": "2024-05-14T04:00:00+02:00"}
PERSONAL = {
    ("a.json", "b.json"): (None, {"source"}, ""),
    ("ann/a.json", "ben/b.json"): (None, {"ann", "ben"}, "2 people were found, one for each folder"),
    ("a.json", "more/b.json"): (None, "files lie in the source itself and in folders of it.*--person NAME", ""),
    ("a.json", "old/b.json"): ("me", {"me"}, ""),
    ("x/ann/a.json", "y/ann/b.json"): ("*/{person}", {"ann"}, ""),
    ("ann/a.json", "ANN/b.json"): (None, r"1 ids of recordings are spelt in several ways", ""),
}


@pytest.mark.parametrize("places", PERSONAL, ids=range(len(PERSONAL)))
def test_people_of_downloaded_exports(tmp_path, places):
    rule, people, said = PERSONAL[places]
    files = {place: json.dumps({"daily_activity": [DAY]}) for place in places}
    if isinstance(people, str):
        with pytest.raises(UserError, match=people):
            read(tmp_path, "", files, "oura", rule)
        return
    records, _, report = read(tmp_path, "", files, "oura", rule)
    assert set(records) == people and said in "\n".join(report.notes)
