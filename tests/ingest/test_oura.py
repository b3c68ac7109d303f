"""Oura: the account's CSV files and the API's JSON, times with offsets, what is not worn, damage."""

import json

import pytest

from lsm_jax.errors import UserError
from lsm_jax.ingest.detect import detect_format
from tests.ingest.reading import read_source

SLEEP = {
    "id": "s1",
    "bedtime_start": "2024-05-13T23:50:00+02:00",
    "bedtime_end": "2024-05-14T00:20:00+02:00",
    "day": "2024-05-14",
    "heart_rate": {"interval": 300, "items": [60, None, 58], "timestamp": "2024-05-13T23:50:00+02:00"},
    "hrv": {"interval": 300, "items": [40, 41, 42], "timestamp": "2024-05-13T23:50:00+02:00"},
    "sleep_phase_5_min": "442213",
    "type": "long_sleep",
}
ACTIVITY = {
    "id": "a1",
    "class_5_min": "0" * 12 + "12345",
    "met": {"interval": 60, "items": [0.1, 0.9, 3.5], "timestamp": "2024-05-14T04:00:00+02:00"},
    "day": "2024-05-14",
    "steps": 5000,
    "timestamp": "2024-05-14T04:00:00+02:00",
}
WORKOUT = {
    "activity": "trail_running",
    "start_datetime": "2024-05-14T07:00:00+02:00",
    "end_datetime": "2024-05-14T07:30:30+02:00",
}


def table(*documents):
    """The documents as Oura's CSV: semicolons, JSON in cells."""

    def cell(value):
        text = json.dumps(value) if isinstance(value, dict) else "" if value is None else str(value)
        return '"' + text.replace('"', '""') + '"' if '"' in text else text

    return "\n".join([";".join(documents[0]), *(";".join(map(cell, each.values())) for each in documents)]) + "\n"


@pytest.mark.parametrize(
    "files",
    [
        {
            "P1/App Data/sleepmodel.csv": table(SLEEP),
            "P1/App Data/dailyactivity.csv": table(ACTIVITY),
            "P1/App Data/workout.csv": table(WORKOUT),
        },
        {
            "P1/sleep.json": json.dumps({"data": [SLEEP], "next_token": None}),
            "P1/activity.json": json.dumps(ACTIVITY),
            "P1/workouts.json": json.dumps([WORKOUT]),
        },
        {"P1/all.json": json.dumps({"sleep": {"data": [SLEEP]}, "activity": [ACTIVITY], "workout": [WORKOUT]})},
    ],
    ids=["csv", "api", "one file"],
)
def test_nights_activity_and_workouts_by_the_local_clock(tmp_path, files):
    found = read_source("oura", tmp_path, files)
    evening, day = found.people["P1"]
    assert evening.window.utc_offset_minutes == 120 and day.window.start.isoformat() == "2024-05-13T22:00:00+00:00"
    assert evening.events == [("sleep", "awake", 1430, 1440)]
    stages = [("light", 0, 10), ("deep", 10, 15), ("rem", 15, 20)]
    assert {("sleep", "asleep", 0, 20), *(("sleep", *stage) for stage in stages)} <= {*day.events}
    assert ("activity", "trail running", 420, 450.5) in day.events
    assert evening.values("heart_rate")[1430:1435].tolist() == [60] * 5
    assert not evening.observed("heart_rate")[1435:].any() and day.values("heart_rate")[:5].tolist() == [58] * 5
    assert day.values("rmssd")[4] == 42 and day.values("sleep_rem")[15] == 1 and day.values("sleep_light")[15] == 0
    assert not day.observed("met")[240] and day.values("met")[241:243] == pytest.approx([0.9, 3.5])
    assert not day.observed("activity_intensity")[240:300].any() and found.report.not_worn_minutes == 60
    assert day.values("activity_intensity")[300:325:5].tolist() == [0, 0, 1, 2, 3]
    assert found.report.rows_read == found.report.rows_kept == 3


@pytest.mark.parametrize("kind", ["rest", "deleted"])
@pytest.mark.parametrize("name", ["sleepmodel.csv", "sleep.json"])
def test_sleep_that_the_wearer_rejected_is_none_but_its_heart_rates_count(tmp_path, kind, name):
    nights = [{**SLEEP, "type": kind}, {**SLEEP, "type": kind, "heart_rate": None, "hrv": None}]
    text = table(*nights) if name.endswith("csv") else json.dumps({"data": nights})
    found = read_source("oura", tmp_path, {f"P1/{name}": text})
    days = found.people["P1"]
    assert [day.observed("heart_rate").sum() for day in days] == [5, 5] and days[1].values("rmssd")[4] == 42
    assert not any(day.events or day.observed("sleep_light").any() for day in days)
    assert found.report.quarantined["sleep that the wearer rejected or deleted"].rows == found.report.rows_kept == 1
    assert "sleep that the wearer rejected (rest) or deleted is not read as sleep" in found.said


