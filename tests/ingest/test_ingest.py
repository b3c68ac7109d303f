"""`lsm ingest` from end to end: exit codes, the report, pseudonyms, Beam, and the real recordings."""

import collections
import json
import shutil
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.cli.main import main
from lsm_jax.data.store import SPLITS, open_dataset
from lsm_jax.errors import UserError
from lsm_jax.ingest.formats import FORMATS, make_reader
from lsm_jax.ingest.pipeline import People
from lsm_jax.ingest.reader import ReaderOptions
from lsm_jax.ingest.report import SAMPLES_PER_REASON, IngestReport

MAPPINGS = Path(__file__).resolve().parents[2] / "configs" / "ingest"
HEADER = "Id,ActivityMinute,Intensity\n"
FIRST_ID = 1503960366


@pytest.fixture
def export(tmp_path):
    """Four people with an hour each, and one row that is wrong."""
    source = tmp_path / "export"
    source.mkdir()
    lines = [
        f"{FIRST_ID + person},4/12/2016 {1 + person}:{minute:02d}:00 AM,{minute % 3}"
        for person in range(4)
        for minute in range(60)
    ]
    (source / "minuteIntensitiesNarrow_merged.csv").write_text(
        HEADER + "\n".join([*lines[:7], "1,never,0", *lines[7:]])
    )
    return source


def ingest(source, out, *more, format="fitbit"):
    return main(["ingest", "--format", format, "--source", str(source), "--out", str(out), *more])


def windows_of(path):
    dataset = open_dataset(path)
    return {
        (split, window.participant, window.start): window
        for split in SPLITS
        for window in (dataset.source(split)[i] for i in range(len(dataset.source(split))))
    }


def test_an_export_becomes_a_dataset_and_a_report(export, tmp_path, capsys):
    assert ingest(export, tmp_path / "data") == 0
    report = json.loads((tmp_path / "data" / "ingest_report.json").read_text())
    assert report["rows_read"] == 241 and report["rows_kept"] == 240 and report["people"] == report["days"] == 4
    assert report["quarantined"]["time is not readable"]["samples"] == ["minuteIntensitiesNarrow_merged.csv:9"]
    assert "240 kept, 1 set aside" in capsys.readouterr().out
    assert len(windows_of(tmp_path / "data")) == 4


def test_ids_are_hashed_with_a_salt_outside_the_dataset(export, tmp_path):
    assert ingest(export, tmp_path / "a") == 0
    salt = tmp_path / "a.salt"
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    first = windows_of(tmp_path / "a")
    assert ingest(export, tmp_path / "a", "--overwrite") == 0 and windows_of(tmp_path / "a").keys() == first.keys()
    assert ingest(export, tmp_path / "b", "--salt", salt.read_text().strip()) == 0
    assert windows_of(tmp_path / "b").keys() == first.keys()
    assert ingest(export, tmp_path / "c", "--salt", "another") == 0
    assert not {key[1] for key in windows_of(tmp_path / "c")} & {key[1] for key in first}
    for file in (path for path in (tmp_path / "a").iterdir() if path.is_file()):
        content = file.read_bytes()
        assert all(str(FIRST_ID + person).encode() not in content for person in range(4))
        assert salt.read_text().strip().encode() not in content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--format", "fitbti"), "Did you mean 'fitbit'"),
        (("--time-zone", "Nowhere"), "unknown time zone 'Nowhere'"),
        (("--max-file-mib", "0"), "--max-file-mib"),
        (("--format", "table"), "--mapping"),
        (("--source", "/does/not/exist"), "does not exist"),
        (("--name", "Not A Name"), "dataset name"),
    ],
)
def test_mistakes_end_with_code_2_and_a_sentence(export, tmp_path, capsys, change, message):
    assert ingest(export, tmp_path / "data", *change) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "data").exists() and not list(tmp_path.glob(".data*"))


