"""The E4 reader: real recordings as their publisher ships them, and what exports look like when they are damaged."""

from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.errors import UserError
from lsm_jax.ingest.files.source import Limits
from lsm_jax.ingest.formats import make_reader
from lsm_jax.ingest.minutes.days import day_windows
from lsm_jax.ingest.people.rules import people_rule
from lsm_jax.ingest.reader import ReaderOptions
from lsm_jax.ingest.report import IngestReport

START = 1_684_532_940  # 2023-05-19 21:49:00 UTC, a whole minute
MINUTES = 4
RATES = {"ACC": 32, "EDA": 4, "TEMP": 4, "HR": 1}


def session(folder: Path, minutes: int = MINUTES, start: int = START, seed: int = 0, **changed: str | None) -> Path:
    """A good E4 session as E4 Connect writes it; `changed` replaces the text of a file, None leaves it out."""
    rng = np.random.default_rng(seed)
    ones = {name: minutes * 60 * rate for name, rate in RATES.items()}
    columns = {
        "ACC": np.round(rng.normal([0, 0, 64], 10, (ones["ACC"], 3))),
        "EDA": rng.normal(2, 0.01, (ones["EDA"], 1)).round(4),
        "TEMP": rng.normal(33, 0.02, (ones["TEMP"], 1)).round(2),
        "HR": rng.normal(72, 2, (ones["HR"], 1)).round(2),
    }
    texts: dict[str, str | None] = {
        name: "\n".join(
            [", ".join([f"{start}.0"] * values.shape[1]), ", ".join([f"{RATES[name]}.0"] * values.shape[1])]
            + [",".join(map(str, row)) for row in values.tolist()]
        )
        + "\n"
        for name, values in columns.items()
    }
    offsets = np.arange(1, int(minutes * 60 / 0.8125)) * 0.8125
    texts["IBI"] = f"{start}.0, IBI\n" + "".join(f"{offset},0.8125\n" for offset in offsets)
    texts["tags"] = f"{start + 70}.5\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (texts | changed).items():
        if text is not None:
            (folder / f"{name}.csv").write_bytes(text.encode("latin-1"))
    return folder


def read_all(source, report=None, **options):
    """(person -> record, report)."""
    report = report or IngestReport()
    e4 = make_reader("empatica", ReaderOptions(**options))
    records = {}
    for key in e4.people(source, report):
        record = e4.read(source, pickle.loads(pickle.dumps(key)), report)
        if record is not None:
            records[record.person] = record
    return records, report


def minutes_of(record, channel):
    found = [series.minute for series in record.series if series.channel == channel]
    return np.concatenate(found) if found else np.empty(0, int)


def values_of(record, channel):
    return np.concatenate([series.value for series in record.series if series.channel == channel])


def lines_of(folder, name):
    return (folder / f"{name}.csv").read_text().splitlines()


# Good sessions.


