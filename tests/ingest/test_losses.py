"""What bad input costs: itself, with every row counted and every loss said."""

import contextlib
import os
import resource
import signal
import time

import numpy as np
import pytest

from lsm_jax.cli.main import main
from lsm_jax.errors import RunError
from lsm_jax.ingest.formats.fitbit import FitbitReader
from lsm_jax.ingest.pipeline import People
from lsm_jax.ingest.reader import ReaderOptions
from lsm_jax.ingest.report import IngestReport
from tests.ingest.test_table import column, ingest

STEPS = "Id,ActivityMinute,Steps\n"


class FailsOnPersonTwo(FitbitReader):
    """A reader with a fault that the files of one person meet."""

    def read(self, source, key, report):
        if key[0] == "2":
            report.rows_read += 5
            report.rows_kept += 3
            raise ZeroDivisionError("heart rate 61 / 0")
        return super().read(source, key, report)


class LosesRows(FitbitReader):
    """A reader with a fault in its counts."""

    def read(self, source, key, report):
        report.rows_read += 1
        return super().read(source, key, report)


def people_of(reader, tmp_path, **files):
    (tmp_path / "source").mkdir()
    (tmp_path / "scratch").mkdir()
    for name, text in files.items():
        (tmp_path / "source" / f"{name}.csv").write_text(text)
    made = reader(ReaderOptions(scratch=tmp_path / "scratch"))
    return People(made, tmp_path / "source", made.channels(tmp_path / "source"), "salt")


def test_a_person_on_whom_the_reader_fails_is_set_aside_and_the_others_are_read(tmp_path):
    lines = "".join(f"{person},4/13/2016 1:0{minute}:00 AM,7\n" for person in (1, 2, 3) for minute in range(5))
    report = IngestReport()
    windows = list(people_of(FailsOnPersonTwo, tmp_path, steps=STEPS + lines).windows(report))
    assert len(windows) == 2 and (report.people, report.days, report.people_set_aside) == (2, 2, 1)
    assert report.rows_read == 20 and report.rows_kept == 15 and report.rows_quarantined == 5
    said = "\n".join(report.sentences())
    assert "set aside 1" in said and "ZeroDivisionError at test_losses.py" not in said
    assert "the reader failed (ZeroDivisionError" in said and "61" not in said


def test_rows_that_do_not_add_up_fail_the_ingest(tmp_path):
    people = people_of(LosesRows, tmp_path, steps=STEPS + "1,4/13/2016 1:00:00 AM,7\n")
    with pytest.raises(RunError, match="rows do not add up: 2 read, 1 kept, 0 ignored, 0 set aside"):
        list(people.windows(IngestReport()))


TWO_CHANNELS = """
[[tables]]
files = "*.csv"
person = { column = "who" }
time = { column = "when" }
[tables.channels]
heart_rate = { column = "pulse" }
steps = { column = "steps", keep = ["quality > 0"] }
[[labels]]
files = "people.csv"
person = { column = "who" }
columns = { age = "age", sex = "sex" }
"""


def test_a_misspelt_column_costs_its_channel_in_that_file_and_the_nearest_is_named(tmp_path):
    good = "who,when,pulse,steps,quality\nann,2024-05-01 00:00,60,7,1\n"
    files = {
        "a.csv": good.replace("ann", "ben").replace("pulse", "Pulse"),
        "b.csv": "made by a watch\n" + good.replace("ann", "cid").replace("quality", "qualty"),
        "c.csv": good,
        "d.csv": "made by a watch\n" + good.replace("when", "wen"),
        "people.csv": "who,agee,sex\nann,30,F\n",
    }
    windows, report = ingest(tmp_path, TWO_CHANNELS, files)
    assert windows["ann"][0].labels == {"sex": "F"}
    observed = {
        name: [column(days[0], channel)[0] for channel in ("heart_rate", "steps")] for name, days in windows.items()
    }
    assert observed["ann"] == [60, 7] and observed["cid"][0] == 60 and observed["ben"][1] == 7
    assert np.isnan([observed["ben"][0], observed["cid"][1]]).all()
    said = "\n".join(report.sentences())
    assert "1 files: heart_rate not read: there is no column 'pulse'. Did you mean 'Pulse'? (a.csv)" in said
    assert "1 files: steps not read: there is no column 'quality'. Did you mean 'qualty'? (b.csv)" in said
    assert "1 files: age not read: there is no column 'age'. Did you mean 'agee'? (people.csv)" in said
    assert "d.csv: line 2 lacks the column 'when', which tables[0] of the mapping names. Did you mean 'wen'?" in said
    assert report.rows_unaccounted == 0


