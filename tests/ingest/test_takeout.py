"""Fitbit data of Google Takeout and of Fitbit's web API: spellings of times, twins, sleep, labels, damage."""

import json
import zipfile

import pytest

from lsm_jax.errors import UserError
from lsm_jax.ingest.detect import detect_format
from tests.ingest.reading import read_folder, values

PROFILE = (
    "id,full_name,date_of_birth,timezone,gender\nC698DD,Koby Doe,1990-05-20,America/Los_Angeles,FEMALE\n"
)  # fmt: skip


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "koby"
    (folder / "Takeout" / "Fitbit").mkdir(parents=True)
    return folder


def write(source, name, content):
    path = source / "Takeout" / "Fitbit" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def ingest(source, tmp_path, **options):
    """(windows, report) of a source."""
    found = read_folder("takeout", source, tmp_path / "scratch", **options)
    return found.windows, found.report


def samples(*pairs, wrap=str):
    return [{"dateTime": time, "value": wrap(value)} for time, value in pairs]


def test_times_in_utc_and_on_the_wearers_clock_meet(source, tmp_path):
    """08:00 in UTC is midnight in California in winter; sleep and beats of the night are on the wearer's clock."""
    write(source, "Your Profile/Profile.csv", PROFILE)
    beats = [("01/10/23 08:00:05", 60, 2), ("01/10/23 08:00:15", 62, 3), ("01/10/23 08:01:00", 200, 0)]
    write(
        source,
        "Global Export Data/heart_rate-2023-01-10.json",
        [{"dateTime": time, "value": {"bpm": bpm, "confidence": sure}} for time, bpm, sure in beats],
    )
    write(source, "Global Export Data/steps-2023-01-10.json", samples(("01/10/23 08:05:00", 12)))
    write(source, "Global Export Data/calories-2023-01-10.json", samples(("01/10/23 08:05:00", 1.25)))
    write(source, "Global Export Data/distance-2023-01-10.json", samples(("01/10/23 08:05:00", 900)))
    write(source, "Global Export Data/altitude-2023-01-10.json", samples(("01/10/23 08:05:00", 10)))
    write(
        source,
        "Heart Rate Variability/Heart Rate Variability Details - 2023-01-10.csv",
        "timestamp,rmssd,coverage,low_frequency,high_frequency\n2023-01-10T00:05:00,31.5,0.9,800,400\n",
    )
    write(
        source,
        "Oxygen Saturation (SpO2)/Minute SpO2 - 2023-01-10.csv",
        "timestamp,value\n2023-01-10T08:06:00Z,96.5\n2023-01-10T08:07:00Z,50.0\n",
    )
    write(
        source,
        "Temperature/Device Temperature - 2023-01-10.csv",
        "recorded_time,temperature,sensor_type\n2023-01-10T00:08,33.5,UNKNOWN\n",
    )
    write(
        source,
        "Global Export Data/resting_heart_rate-2023-01-01.json",
        samples(("01/10/23 00:00:00", {"date": "01/10/23", "value": 55.5, "error": 6}), wrap=dict),
    )
    write(
        source,
        "Global Export Data/exercise-0.json",
        [{"logId": 1, "activityName": "Walk", "startTime": "01/10/23 18:00:00", "duration": 1800000}],
    )
    write(source, "Global Export Data/time_in_heart_rate_zones-2023-01-10.json", samples(("01/10/23 08:05:00", 1)))
    (window,), report = ingest(source, tmp_path)
    found = {name: values(window, name) for name in window.channels}
    assert found["heart_rate"] == {0: 61} and report.invalid == {"heart_rate": 1, "spo2": 1}
    assert found["steps"] == {5: 12} and found["calories"] == {5: 1.25} and found["distance"] == {5: 9}
    assert found["floors"] == {5: 1} and found["spo2"] == {6: 96.5} and found["skin_temperature"] == {8: 33.5}
    assert found["rmssd"] == dict.fromkeys(range(5, 10), 31.5) and found["hrv_lf"][5] == 800
    assert window.labels == {"age": 32, "sex": "F", "resting_heart_rate": 55.5} and window.utc_offset_minutes == -480
    assert [(event.kind, event.name, event.start, event.end) for event in window.events] == [
        ("activity", "walking", 600, 630)
    ]
    assert len(report.files_ignored) == 1


