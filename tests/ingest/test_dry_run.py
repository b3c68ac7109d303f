"""`lsm ingest --dry-run`: what it shows, that it writes nothing, and that it refuses what ingest refuses."""

import re

import pytest

from lsm_jax.cli.main import main
from lsm_jax.ingest.formats import make_reader
from lsm_jax.ingest.pipeline import People
from lsm_jax.ingest.preview import preview
from lsm_jax.ingest.reader import ReaderOptions
from lsm_jax.ingest.report import IngestReport
from tests.ingest.hostile import CASES, write_people

MAPPING = """
[[tables]]
files = "hr/*.csv"
person = { file = 'hr/(.*)\\.csv' }
time = { column = "when", time_zone = "America/Chicago" }
channels = { heart_rate = { column = "hr" } }

[[events]]
files = "meals.csv"
person = { column = "who" }
time = { column = "when", time_zone = "America/Chicago" }
kind = "meal"
name_column = "what"

[[labels]]
files = "people.csv"
person = { column = "who" }
columns = { age = "age", sex = "sex" }
"""
FILES = {
    "hr/007.csv": "when,hr\n2024-05-01 00:00,60\n2024-05-03 23:59,61\nnever,1\n",
    "hr/ann[red].csv": "when,hr\n2024-05-02 00:00,60\n",
    "meals.csv": "who,when,what\n7,2024-05-01 12:00,lunch\n7,2024-05-01 19:00,dinner\n"
    "ann[red],2024-05-02 12:00,lunch\n",
    "people.csv": "who,age,sex\n7,41,F\n",
    "notes.txt": "x",
    "empty.csv": "",
}


def dry_run(tmp_path, capsys, *more, mapping=MAPPING, files=FILES):
    """(exit code, lines of stdout with single blanks, stderr)."""
    tmp_path.mkdir(exist_ok=True)
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(content)
    (tmp_path / "m.toml").write_text(mapping)
    before = sorted(tmp_path.rglob("*"))
    code = main(["ingest", "--dry-run", "--source", str(tmp_path / "in"), *more])
    assert sorted(tmp_path.rglob("*")) == before, "a dry run writes nothing"
    output = capsys.readouterr()
    return code, [" ".join(line.split()) for line in output.out.splitlines()], " ".join(output.err.split())


def test_people_files_days_zones_events_and_labels_are_shown(tmp_path, capsys):
    code, lines, _ = dry_run(tmp_path, capsys, "--format", "table", "--mapping", str(tmp_path / "m.toml"))
    text = "\n".join(lines)
    assert code == 0 and lines[0] == "2 people"
    assert "007 2 2024-05-01 2024-05-03 0.0 America/Chicago 2 2 hr/007.csv\nmeals.csv\npeople.csv" in text
    assert "ann[red] 1 2024-05-02 2024-05-02 0.0 America/Chicago 1 0 hr/ann[red].csv\nmeals.csv" in text
    assert "tables[0]: heart_rate 2 hr/007.csv\nhr/ann[red].csv" in text
    assert "events[0]: meal events 1 meals.csv" in text and "labels[0]: labels age, sex 1 people.csv" in text
    assert "not used: matched by no section of the mapping 2 empty.csv\nnotes.txt" in text
    assert "meal lunch 2 2" in lines and "meal dinner 1 1" in lines and "age 1" in lines
    assert "rows: 8 read, 7 kept, 1 set aside" in text and "time is not readable (hr/007.csv:4)" in text
    assert "1 people are spelt in several ways" in text
    assert lines[-1] == "dry run: all rows were read, nothing was written"


def test_a_dry_run_shows_what_ingest_would_write(tmp_path, capsys):
    mapping = ("--format", "table", "--mapping", str(tmp_path / "m.toml"))
    _, lines, _ = dry_run(tmp_path, capsys, *mapping)
    assert main(["ingest", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *mapping]) == 0
    written = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    totals = [line for line in lines if re.match("rows: |people: |│ heart_rate", line)]
    assert len(totals) == 3 and {*totals} <= {*written}
    code, _, error = dry_run(tmp_path, capsys, *mapping, "--out", str(tmp_path / "out"))
    assert code == 2 and "holds a dataset already" in error


