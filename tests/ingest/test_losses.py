"""What bad input costs: itself, with every row counted and every loss said."""

import pytest

from lsm_jax.errors import RunError
from lsm_jax.ingest.fitbit import FitbitReader
from lsm_jax.ingest.pipeline import People
from lsm_jax.ingest.reader import ReaderOptions
from lsm_jax.ingest.report import IngestReport

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