def test_of_two_files_of_one_signal_the_table_is_taken(source, tmp_path):
    write(
        source, "Global Export Data/steps-2023-01-10.json", samples(("01/10/23 08:05:00", 12), ("01/10/23 08:06:00", 9))
    )
    table = "timestamp,steps,data source\n2023-01-10T08:05:00Z,12,Watch\n"
    write(source, "Physical Activity_GoogleData/steps_2023-01-10.csv", table)
    (window,), report = ingest(source, tmp_path)
    assert values(window, "steps") == {485: 12, 486: 9}
    assert report.outranked_minutes == {"steps of Takeout's JSON files": 1}


def test_sleep_has_stages_and_short_times_awake(source, tmp_path):
    write(source, "Your Profile/Profile.csv", PROFILE)

    def levels(*entries):
        return [{"dateTime": f"2023-01-10T{t}.000", "level": level, "seconds": s} for t, level, s in entries]

    staged = levels(("01:00:00", "light", 1800), ("01:30:00", "deep", 600), ("01:40:00", "rem", 600))
    classic = levels(("14:00:00", "asleep", 600), ("14:10:00", "restless", 60))
    write(
        source,
        "Global Export Data/sleep-2023-01-10.json",
        [
            {"logId": 1, "levels": {"data": staged, "shortData": levels(("01:10:00", "wake", 60))}},
            {"logId": 2, "levels": {"data": classic}},
            {"logId": 3, "levels": {"data": levels(("14:00:00", "dozing", 600))}},
            {"logId": 4, "levels": 7},
        ],
    )
    (window,), report = ingest(source, tmp_path)
    assert [(event.name, event.start, event.end) for event in window.events] == [
        ("light", 60, 70),
        ("asleep", 60, 110),
        ("awake", 70, 71),
        ("light", 71, 90),
        ("deep", 90, 100),
        ("rem", 100, 110),
        ("asleep", 840, 851),
        ("restless", 850, 851),
    ]
    assert values(window, "sleep_awake")[70] == 1 and values(window, "sleep_light")[70] == 0
    assert values(window, "sleep_state") == {**dict.fromkeys(range(840, 850), 1), 850: 2}
    assert report.quarantined["entry is not readable"].samples == [f"{SLEEP}:3", f"{SLEEP}:4"]


SLEEP = "Takeout/Fitbit/Global Export Data/sleep-2023-01-10.json"


def test_the_report_names_a_bad_entry_and_tells_nothing_of_it(source, tmp_path):
    """The first day is a birthday, and the one good entry."""
    write(source, "Your Profile/Profile.csv", PROFILE)
    write(source, "steps-2023-05-20.json", samples(("05/20/23 19:00:00", 12)))
    walk = {"logId": 1, "activityName": "Walk", "startTime": "05/20/23 19:00:00"}
    write(source, "exercise-0.json", [{**walk, "duration": "Koby"}, {**walk, "duration": -1}])
    (window,), report = ingest(source, tmp_path)
    assert window.labels["age"] == 33
    assert {reason: entry.samples for reason, entry in report.quarantined.items()} == {
        "entry is not readable": ["Takeout/Fitbit/exercise-0.json:1"],
        "lasts longer than a day": ["Takeout/Fitbit/exercise-0.json:2"],
    }


def test_local_times_without_a_zone_are_not_guessed(source, tmp_path):
    write(source, "Global Export Data/steps-2023-01-10.json", samples(("01/10/23 08:05:00", 12)))
    entry = {"dateTime": "2023-01-10T01:00:00.000", "level": "asleep", "seconds": 600}
    write(source, "Global Export Data/sleep-2023-01-10.json", [{"logId": 1, "levels": {"data": [entry]}}])
    (window,), report = ingest(source, tmp_path)
    assert window.events == () and values(window, "steps") == {485: 12}
    (reason,) = report.quarantined
    assert reason.endswith("no zone is known: give --time-zone")
    (window,), report = ingest(source, tmp_path, time_zone="Europe/Berlin")
    assert [(event.start, event.end) for event in window.events] == [(60, 70)] and values(window, "steps") == {545: 12}