def test_a_good_session_loses_nothing(tmp_path):
    session(tmp_path / "STRESS" / "P1")
    session(tmp_path / "STRESS" / "P2", minutes=1)
    session(tmp_path / "AEROBIC" / "P2", minutes=1, start=START + 3600)
    records, report = read_all(tmp_path)
    record = records["P1"]
    e4 = make_reader("empatica", ReaderOptions())
    for channel in e4.channels(tmp_path):
        np.testing.assert_array_equal(minutes_of(record, channel), START // 60 + np.arange(MINUTES), err_msg=channel)
    assert report.rows_read == report.rows_kept and not report.rows_quarantined
    assert not report.files_set_aside
    np.testing.assert_allclose(values_of(record, "heart_rate"), 72, atol=1)
    np.testing.assert_allclose(values_of(record, "rr_median"), 812.5)
    np.testing.assert_allclose(values_of(record, "skin_temperature"), 33, atol=0.05)
    events = {(event.name, event.start - START // 60, event.end - START // 60) for event in record.events}
    assert events == {("stress", 0, MINUTES), ("tag", 1, 2)}


def test_one_session_its_folder_and_its_zip_read_the_same(tmp_path):
    folder = session(tmp_path / "in" / "P7")
    packed = tmp_path / "P7.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    records = [read_all(source)[0]["P7"] for source in (folder, tmp_path / "in", packed)]
    for other in records[1:]:
        for mine, theirs in zip(records[0].series, other.series, strict=True):
            assert mine.channel == theirs.channel
            np.testing.assert_array_equal(mine.value, theirs.value)


def test_iso_and_unix_start_times_are_the_same(tmp_path):
    session(tmp_path / "unix")
    spelled = session(tmp_path / "spelled")
    for file in spelled.iterdir():
        text = (
            file.read_text()
            .replace(f"{START}.0", "2023-05-19 21:49:00")
            .replace(f"{START + 70}.5", "2023-05-19 21:50:10")
        )
        file.write_text(text)
    records, _ = read_all(tmp_path)
    assert records["unix"].events == records["spelled"].events
    for mine, theirs in zip(records["unix"].series, records["spelled"].series, strict=True):
        np.testing.assert_array_equal(mine.minute, theirs.minute)
        np.testing.assert_array_equal(mine.value, theirs.value)


def test_an_offset_in_the_start_time_cuts_the_days(tmp_path):
    rows = "4.0\n" + "33.0\n" * 1200
    session(
        tmp_path / "source" / "P01",
        ACC=None,
        EDA=None,
        HR=None,
        IBI=None,
        tags=None,
        TEMP="2023-05-19 23:30:00-0800\n" + rows,
    )
    records, report = read_all(tmp_path / "source")
    (window,) = day_windows(records["P01"], ["skin_temperature"], "s", report)
    assert (window.start.day, window.start.hour, window.utc_offset_minutes) == (19, 8, -480)
    assert np.flatnonzero(window.observed[:, 0])[0] == 23 * 60 + 30 and not report.people_in_utc


def test_the_time_zone_moves_the_day_and_not_the_samples(tmp_path):
    session(tmp_path / "P1", start=START + 3 * 3600)  # past midnight in Greenwich, evening in Buenos Aires
    windows = {}
    for zone in ("UTC", "America/Argentina/Buenos_Aires"):
        records, report = read_all(tmp_path, time_zone=zone)
        (windows[zone],) = day_windows(records["P1"], ("heart_rate",), "salt", report)
    utc, local = windows.values()
    assert utc.observed[49:53].all() and utc.observed.sum() == MINUTES
    assert local.observed[21 * 60 + 49 : 21 * 60 + 53].all() and local.utc_offset_minutes == -180


@pytest.mark.parametrize(
    ("places", "people"),
    [
        (["STRESS/S1", "STRESS/S2", "AEROBIC/S1_a", "AEROBIC/S1_b"], {"S1": 3, "S2": 1}),
        (["P1/baseline", "P2/baseline", "P3/baseline", "P1/run"], {"P1": 2, "P2": 1, "P3": 1}),
        (["P1/1684532940_A01B2C", "P1/1684539940_A01B2C", "1684532940_A0FFFF"], {"P1": 2, "A0FFFF": 1}),
        # More dates than people, some of them shared.
        (["P01/2023-05-19", "P01/2023-05-20", "P02/2023-05-19", "P02/2023-05-21"], {"P01": 2, "P02": 2}),
        (["ann/kx", "ann/qd", "ben/kx", "ben/wl", "ben/pm"], {"ann": 2, "ben": 3}),
        (["P01/a/x", "P01/b/x", "P01/b/y", "P02/a/x", "P02/a/y", "P02/b/z"], {"P01": 3, "P02": 3}),
        # More classes than people.
        (["P1/rest", "P1/run", "P1/ride", "P2/rest", "P2/run", "P2/ride"], {"P1": 3, "P2": 3}),
        # One name between the person and E4 Connect's folder, or above all of them.
        (["P01/E4/1684532969_A01B2C", "P02/E4/1684532969_A01B2D"], {"P01": 1, "P02": 1}),
        (["study/P01", "study/P02"], {"P01": 1, "P02": 1}),
        (["day 1/P01", "day 2/P01", "day 2/P02"], {"P01": 2, "P02": 1}),
        # One session lies deeper than the others.
        (["P01", "P02", "P02/again"], {"P01": 1, "P02": 2}),
        # Two pieces of one whose whole name is known.
        (["run/S1", "run/S2", "ride/S1_a", "ride/S1_b", "ride/S2"], {"S1": 3, "S2": 2}),
    ],
)
def test_people_are_found_from_folders(tmp_path, places, people):
    for number, place in enumerate(places):
        session(tmp_path / place, minutes=1, start=START + 86400 * number)
    report = IngestReport()
    keys = list(make_reader("empatica", ReaderOptions()).people(tmp_path, report))
    assert {key.person: len(key.sessions) for key in keys} == people
    assert all("PERSON" in note or "each device" in note for note in report.notes) and report.notes
    # What becomes an event in clear stands under several people and is nobody's id.
    of_kind = collections.defaultdict(set)
    for key in keys:
        for each in key.sessions:
            of_kind[each.kind].add(key.person)
    assert all(len(who) > 1 for kind, who in of_kind.items() if kind)
    assert not of_kind.keys() & {person.lower() for person in people}


@pytest.mark.parametrize("inside", ["", "S{}/"])
def test_ids_in_archive_names_are_not_written_as_events(tmp_path, inside):
    """As WESAD is shipped: S2/S2_E4_Data.zip."""
    for person in (2, 3):
        folder = session(tmp_path / "made" / str(person), minutes=1)
        packed = tmp_path / "in" / f"S{person}" / f"S{person}_E4_Data.zip"
        packed.parent.mkdir(parents=True)
        with zipfile.ZipFile(packed, "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, inside.format(person) + file.name)
    records, _ = read_all(tmp_path / "in")
    assert set(records) == {"S2", "S3"}
    assert {event.name for record in records.values() for event in record.events} == {"tag"}


def test_parts_of_a_recording_are_joined_if_the_study_names_the_person(tmp_path):
    for piece in "ab":
        session(tmp_path / f"S07_{piece}", minutes=1, start=START + ord(piece) * 3600)
    (tmp_path / "subject-info.csv").write_text("Info ,Gender,Age\nS07,f,30\n")
    records, _ = read_all(tmp_path)
    assert records["S07"].labels == {"sex": "F", "age": 30} and len(records) == 1


def test_people_named_by_the_study_are_the_people(tmp_path):
    for number, place in enumerate(["control/ann", "control/ben", "patient/cy", "patient/di"]):
        session(tmp_path / place, minutes=1, start=START + number * 3600)
    assert set(read_all(tmp_path)[0]) == {
        "control",
        "patient",
    }  # no digits: the upper level is taken, and a note says so
    (tmp_path / "subject-info.csv").write_text("Info ,Gender\nann,f\nben,m\ncy,m\ndi,f\n")
    assert set(read_all(tmp_path)[0]) == {"ann", "ben", "cy", "di"}


@given(
    st.sets(st.tuples(st.sampled_from(["rest", "run", "ride"]), st.integers(1, 9)), min_size=1),
    st.booleans(),
    st.sampled_from(["", "study", "study/raw"]),
)
def test_numbered_people_of_crossed_classes_are_found(tmp_path_factory, places, person_first, above):
    """The folders above do not matter, and no id becomes the name of an event."""
    source = tmp_path_factory.mktemp("crossed")
    folders = {}
    for kind, number in places:
        parts = (f"S{number}", kind) if person_first else (kind, f"S{number}")
        folder = PurePosixPath(above, *parts)
        folders[str(folder)] = f"S{number}"
        (source / folder).mkdir(parents=True)
        (source / folder / "HR.csv").write_text(f"{START}.0\n1.0\n70\n")
    people = collections.Counter(number for _, number in places)
    keys = list(make_reader("empatica", ReaderOptions()).people(source, IngestReport()))
    kinds = {session.kind for key in keys for session in key.sessions}
    assert not kinds & {f"s{number}" for number in people}
    if (
        len({kind for kind, _ in places}) > 1
        and len(people) > 1
        and 2 * sum(n > 1 for n in people.values()) >= len(people)
    ):
        assert {session.folder: key.person for key in keys for session in key.sessions} == folders


def test_an_unparsable_study_table_is_set_aside(tmp_path):
    session(tmp_path / "S01", minutes=1)
    (tmp_path / "subject-info.csv").write_text("Info ,Gender\nS01,m\nS02," + "x" * 200_000 + "\n")
    records, report = read_all(tmp_path)
    assert records["S01"].labels == {} and "subject-info.csv: not a readable table" in report.files_set_aside[0]


def test_labels_come_from_the_study_tables(tmp_path):
    session(tmp_path / "STRESS" / "S01", minutes=1)
    table = "Info ,Gender,Age,Height (cm),Weight (kg)\nS01,m,21,200,84\nS09,f,-,-,-\nm:male,,,,\n"
    (tmp_path / "subject-info.csv").write_text(table)
    (tmp_path / "Stress_Level_v1.csv").write_text(",Baseline,First Rest\nS01,3.00,5.00\nS02,none,\n")
    records, report = read_all(tmp_path)
    assert records["S01"].labels == {
        "sex": "M", "age": 21, "height_cm": 200, "weight_kg": 84, "bmi": 21.0,
        "stress_baseline": 3, "stress_first_rest": 5, "stress_mean": 4,
    }  # fmt: skip
    assert report.quarantined["no stress rating from 0 to 10"].samples == ["Stress_Level_v1.csv:3"]


def test_sensors_that_the_authors_call_invalid_are_not_read(tmp_path):
    for number, place in enumerate(["STRESS/f07", "AEROBIC/f07", "STRESS/f08"]):
        session(tmp_path / place, minutes=1, start=START + number * 86400)
    fault = "STRESS\n\x95\tf07: dock, only the ELECTRODERMAL ACTIVITY AND ACCELEROMETER DATA measurements are valid.\n"
    (tmp_path / "data_constraints.txt").write_bytes(fault.encode("latin-1"))
    records, report = read_all(tmp_path)
    assert len(minutes_of(records["f07"], "heart_rate")) == len(minutes_of(records["f07"], "skin_temperature")) == 1
    assert len(minutes_of(records["f07"], "steps")) == len(minutes_of(records["f07"], "eda_lead_contact")) == 2
    assert "data_constraints.txt:2" in report.notes[0]


# Bad sessions: faults are reported with file and line, and the rest is read.


def test_a_damaged_line_costs_its_sample_and_shifts_no_other(tmp_path):
    good = session(tmp_path / "good")
    lines = lines_of(good, "TEMP")
    lines[2 + 240 : 2 + 480] = ["40.00"] * 240  # the second minute is warmer
    (good / "TEMP.csv").write_text("\n".join(lines) + "\n")
    lines[2:102] = ["oops", "33.0,33.0", "caf\xe9", "nan"] * 25
    session(tmp_path / "bad", TEMP="\n".join(lines) + "\n")
    records, report = read_all(tmp_path)
    np.testing.assert_array_equal(
        values_of(records["bad"], "skin_temperature")[1:], values_of(records["good"], "skin_temperature")[1:]
    )
    assert report.quarantined["not a number"].rows == 75
    assert report.quarantined["not a number"].samples[0] == "bad/TEMP.csv:3"
    assert report.quarantined["wrong number of fields"].rows == 25
    assert report.rows_read == report.rows_kept + report.rows_quarantined


def test_values_out_of_the_sensor_range_are_quarantined(tmp_path):
    folder = session(tmp_path / "P1")
    lines = lines_of(folder, "TEMP")
    lines[2 + 240 : 2 + 480] = ["228.9"] * 240
    (folder / "TEMP.csv").write_text("\n".join(lines) + "\n")
    records, report = read_all(tmp_path)
    assert list(minutes_of(records["P1"], "skin_temperature") - START // 60) == [0, 2, 3]
    assert report.quarantined["TEMP outside 10 to 45"].rows == 240
    assert len(minutes_of(records["P1"], "heart_rate")) == MINUTES


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("IBI", "", "empty"),
        ("EDA", f"{START}.0\n4.0\n", "no sample"),
        ("EDA", "yesterday\n4.0\n1.0\n", "line 1 is no start time"),
        ("EDA", f"{START}.0\nfast\n1.0\n", "line 2 is no sampling rate"),
        ("EDA", f"{START}.0\n1e308\n1.0\n", "line 2 is no sampling rate"),
        ("ACC", f"{START}.0,{START}.0\n32.0,32.0\n1,2\n", "2 columns where ACC"),
        ("ACC", f"{START}.0,{START}.0,{START}.0\n4.0,4.0,4.0\n1,2,3\n", "no sampling rate of ACC"),
        ("HR", f"{START - 86400 * 30}.0\n1.0\n" + "70\n" * 200, "recorded at another time"),
        ("IBI", f"{START - 86400 * 30}.0, IBI\n1.0,0.8\n", "recorded at another time"),
        ("TEMP", "\0\0\0\0", "not a text file"),
    ],
)
def test_a_bad_file_is_set_aside_and_the_others_are_read(tmp_path, name, text, why):
    session(tmp_path / "P1", **{name: text})
    records, report = read_all(tmp_path)
    (entry,) = report.files_set_aside
    assert entry.startswith(f"P1/{name}.csv") and why in entry
    for channel, sensor in (("steps", "ACC"), ("eda_lead_contact", "EDA"), ("skin_temperature", "TEMP")):
        assert len(minutes_of(records["P1"], channel)) == (0 if sensor == name else MINUTES)
    assert len(minutes_of(records["P1"], "heart_rate")) == MINUTES  # from the beats, where HR.csv is gone


def test_a_stray_header_disorder_and_repeated_beats_cost_only_themselves(tmp_path):
    session(tmp_path / "good")
    beats = lines_of(tmp_path / "good", "IBI")
    stray = ["1959-10-05 21:01:14.828125,1959-10-05 21:01:14.828125", *beats[60:120], f"{START}.0, IBI", *beats[1:100]]
    session(tmp_path / "bad", IBI="\n".join([*stray, *beats[80:]]) + "\n")
    records, report = read_all(tmp_path)
    for channel in ("rmssd", "rr_percent_valid", "rr_entropy"):
        np.testing.assert_array_equal(values_of(records["bad"], channel), values_of(records["good"], channel))
    assert report.quarantined["not a number"].samples == ["bad/IBI.csv:62"]
    assert report.quarantined["the same beat again"].rows == 60 + 20
    assert report.disordered == 2
    assert any("bad/IBI.csv:1: no usable start" in note for note in report.notes)


def test_a_recording_that_repeats_itself_is_cut(tmp_path):
    folder = session(tmp_path / "P1")
    for name in RATES:
        head, rate, *samples = lines_of(folder, name)
        (folder / f"{name}.csv").write_text("\n".join([head, rate, *samples, *samples]) + "\n")
    records, report = read_all(tmp_path)
    assert len(minutes_of(records["P1"], "steps")) == len(minutes_of(records["P1"], "heart_rate")) == MINUTES
    assert report.quarantined["the recording again from its start"].rows == sum(RATES.values()) * 60 * MINUTES
    assert report.rows_read == report.rows_kept + report.rows_quarantined


def test_a_session_without_a_usable_minute_is_set_aside_with_its_rows(tmp_path):
    session(tmp_path / "S1" / "a")
    session(tmp_path / "S1" / "b", start=START + 3600, **dict.fromkeys((*RATES, "IBI")))
    records, report = read_all(tmp_path, people=people_rule("{person}"))
    assert [event.name for event in records["S1"].events] == ["tag"]
    assert "S1/b: no usable signal" in report.files_set_aside
    assert report.quarantined["of a file or a person that was set aside"].rows == 1 and not report.rows_unaccounted


def test_a_truncated_zip_is_set_aside(tmp_path):
    folder = session(tmp_path / "P1", minutes=30)
    packed = tmp_path / "in" / "P1.zip"
    packed.parent.mkdir()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    packed.write_bytes(packed.read_bytes()[:-2000])
    _, report = read_all(packed.parent)
    assert "damaged archive" in report.files_set_aside[0]


def test_files_beyond_the_limit_and_links_are_refused(tmp_path):
    folder = session(tmp_path / "in" / "P1", EDA=None)
    (folder / "EDA.csv").symlink_to(tmp_path / "secret.csv")
    (tmp_path / "secret.csv").write_text(f"{START}.0\n4.0\n" + "1.0\n" * 960)
    size = (folder / "ACC.csv").stat().st_size
    records, report = read_all(tmp_path / "in", limits=Limits(file_bytes=size - 1))
    assert {entry.split(":")[0] for entry in report.files_set_aside} == {"P1/ACC.csv", "P1/EDA.csv"}
    assert len(minutes_of(records["P1"], "heart_rate")) == MINUTES
    assert not len(minutes_of(records["P1"], "eda_lead_contact"))


def test_a_folder_without_sessions_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="no Empatica E4 session"):
        make_reader("empatica", ReaderOptions()).channels(tmp_path)
    with pytest.raises(UserError, match="Mars/Olympus"):
        make_reader("empatica", ReaderOptions(time_zone="Mars/Olympus"))


@given(
    name=st.sampled_from(["ACC", "EDA", "TEMP", "HR", "IBI", "tags"]),
    damage=st.lists(
        st.tuples(
            st.integers(0, 400),
            st.binary(max_size=12)
            | st.sampled_from([b"", b"nan", b"1e400", b"-5", b"1,2,3,4", b'"', b"1684532940.0, IBI"]),
        ),
        min_size=1,
        max_size=8,
    ),
    cut=st.none() | st.integers(0, 4000),
)
def test_any_damage_to_one_file_leaves_the_others_whole(tmp_path_factory, name, damage, cut):
    folder = session(tmp_path_factory.mktemp("fuzz") / "P1", minutes=2)
    whole, _ = read_all(folder)
    lines = (folder / f"{name}.csv").read_bytes().split(b"\n")
    for place, content in damage:
        lines[min(place, len(lines) - 1)] = content
    (folder / f"{name}.csv").write_bytes(b"\n".join(lines)[:cut])
    records, report = read_all(folder)
    assert report.rows_read >= report.rows_kept >= 0
    sound = {"ACC": "acc_log_energy", "EDA": "eda_lead_contact", "TEMP": "skin_temperature", "IBI": "rr_percent_valid"}
    for sensor, channel in sound.items():
        # A pulse without its own start time, or none at all, may change what the beats are counted from.
        if sensor != name and sensor != "IBI":
            np.testing.assert_array_equal(values_of(records["P1"], channel), values_of(whole["P1"], channel))
    list(day_windows(records["P1"], make_reader("empatica", ReaderOptions()).channels(folder), "salt", report))


# The real recordings.


@pytest.fixture(scope="module")
def real(shared_data):
    source = shared_data / "e4_stress_exercise"
    records, report = read_all(source)
    return source, records, report


def test_real_people_sessions_and_hours(real):
    """36 people, 100 sessions, 59.8 h of minutes touched, of which S02's repeated recording is 25.8 minutes."""
    _, records, _ = real
    sessions = [event for record in records.values() for event in record.events if event.name != "tag"]
    assert len(records) == 36 and len(sessions) == 100
    assert collections.Counter(event.name for event in sessions) == {"stress": 37, "aerobic": 31, "anaerobic": 32}
    hours = sum(event.end - event.start for event in sessions) / 60
    assert hours == pytest.approx(59.8 - 25.8 / 60, abs=0.05)


def test_real_missing_shares(real):
    """RMSSD 21-53 % in the data's README, others 0-4 % but for the sensors known to have failed."""
    _, records, _ = real
    sessions = [(record, event) for record in records.values() for event in record.events if event.name != "tag"]
    missing = {}
    for kind in ("stress", "aerobic", "anaerobic"):
        own = [(record, event) for record, event in sessions if event.name == kind]
        minutes = sum(event.end - event.start for _, event in own)
        for channel in ("rmssd", "steps", "eda_lead_contact", "heart_rate", "skin_temperature"):
            seen = sum(
                int(((at >= event.start) & (at < event.end)).sum())
                for record, event in own
                for at in [np.unique(minutes_of(record, channel))]
            )
            missing[kind, channel] = 1 - seen / minutes
    assert 0.15 < missing["stress", "rmssd"] < 0.25
    assert 0.50 < missing["aerobic", "rmssd"] < 0.57 and 0.50 < missing["anaerobic", "rmssd"] < 0.57
    for kind in ("stress", "aerobic", "anaerobic"):
        assert missing[kind, "steps"] < 0.04 and missing[kind, "eda_lead_contact"] < 0.04
        # f07's dock hid the pulse and skin sensors; the thermometers of four sessions failed.
        assert missing[kind, "heart_rate"] < 0.07 and missing[kind, "skin_temperature"] < 0.07


def test_real_faults_are_found(real):
    _, records, report = real
    aside = "\n".join(report.files_set_aside)
    for file in (
        "ANAEROBIC/S01/IBI.csv: empty",
        "AEROBIC/f04/IBI.csv: recorded at another",
        "AEROBIC/S07/TEMP.csv: no sample",
    ):
        assert file in aside
    assert len(report.files_set_aside) == 3
    # The authors place the repetition of S02 at rows 49,545 and 6,195.
    assert (
        "Wearable_Dataset/STRESS/S02/ACC.csv:49545" in report.quarantined["the recording again from its start"].samples
    )
    assert report.quarantined["not a number"].samples == ["Wearable_Dataset/STRESS/S02/IBI.csv:31"]
    assert report.rows_unaccounted == 0
    stress = next(event for event in records["f07"].events if event.name == "stress")
    at = minutes_of(records["f07"], "heart_rate")
    assert len(at) and not ((at >= stress.start) & (at < stress.end)).any()


def test_real_windows_and_labels(real):
    source, records, report = real
    channels = make_reader("empatica", ReaderOptions()).channels(source)
    windows = [window for record in records.values() for window in day_windows(record, channels, "salt", report)]
    assert len(windows) == 79 and report.people == 36 and not report.implausible
    assert sum(window.observed.any(1).sum() for window in windows) / 60 == pytest.approx(58.0 - 25.8 / 60, abs=0.5)
    assert records["S01"].labels["bmi"] == pytest.approx(84 / 1.92**2, abs=0.01)
    assert records["f18"].labels["sex"] == "M" and "age" not in records["f18"].labels
    assert all("stress_mean" in record.labels for record in records.values())
