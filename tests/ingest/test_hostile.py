"""Hundreds of hostile files a reader: no traceback, no hang, every row counted, and nobody else loses anything."""

from __future__ import annotations

import random
import signal

import numpy as np
import pytest

from lsm_jax.ingest.formats import FORMATS, make_reader
from lsm_jax.ingest.pipeline import People
from lsm_jax.ingest.reader import ReaderOptions
from lsm_jax.ingest.report import IngestReport
from tests.ingest.hostile import CASES, write_people

UNTOUCHED = 20
FIRST_ID = 1_000_003  # ids are far apart, so that a changed digit is not another person's id
STEP = 7_654_321
MAX_SECONDS = 60  # without a person being read


class Hang(BaseException):
    """Not of class Exception, so that no reader takes it for damage."""


class Watched:
    """A reader that may not take long between one person and the next."""

    def __init__(self, reader):
        self._reader = reader

    def __getattr__(self, name):
        return getattr(self._reader, name)

    def people(self, source, report):
        for key in self._reader.people(source, report):
            signal.alarm(MAX_SECONDS)
            yield key


@pytest.fixture(autouse=True)
def watchdog():
    def fail(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, fail)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def ingest(case, source, folder):
    """({(participant, start): window}, report)."""
    folder.mkdir()
    mapping = folder / "m.toml"
    mapping.write_text(case.mapping)
    (folder / "scratch").mkdir()
    options = ReaderOptions(mapping=mapping if case.mapping else None, scratch=folder / "scratch")
    signal.alarm(MAX_SECONDS)
    reader = Watched(make_reader(case.format, options))
    report = IngestReport()
    windows = People(reader, source, reader.channels(source), "salt").windows(report)
    return {(window.participant, window.start): window for window in windows}, report


def cells(window):
    """What a window holds, by channel."""
    return {
        name: np.where(window.observed[:, place], window.values[:, place], np.nan)
        for place, name in enumerate(window.channels)
        if window.observed[:, place].any()
    }


@pytest.mark.parametrize("name", CASES)
def test_hostile_files_cost_only_themselves(tmp_path, name):
    case = CASES[name]
    good = range(FIRST_ID, FIRST_ID + STEP * UNTOUCHED, STEP)
    bad = range(FIRST_ID + STEP // 3, FIRST_ID + STEP // 3 + STEP * case.mutated, STEP)
    for folder in ("clean", "hostile"):
        write_people(case, tmp_path / folder, good)
    write_people(case, tmp_path / "hostile", bad, random.Random(name))
    clean, _ = ingest(case, tmp_path / "clean", tmp_path / "a")
    mixed, report = ingest(case, tmp_path / "hostile", tmp_path / "b")
    assert len({participant for participant, _ in clean}) == UNTOUCHED
    for key, window in clean.items():
        np.testing.assert_equal(cells(mixed[key]), cells(window))
        assert (mixed[key].events, mixed[key].labels) == (window.events, window.labels)
    assert [sentence for sentence in report.files_set_aside if "the reader failed" in sentence] == []
    assert report.rows_read == report.rows_kept + report.rows_ignored + report.rows_quarantined
    assert report.people > UNTOUCHED + case.mutated / 4, "mutations are too strong to tell"


def test_every_format_is_in_the_suite():
    assert {case.format for case in CASES.values()} == {*FORMATS}