def test_an_empty_salt_file_is_refused(export, tmp_path, capsys):
    (tmp_path / "data.salt").touch()
    assert ingest(export, tmp_path / "data") == 2
    assert "data.salt is empty" in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_writing_into_the_export_is_refused(export, capsys):
    assert ingest(export, export / "data") == 2
    assert "lies inside" in capsys.readouterr().err and len(list(export.iterdir())) == 1


def test_an_export_without_a_good_row_is_refused_with_the_reasons(tmp_path, capsys):
    source = tmp_path / "export"
    source.mkdir()
    (source / "i.csv").write_text(HEADER + "1,never,0\n")
    assert ingest(source, tmp_path / "data") == 2
    output = capsys.readouterr()
    assert "no windows to write" in output.err and "time is not readable (i.csv:2)" in output.out


def test_beam_writes_the_same_windows_splits_and_report(export, tmp_path):
    pytest.importorskip("apache_beam")
    assert ingest(export, tmp_path / "local", "--salt", "s") == 0
    assert ingest(export, tmp_path / "beam", "--salt", "s", "--beam") == 0
    local, beam = windows_of(tmp_path / "local"), windows_of(tmp_path / "beam")
    assert local.keys() == beam.keys()
    for key, window in local.items():
        np.testing.assert_array_equal(window.values, beam[key].values)
        np.testing.assert_array_equal(window.observed, beam[key].observed)
    reports = [json.loads((tmp_path / name / "ingest_report.json").read_text()) for name in ("local", "beam")]
    assert {**reports[0], "seconds": 0} == {**reports[1], "seconds": 0}
    normalisation = [(tmp_path / name / "normalisation.json").read_text() for name in ("local", "beam")]
    assert json.loads(normalisation[0]) == json.loads(normalisation[1])


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.sampled_from(["a.csv", "b.zip", "c.parquet", "d.xlsx", "e.csv.gz", "f.txt", "S1/ACC.csv", "S1/IBI.csv"]),
        st.one_of(
            st.binary(max_size=200),
            st.text(max_size=80).map(lambda text: (HEADER + text).encode("utf-8", "surrogatepass")),
            st.sampled_from([b"PK\x03\x04", b"PAR1PAR1", b"\x1f\x8b\x08", b"p,t,v\n1,0,1\n1,1e400,nan\n,,\n"]),
        ),
        min_size=1,
    ),
    st.sampled_from(sorted(FORMATS)),
)
def test_no_bytes_crash_a_reader(tmp_path_factory, files, name):
    folder = tmp_path_factory.mktemp("junk")
    for path, content in files.items():
        (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "source" / path).write_bytes(content)
    (folder / "scratch").mkdir()
    (folder / "m.toml").write_text(
        '[[tables]]\nfiles = "*"\nperson = { column = "p" }\ntime = { column = "t", unit = "minutes" }\n'
        'channels = { steps = { column = "v" } }\n'
    )
    report = IngestReport()
    try:
        reader = make_reader(name, ReaderOptions(mapping=folder / "m.toml", scratch=folder / "scratch"))
        channels = reader.channels(folder / "source")
        windows = list(People(reader, folder / "source", channels, "s").windows(report))
    except UserError:
        return
    assert all(np.isfinite(window.values).all() for window in windows)
    assert report.rows_kept + report.rows_quarantined <= report.rows_read


def test_reports_merge_and_survive_json(tmp_path):
    one, two = IngestReport(rows_read=3), IngestReport(rows_read=4)
    one.quarantine("late", "a.csv", range(2, 50))
    two.quarantine("late", "b.csv", [7])
    two.quarantine("early", "b.csv", rows=5)
    two.duplicates["steps"] += 2
    two.damage("steps", "b.csv", [3])
    two.note("once")
    one.note("once")
    one.merge(two).write(tmp_path / "report.json", seconds=1)
    total = IngestReport.read(tmp_path / "report.json")
    assert total == one and total.rows_read == 7 and total.rows_quarantined == 54 and total.notes == ["once"]
    assert len(total.quarantined["late"].samples) == SAMPLES_PER_REASON