REFUSED = {
    "two spellings": ({"hr/7.csv": FILES["hr/007.csv"]}, MAPPING, "1 ids of tables[0] are spelt in several ways"),
    "a wrong rule": ({}, MAPPING.replace('"hr" }', """"hr", keep = ["hr > 'x'"] }"""), "text has no order"),
    "no day": (
        dict.fromkeys(("hr/007.csv", "hr/ann[red].csv"), "when,hr\nnever,1\n"),
        MAPPING,
        "no day has an observed",
    ),
    "no file": ({}, MAPPING.replace("meals.csv", "meal.csv"), "matches none"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_ingest_refuses_ends_with_code_2(tmp_path, capsys, kind):
    more, mapping, message = REFUSED[kind]
    options = ("--format", "table", "--mapping", str(tmp_path / "m.toml"))
    code, lines, error = dry_run(tmp_path, capsys, *options, mapping=mapping, files=FILES | more)
    assert code == 2 and message in error
    assert main(["ingest", "--source", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *options]) == 2
    assert ("'007' | '7'" in lines) == (kind == "two spellings") and "'007'" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--format", "fitbit"], "give --out"),
        (["--dry-run", "--beam-option=--runner=DirectRunner"], "--beam-option has no effect without --beam"),
        (["--dry-run", "--format", "oura", "--date-order", "day"], "--date-order: format oura writes all dates in one"),
    ],
)
def test_options_that_are_missing_or_have_no_effect_are_refused(tmp_path, capsys, options, sentence):
    (tmp_path / "in").mkdir()
    assert main(["ingest", "--source", str(tmp_path / "in"), *options]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("time", "option", "sentence"),
    [
        ('"when"', ("--date-order", "day"), "--date-order has no effect on the mapping"),
        ('"when", unit = "hours"', ("--time-zone", "Europe/Berlin"), "--time-zone has no effect: relative times"),
    ],
)
def test_options_that_have_no_effect_on_a_mapping_are_said(tmp_path, capsys, time, option, sentence):
    mapping = MAPPING.partition("[[events]]")[0].replace('"when", time_zone = "America/Chicago"', time)
    files = {"hr/a.csv": f"when,hr\n{'1' if 'unit' in time else '2024-05-01 00:00'},60\n"}
    options = ("--format", "table", "--mapping", str(tmp_path / "m.toml"))
    _, without, _ = dry_run(tmp_path, capsys, *options, mapping=mapping, files=files)
    code, lines, _ = dry_run(tmp_path, capsys, *options, *option, mapping=mapping, files=files)
    assert code == 0 and sentence in "\n".join(lines) and sentence not in "\n".join(without)


def test_the_files_of_shared_tables_and_of_sessions_are_named(tmp_path, capsys):
    steps = "Id,ActivityMinute,Steps\n1,3/14/2024 7:00:00 AM,5\n2,3/14/2024 7:00:00 AM,5\n"
    code, lines, _ = dry_run(tmp_path / "f", capsys, "--format", "fitbit", files={"steps.csv": steps, "x.csv": "a\n"})
    assert code == 0 and "1 1 2024-03-14 2024-03-14 0.0 not known 0 0 steps.csv" in lines
    assert "minutes of steps 1 steps.csv" in lines and any(line.startswith("set aside: line 1") for line in lines)
    beats = {f"P{person}/HR.csv": "1709560800.0\n1.0\n" + "60\n" * 3600 for person in (1, 2)}
    code, lines, _ = dry_run(
        tmp_path / "e", capsys, "--format", "empatica", "--time-zone", "Europe/Berlin", files=beats
    )
    assert code == 0 and "P1 1 2024-03-04 2024-03-04 1.0 Europe/Berlin 0 0 P1/HR.csv" in lines


@pytest.mark.parametrize("name", CASES)
def test_every_format_names_the_files_and_days_of_each_person(tmp_path, name):
    case, people, report = CASES[name], range(7, 10), IngestReport()
    write_people(case, tmp_path / "in", people)
    (tmp_path / "m.toml").write_text(case.mapping)
    (tmp_path / "scratch").mkdir()
    mapping = tmp_path / "m.toml" if case.mapping else None
    reader = make_reader(case.format, ReaderOptions(mapping=mapping, scratch=tmp_path / "scratch"))
    found = preview(People(reader, tmp_path / "in", reader.channels(tmp_path / "in"), "s"), report)
    files = [{*case.files(person)} for person in people]
    own = [{*files[at]}.difference(*files[:at], *files[at + 1 :]) for at in range(len(files))]
    assert len(found.people) == len(people)
    for person, of_person in zip(found.people, own, strict=True):
        assert person.days and person.observed_minutes and of_person <= {*person.files} <= set().union(*files)
    assert found.files.keys() == set().union(*files) and all(found.files.values())