DECIDED = """
[[tables]]
files = "*.csv"
person = { column = "who" }
time = { column = "when" }
period_minutes = 1
end = "until"
channels = { heart_rate = { column = "pulse" } }
[[events]]
files = "*.events"
person = { column = "who" }
time = { column = "when", unit = "minutes", zero = "2024-05-01 00:00", formats = ["%H:%M"] }
kind = "meal"
minutes = 5
duration = "length"
[[labels]]
files = "*.people"
person = { column = "who" }
columns = { age = "age", sex = "sex" }
[[labels]]
files = "*.days"
person = { column = "who" }
time = { column = "when" }
columns = { mood = "mood" }
"""


def test_what_is_decided_is_said_with_counts(tmp_path):
    minute = "ann,2024-05-01 00:0{0},2024-05-01 00:0{1},{2}\n"
    files = {
        "a.csv": "who,when,until,pulse\n"
        + "".join(minute.format(i, i + 1, 60 + j) for i, j in ((2, 0), (1, 0), (1, 0), (1, 2))),
        "a.events": "who,when,length\nann,60,30\n",
        "a.people": "who,age,sex\nann,30,F\nann,31,F\nben,40,M\n",
        "a.days": "who,when,mood\nann,2024-05-01 09:00,3\nann,2024-05-01 21:00,4\n",
        "b.txt": "a diary",
    }
    windows, report = ingest(tmp_path, DECIDED, files)
    assert (
        windows["ann"][0].labels == {"age": 31, "sex": "F", "mood": 4}
        and column(windows["ann"][0], "heart_rate")[1] == 61
    )
    said = {sentence.strip() for sentence in report.sentences()}
    assert said >= {
        "1 rows repeat another in every column that is read and were dropped (heart_rate 1)",
        "1 instants have several values of one sensor, averaged or added (see aggregate) (heart_rate 1)",
        "2 values of a label contradict a later one of the same person or day, which is used (age 1, mood 1)",
        "1 samples were out of order and were sorted",
        "1 people have labels or events but no recording; they are left out.",
        "1 files are not read (1 matched by no section of the mapping); ingest_report.json names them",
        "tables[0].period_minutes of the mapping has no effect: the column of end says how long a row lasts",
        "events[0].minutes of the mapping has no effect: the column of duration says how long an event lasts",
        "events[0].time.formats of the mapping has no effect: a number of units has no format",
    }


def test_many_files_set_aside_do_not_fill_the_terminal():
    report = IngestReport()
    for number in range(50):
        report.set_aside(f"{number}.csv", "empty")
    said = list(report.sentences())
    assert len(said) == 23 and said[-1] == "  30 more of these stand in ingest_report.json"


@contextlib.contextmanager
def small_files(limit):
    """Lets this process write no file above some bytes: a full disk that every machine has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("limit", "people", "sentence"),
    [
        (0, 1, "data cannot be written: File too large"),
        (1_000, 20, "rows cannot be sorted by person in "),
        (20_000, 1, "data cannot be written: write() failed: File too large"),
    ],
)
def test_a_disk_that_takes_no_more_ends_with_a_sentence_and_leaves_nothing(tmp_path, capsys, limit, people, sentence):
    (tmp_path / "source").mkdir()
    rows = "".join(
        f"{person},4/13/2016 {1 + hour}:{minute:02d}:00 AM,{minute}\n"
        for person in range(people)
        for hour in range(10)
        for minute in range(60)
    )
    (tmp_path / "source" / "steps.csv").write_text(STEPS + rows)
    arguments = ["ingest", "--format", "fitbit", "--source", str(tmp_path / "source")]
    with small_files(limit):
        assert main([*arguments, "--out", str(tmp_path / "data")]) == 1
    assert sentence in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "data.salt"}


def test_an_output_that_cannot_be_made_ends_with_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "steps.csv").write_text(STEPS + "1,4/13/2016 1:00:00 AM,7\n")
    arguments = ["ingest", "--format", "fitbit", "--source", str(tmp_path / "source")]
    assert main([*arguments, "--out", str(tmp_path / "file" / "data")]) == 1
    assert "file cannot be written: File exists" in capsys.readouterr().err


def test_a_stop_from_outside_leaves_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "steps.csv").write_text(STEPS + "1,4/13/2016 1:00:00 AM,7\n")

    def terminated(*_):
        assert len(list(tmp_path.glob(".data.*"))) == 2  # where rows are sorted, and where the dataset is staged
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)  # the signal ends it

    monkeypatch.setattr(FitbitReader, "read", terminated)
    arguments = ["ingest", "--format", "fitbit", "--source", str(tmp_path / "source")]
    assert main([*arguments, "--out", str(tmp_path / "data")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"source", "data.salt"}