def test_times_of_the_wearers_clock_alone_are_its_days(source, tmp_path):
    """As archives hold them: JSON of Takeout's shape, with times in ISO 8601."""
    beats = [{"dateTime": "2023-01-10 23:59:05", "value": {"bpm": 60, "confidence": 1}}]
    write(source, "heart_rate.json", beats)
    (window,), report = ingest(source, tmp_path)
    assert values(window, "heart_rate") == {1439: 60} and report.people_on_wall_clock == 1


def test_documents_of_the_web_api_are_days_of_the_wearers_clock(tmp_path):
    folder = tmp_path / "archive" / "P1"
    folder.mkdir(parents=True)
    day = {
        "activities-heart": [{"dateTime": "2020-02-03", "value": {"heartRateZones": []}}],
        "activities-heart-intraday": {
            "dataset": [
                {"time": "08:00:05", "value": 60},
                {"time": "08:00:10", "value": 64},
                {"time": "x", "value": 1},
            ],
            "datasetInterval": 1,
            "datasetType": "second",
        },
        "activities-steps": [{"dateTime": "2020-02-03", "value": "30"}],
        "activities-steps-intraday": {
            "dataset": [{"time": "09:00:00", "value": 30}],
            "datasetInterval": 15,
            "datasetType": "minute",
        },
    }
    (folder / "2020-02-03.json").write_text(json.dumps(day))
    states = [{"dateTime": f"01:0{n}:00", "value": code} for n, code in enumerate("1123")]
    log = {"startTime": "2020-02-03T01:00:00.000", "minuteData": states}
    (folder / "sleep.json").write_text(json.dumps({"sleep": [log], "summary": {}}))
    assert detect_format(folder.parent)[0] == "takeout"
    (window,), report = ingest(folder.parent, tmp_path)
    assert values(window, "heart_rate") == {480: 62}
    assert values(window, "steps") == dict.fromkeys(range(540, 555), 2)
    assert values(window, "sleep_state") == {60: 1, 61: 1, 62: 2, 63: 3}
    assert report.quarantined["time is not readable"].rows == 1 and report.people_on_wall_clock == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('[{"dateTime": "01/10/23 08:00:05", "value": {"bpm": 60}}, {"dateTime": "01/10/23 08:01', 1),
        ('[{"dateTime": "01/10/23 08:00:05", "value": {"bpm": 60}}, 7, null, [], {"dateTime": 5, "value": "x"}]', 1),
        ('[{"dateTime": "01/10/23 08:00:05", "value": {"bpm": Infinity}}]', 0),
        ('[{"dateTime": "01/10/23 08:00:05", "value": ' + "[" * 100_000, 0),
        ('[{"dateTime": "13/45/23 08:00:05", "value": {"bpm": 60}}]', 0),
        ('[{"dateTime": "01/10/23 08:00:05", "value": {"bpm": ' + "9" * 6000 + "}}]", 0),
    ],
)
def test_damaged_files_keep_what_comes_before(source, tmp_path, text, kept):
    write(source, "heart_rate-2023-01-10.json", text)
    windows, report = ingest(source, tmp_path)
    assert sum(len(values(window, "heart_rate")) for window in windows) == kept
    assert report.files_set_aside or report.rows_quarantined


def test_zips_of_one_takeout_are_one_person(tmp_path):
    folder = tmp_path / "koby"
    folder.mkdir()
    for part in (1, 2):
        with zipfile.ZipFile(folder / f"takeout-20230110T120000Z-00{part}.zip", "w") as archive:
            name = f"Takeout/Fitbit/Global Export Data/steps-2023-01-1{part}.json"
            archive.writestr(name, json.dumps(samples((f"01/1{part}/23 08:05:00", part))))
    windows, report = ingest(folder, tmp_path)
    assert [values(window, "steps") for window in windows] == [{485: 1}, {485: 2}] and report.people == 1
    write_again = folder / "Fitbit" / "Global Export Data"
    write_again.mkdir(parents=True)
    (write_again / "steps-2023-01-13.json").write_text(json.dumps(samples(("01/13/23 08:05:00", 3))))
    assert len(ingest(folder, tmp_path)[0]) == 3 and ingest(folder, tmp_path)[1].people == 1
    with pytest.raises(UserError, match="no Fitbit data"):
        (tmp_path / "empty").mkdir()
        ingest(tmp_path / "empty", tmp_path)