# People, days and missing shares as the shared recordings describe them; docs/results/ingest.md explains differences.
@pytest.mark.parametrize(
    ("folder", "arguments", "people", "days", "lost_days", "missing", "event_minutes"),
    [
        (
            "fitabase",
            ("--format", "fitbit", "--mapping", str(MAPPINGS / "fitabase.toml")),
            35,
            1708,
            235,
            {"sleep_state": 0.924, "activity_intensity": 0.245},
            {"asleep": 187982, "restless": 14002, "awake": 2016},
        ),
        (
            "mss_multisensor",
            ("--format", "table", "--mapping", str(MAPPINGS / "mss_multisensor.toml")),
            25,
            423,
            0,
            {"heart_rate": 0.359, "rmssd": 0.359, "activity_chest": 0.110, "glucose": 0.263},
            {"food or drink": 2710},
        ),
        (
            "nhanes_accel",
            ("--format", "table", "--mapping", str(MAPPINGS / "nhanes_accel.toml")),
            218,
            1471,
            55,
            {"activity_count": 0.547},
            {},
        ),
        (
            "sleepaccel",
            ("--format", "table", "--mapping", str(MAPPINGS / "sleepaccel.toml")),
            31,
            218,
            0,
            {"heart_rate": 0.869},
            # Half a minute for each epoch that the publisher counts.
            {"wake": 2429 / 2, "n1": 1821 / 2, "n2": 12954 / 2, "n3": 3329 / 2, "n4": 356 / 2, "rem": 5884 / 2},
        ),
    ],
)
def test_the_shared_recordings(
    shared_data, tmp_path, folder, arguments, people, days, lost_days, missing, event_minutes
):
    assert ingest(shared_data / folder, tmp_path / "data", *arguments, "--salt", "open") == 0
    report = json.loads((tmp_path / "data" / "ingest_report.json").read_text())
    assert (report["people"], report["days"], report["days_without_data"]) == (people, days, lost_days)
    assert report["rows_quarantined"] == 0 and report["files_set_aside"] == []
    for channel, share in missing.items():
        assert report["missing_share"][channel] == pytest.approx(share, abs=6e-4)
    dataset = open_dataset(tmp_path / "data")
    assert sum(len(dataset.source(split)) for split in SPLITS) == days
    assert len({name for split in SPLITS for name in dataset.source(split).participants}) == people
    logged = {name: entry["minutes"] for kind in dataset.card["events"].values() for name, entry in kind.items()}
    assert logged == event_minutes


def test_the_survey_of_nurses_is_attached_by_the_clock_of_the_hospital(shared_data, tmp_path):
    """Two of the 15 nurses, of heart rates alone, so that the test is fast; they answered for 11 spells."""
    source = shared_data / "nurse_stress"
    for file in (*source.glob("Stress_dataset/[67][DE]/*/HR.csv"), source / "SurveyResults_codes.csv"):
        copy = tmp_path / "nurses" / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    survey = ("--mapping", str(MAPPINGS / "nurse_stress.toml"))
    assert ingest(tmp_path / "nurses", tmp_path / "data", *survey, format="empatica") == 0
    windows = windows_of(tmp_path / "data").values()
    assert len(windows) == 19 and {window.utc_offset_minutes for window in windows} == {-300, -360}
    spells = [(event, window.observed[event.steps].any()) for window in windows for event in window.events]
    recorded = collections.Counter(event.name for event, is_recorded in spells if is_recorded)
    assert recorded == {"high stress": 5, "no stress": 5}
    report = json.loads((tmp_path / "data" / "ingest_report.json").read_text())
    assert report["rows_ignored"] == 113
    # Two sessions of HR.csv end after seconds: no minute of theirs is observed.
    assert report["rows_quarantined"] == 22 and len(report["files_set_aside"]) == 2
