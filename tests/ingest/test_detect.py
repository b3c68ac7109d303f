"""`lsm ingest` without --format: what it finds, what it says, and when it asks."""

import re

import pytest

from lsm_jax.cli.main import main
from lsm_jax.errors import UserError
from lsm_jax.ingest.detect import detect_format
from lsm_jax.ingest.formats import FORMATS

FITABASE = "Id,ActivityMinute,Steps\n1503960366,4/12/2016 1:00:00 AM,5\n"
E4 = "1544027337.000000\n1.000000\n30.1\n30.2\n"


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    return folder


def test_one_format_is_named_and_read(source, tmp_path, capsys):
    (source / "notes.txt").write_text("hello\n")
    (source / "minuteStepsNarrow_merged.csv").write_text(FITABASE)
    assert main(["ingest", "--source", str(source), "--out", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    assert "Fitabase exports them (1 file: minuteStepsNarrow_merged.csv). Reading with --format fitbit." in said
    assert "1 days of 1 people" in said


def test_the_help_names_every_format(capsys):
    with pytest.raises(SystemExit):
        main(["ingest", "--help"])
    options = capsys.readouterr().out.partition("options:")[2]
    named = options.partition("--format FORMAT")[2].partition("(default")[0]
    assert {*re.findall("[a-z]+", named)} == {*FORMATS, "or"}


def test_several_formats_are_listed_and_nothing_is_written(source, tmp_path, capsys):
    (source / "minuteStepsNarrow_merged.csv").write_text(FITABASE)
    (source / "P01").mkdir()
    (source / "P01" / "TEMP.csv").write_text(E4)
    assert main(["ingest", "--source", str(source), "--out", str(tmp_path / "data")]) == 2
    said = capsys.readouterr().err
    assert "--format empatica: Empatica E4 sessions (1 file: P01/TEMP.csv)" in said and "--format fitbit" in said
    assert not (tmp_path / "data").exists()


def test_files_of_no_format_are_described(source):
    (source / "HR.csv").write_text("time,bpm\n2024-01-01,60\n")  # an E4 file's name, but no E4 file
    with pytest.raises(UserError, match=r"1 files \(1 \.csv\); HR\.csv has the columns time, bpm\. No format .*table"):
        detect_format(source)
    (source / "HR.csv").unlink()
    with pytest.raises(UserError, match="no readable file"):
        detect_format(source)


def test_a_mapping_with_tables_says_that_they_are_tables(source, tmp_path, capsys):
    (source / "a.csv").write_text("id,t,hr\nx,2024-01-01 10:00:00,60\n")
    mapping = tmp_path / "m.toml"
    mapping.write_text(
        '[[tables]]\nfiles = "*.csv"\nperson = { column = "id" }\ntime = { column = "t" }\n'
        'channels.heart_rate = { column = "hr" }\n'
    )
    arguments = ["ingest", "--source", str(source), "--out", str(tmp_path / "data"), "--mapping", str(mapping)]
    assert main(arguments) == 0 and "--format table" in capsys.readouterr().out