def test_a_workout_of_the_export_and_of_the_api_is_one(tmp_path):
    files = {"P1/all.json": json.dumps([SLEEP, WORKOUT]), "P1/workout.csv": table(WORKOUT)}
    found = read_source("oura", tmp_path, files)
    events = [event for day in found.people["P1"] for event in day.events]
    assert events.count(("activity", "trail running", 420, 450.5)) == 1
    assert found.report.quarantined["event that another row tells too"].samples == ["P1/workout.csv"]


def test_workouts_of_somebody_without_a_recording_are_not_counted_as_kept(tmp_path):
    found = read_source("oura", tmp_path, {"P1/a.json": json.dumps([SLEEP]), "P2/workout.csv": table(WORKOUT, WORKOUT)})
    report = found.report
    assert found.people["P2"] == [] and report.people_without_data == 1 and report.rows_kept == 1
    aside = report.quarantined["row of a person of whom no minute is recorded"]
    assert (aside.rows, aside.samples) == (2, ["P2/workout.csv"])


def test_a_time_in_utc_names_no_zone(tmp_path):
    night = {**SLEEP, "bedtime_start": "2024-05-13T21:50:00Z"}
    found = read_source("oura", tmp_path, {"P1/sleep.json": json.dumps([night])})
    assert found.report.people_in_utc == 1 and "1 people: no time zone is known" in found.said


def test_the_stream_of_heart_rates_and_temperatures(tmp_path):
    files = {
        "oura.zip/x": "",  # a folder with the name of a zip is a folder
        "P1/heartrate.csv": "timestamp;bpm;source\n2024-05-14T10:00:00.000Z;70;awake\n2024-05-14T10:05:00Z;72;awake\n"
        "2024-05-14T10:06:00;99;awake\nsometime;99;rest\n2024-05-14T10:08:00Z;fast;rest\n",
        "P1/temperature.csv": "timestamp;skin_temp\n2024-05-14T10:00:00Z;33.5\n2024-05-14T10:00:30Z;34.5\n",
        "P1/dailysleep.csv": "id;day;score\n1;2024-05-14;80\n",
    }
    found = read_source("oura", tmp_path, files, time_zone="Europe/Berlin")
    day = found.only("P1")
    assert day.values("heart_rate")[720:730].tolist() == [70] * 5 + [72] * 5
    assert day.values("skin_temperature")[720] == 34
    assert {reason: entry.rows for reason, entry in found.report.quarantined.items()} == {
        "time is not readable": 1,
        "value is not a number": 1,
    }
    assert any(sentence.startswith("P1/dailysleep.csv: ") for sentence in found.report.files_ignored)


def test_bad_documents_are_set_aside_with_their_reason(tmp_path):
    backwards = {**WORKOUT, "end_datetime": "2024-05-14T06:00:00+02:00"}
    endless = {**SLEEP, "hrv": {**SLEEP["hrv"], "interval": 1e9}}
    other = {**WORKOUT, "start_datetime": "at seven"}
    found = read_source("oura", tmp_path, {"P1/a.json": json.dumps([ACTIVITY, backwards, endless, other])})
    assert {reason: entry.samples for reason, entry in found.report.quarantined.items()} == {
        "ends before it starts": ["P1/a.json:2"],
        "interval of a series is not from 0 to 3600 seconds": ["P1/a.json:3"],
        "entry is not readable": ["P1/a.json:4"],
    }


def test_a_cut_file_keeps_the_documents_before_the_cut(tmp_path):
    beats = [{"bpm": 60, "source": "awake", "timestamp": f"2024-05-14T10:{minute:02d}:00Z"} for minute in range(60)]
    text = json.dumps({"data": beats})
    found = read_source("oura", tmp_path, {"P1/heartrate.json": text[: len(text) // 2], "P2/a.json": text})
    assert found.only("P1").observed("heart_rate").sum() >= 30 and found.report.rows_kept >= 88
    assert "P1/heartrate.json: damaged after document 2" in found.said


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"class_5_min":1,"met":[1],"bpm":"source","timestamp":0}', "[1,null,{}]", ""]
)
def test_hostile_json_never_stops_the_reading(tmp_path, text):
    mark = ' {"bpm": 60, "source": "awake", "timestamp": "2024-05-14T10:00:00Z"}'
    found = read_source("oura", tmp_path, {"bad/a.json": text + mark, "good/b.json": mark})
    assert found.only("good").observed("heart_rate").sum() == 5
    report = found.report
    assert report.rows_read == report.rows_kept + report.rows_ignored + report.rows_quarantined


def test_oura_is_recognised(tmp_path):
    (tmp_path / "sleep.json").write_text(json.dumps({"data": [SLEEP]}))
    assert detect_format(tmp_path)[0] == "oura"
    (tmp_path / "sleep.json").write_text('{"data": [{"bpm": 60}]}')
    with pytest.raises(UserError, match="No format recognises"):
        detect_format(tmp_path)
    with pytest.raises(UserError, match=r"holds no Oura file: expected heartrate\.csv"):
        read_source("oura", tmp_path, {"a.txt": ""})
