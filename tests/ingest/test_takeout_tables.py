"""Takeout's tables of sleep and exercises, nightly values, and sources that claim one signal.

Files are made by hand from the columns that the READMEs of an export describe.
"""

import json

import pytest

from lsm_jax.ingest.detect import detect_format
from tests.ingest.reading import read_source

FOLDER = "koby/Takeout/Fitbit/"
TABLES = FOLDER + "Health Fitness Data_GoogleData/"
PROFILE = {
    FOLDER + "Your Profile/Profile.csv": "date_of_birth,timezone,gender\n1990-05-20,America/Los_Angeles,FEMALE\n"
}
STEPS = {FOLDER + "steps-2023-01-10.json": json.dumps([{"dateTime": "01/10/23 20:00:00", "value": 9}])}
STAGE_COLUMNS = (
    "sleep_id,sleep_stage_id,sleep_stage_type,start_utc_offset,sleep_stage_start,"
    "end_utc_offset,sleep_stage_end,data_source"
)
SLEEP_COLUMNS = (
    "sleep_id,sleep_type,minutes_in_sleep_period,minutes_after_wake_up,minutes_to_fall_asleep,minutes_asleep,"
    "start_utc_offset,sleep_start,end_utc_offset,sleep_end,data_source"
)


def stages(*rows, offset="-08:00", day="2023-01-10"):
    """UserSleepStages of (id, stage, start, end), which are hours of a day in UTC."""
    cells = [
        f"{sleep},{number},{stage},{offset},{day}T{start}Z,{offset},{day}T{end}Z,DERIVED"
        for number, (sleep, stage, start, end) in enumerate(rows)
    ]
    return {TABLES + "UserSleepStages_2023-01-01.csv": "\n".join((STAGE_COLUMNS, *cells))}


def sleeps(*rows, offset="-08:00"):
    """UserSleeps of (id, minutes to fall asleep, minutes after waking up, start, end)."""
    cells = [f"{sleep},STAGES,9,{after},{before},9,{offset},{a},{offset},{b},X" for sleep, before, after, a, b in rows]
    return {TABLES + "UserSleeps_2023-01-01.csv": "\n".join((SLEEP_COLUMNS, *cells))}


def log(number, start, *levels, **more):
    """A log of Takeout's JSON, with levels of (time, level, seconds)."""
    data = [{"dateTime": f"2023-01-10T{time}.000", "level": level, "seconds": length} for time, level, length in levels]
    return {"logId": number, "startTime": f"2023-01-10T{start}.000", "levels": {"data": data}, **more}


def logs(*content):
    return {FOLDER + "Global Export Data/sleep-2023-01-10.json": json.dumps(content)}


def ingest(tmp_path, *files, **options):
    content = {path: text for part in files for path, text in part.items()}
    found = read_source("takeout", tmp_path, content, **options)
    return found.only("koby"), found.report


NIGHT = stages(
    ("1", "LIGHT", "09:00:00", "09:30:00"),
    ("1", "DEEP", "09:30:00", "10:00:30"),
    ("1", "REM", "10:00:30", "10:10:00"),
    ("1", "AWAKE", "09:10:00", "09:11:00"),
)


def test_a_table_of_stages_becomes_events_and_channels(tmp_path):
    """Nine in UTC is one o'clock in California. A short time awake interrupts the stage that is told around it."""
    day, report = ingest(tmp_path, NIGHT, PROFILE)
    assert day.events == [
        ("sleep", "light", 60, 70),
        ("sleep", "asleep", 60, 130),
        ("sleep", "awake", 70, 71),
        ("sleep", "light", 71, 90),
        ("sleep", "deep", 90, 120.5),
        ("sleep", "rem", 120.5, 130),
    ]
    assert day.values("sleep_deep")[[89, 90, 120]].tolist() == [0, 1, 0.5]
    assert day.values("sleep_awake")[70] == 1 and day.observed("sleep_rem").sum() == 70
    assert report.rows_kept == 5 and detect_format(tmp_path / "source")[0] == "takeout"


def test_a_night_that_the_logs_tell_too_counts_once(tmp_path):
    """The table is better; the nap is in the logs only, and one log has no stages."""
    night = log(1, "01:00:00", ("01:00:00", "light", 1800), ("01:30:00", "deep", 3600))
    nap = log(2, "14:00:00", ("14:00:00", "asleep", 600))
    plain = log(3, "20:00:00", duration=3_600_000, minutesToFallAsleep=5, minutesAfterWakeup=10)
    day, report = ingest(tmp_path, NIGHT, PROFILE, logs(night, nap, plain, nap))
    assert [event[1:] for event in day.events if event[1] in ("deep", "asleep")] == [
        ("asleep", 60, 130),
        ("deep", 90, 120.5),
        ("asleep", 840, 850),
        ("asleep", 1205, 1250),
    ]
    told_again = report.quarantined["sleep of a time for which a better row, or an equal one, is used"]
    assert told_again.rows == 2 and {*told_again.samples} == {FOLDER + "Global Export Data/sleep-2023-01-10.json"}
    assert report.rows_kept == 4 + 2 + 1  # stages, logs, the profile


def test_a_session_without_stages_is_an_event(tmp_path):
    """From falling asleep to waking up. One whose stages are known is no second sleep."""
    sessions = sleeps(
        ("1", 0, 0, "2023-01-10T09:00:00Z", "2023-01-10T10:10:00Z"),
        ("2", 10, 5, "2023-01-10 22:00:00+0000", "2023-01-10 23:00:00+0000"),
    )
    day, report = ingest(tmp_path, NIGHT, sessions, PROFILE)
    assert [event for event in day.events if event[1] == "asleep"] == [
        ("sleep", "asleep", 60, 130),
        ("sleep", "asleep", 14 * 60 + 10, 14 * 60 + 55),
    ]
    assert day.observed("sleep_light").sum() == 70 and report.rows_kept == 4 + 1 + 1


def test_nights_whose_stages_name_no_sleep_are_told_apart_by_time(tmp_path):
    """As one sleep they would take the place of the nap between them. A stage that is told twice counts once."""
    evening = ("", "DEEP", "23:00:00", "23:40:00")
    nights = stages(("", "LIGHT", "09:00:00", "09:30:00"), (" ", "REM", "09:50:00", "10:00:00"), evening, evening)
    day, report = ingest(tmp_path, nights, PROFILE, logs(log(2, "06:00:00", ("06:00:00", "asleep", 600))))
    assert [event for event in day.events if event[1] == "asleep"] == [
        ("sleep", "asleep", 60, 120),
        ("sleep", "asleep", 360, 370),
        ("sleep", "asleep", 900, 940),
    ]
    said = "\n".join(report.sentences())
    assert "1 files: no id of the sleep in some rows: stages at most 30 minutes apart are taken for one sleep (" in said
    assert report.rows_kept == 3 + 1 + 1 and report.rows_quarantined == 1


def test_offsets_of_the_tables_are_the_clock_where_no_zone_is_known(tmp_path):
    """They also place what is on the wearer's clock."""
    nap = log(2, "14:00:00", ("14:00:00", "asleep", 600))
    day, report = ingest(tmp_path, NIGHT, logs(nap))
    assert day.window.utc_offset_minutes == -480 and not report.quarantined
    assert [event for event in day.events if event[1] == "asleep"] == [
        ("sleep", "asleep", 60, 130),
        ("sleep", "asleep", 840, 850),
    ]


def test_bad_rows_of_sleep_are_counted_with_their_reason(tmp_path):
    """The good ones stay."""
    bad = stages(
        ("1", "DOZING", "09:00:00", "09:30:00"),
        ("1", "LIGHT", "09:30:00", "09:00:00"),
        ("1", "LIGHT", "soon", "09:00:00"),
        ("1", "LIGHT", "09:00:00", "10:00:00"),
    )
    sessions = sleeps(
        ("2", 0, 0, "2023-01-10T12:00:00Z", "2023-01-12T12:00:00Z"),
        ("3", 90, 0, "2023-01-10T12:00:00Z", "2023-01-10T13:00:00Z"),
        ("4", "nan", "inf", "2023-01-10T12:00:00Z", "2023-01-10T13:00:00Z"),
        ("5", 0, "nan", "2023-01-10T12:00:00Z", "2023-01-10T13:00:00Z"),
    )
    day, report = ingest(tmp_path, bad, sessions, PROFILE)
    assert day.events == [("sleep", "asleep", 60, 120), ("sleep", "light", 60, 120)]
    assert {reason: entry.rows for reason, entry in report.quarantined.items()} == {
        "unknown stage of sleep": 1,
        "ends before it starts": 4,
        "time is not readable": 1,
        "lasts longer than a day": 1,
    }


@pytest.mark.parametrize("zone", [PROFILE, {}])
def test_nightly_values_are_labels_of_their_day(tmp_path, zone):
    """Dates are those of the wearer's clock, also where they are written as midnight UTC and where no zone is known."""
    tables = {
        "Physical Activity_GoogleData/daily_resting_heart_rate.csv": (
            "timestamp,beats per minute,data source\n2023-01-10T00:00:00Z,61.25,App\n2023-01-11T00:00:00Z,50,App\n"
        ),
        "Heart Rate Variability/Daily Heart Rate Variability Summary - 2023-01-(10).csv": (
            "timestamp,rmssd,nremhr,entropy\n2023-01-10T00:00:00,41.5,55,2.5\n"
        ),
        "Sleep Score/sleep_score.csv": (
            "sleep_log_entry_id,timestamp,overall_score\n1,2023-01-10T14:30:30Z,82\n2,2023-01-10T15:00:00Z,0\n3,soon,9\n"
        ),
    }
    day, report = ingest(tmp_path, STEPS, zone, {FOLDER + name: text for name, text in tables.items()})
    labels = {name: value for name, value in day.window.labels.items() if name not in ("age", "sex")}
    assert labels == {"resting_heart_rate": 61.25, "hrv_night_average": 41.5, "sleep_score": 82}
    assert report.quarantined["time is not readable"].samples == [FOLDER + "Sleep Score/sleep_score.csv:4"]
    assert report.quarantined["day or night without a measurement"].samples == [
        FOLDER + "Sleep Score/sleep_score.csv:3"
    ]


def score(time):
    return {FOLDER + "Sleep Score/sleep_score.csv": f"sleep_log_entry_id,timestamp,overall_score\n1,{time},82\n"}


@pytest.mark.parametrize(
    ("time", "zone", "is_of_the_day"),
    [
        ("2023-01-11T06:30:30Z", PROFILE, True),  # half past ten in the evening in California
        ("2023-01-10T06:30:30Z", PROFILE, False),
        ("2023-01-10T14:30:30+08:00", PROFILE, False),
        ("2023-01-10T06:30:30Z", {}, True),
        ("2023-01-10T23:30:30", PROFILE, True),
        ("2023-01-10 00:30:30", PROFILE, True),
    ],
)
def test_a_score_in_utc_is_of_the_day_on_the_wearers_clock(tmp_path, time, zone, is_of_the_day):
    """A time without a Z is one of that clock."""
    day, report = ingest(tmp_path, STEPS, zone, score(time))
    assert ("sleep_score" in day.window.labels) == is_of_the_day and not report.quarantined


def test_a_score_in_utc_beside_a_clock_of_no_known_zone_is_set_aside(tmp_path):
    """It costs nothing else."""
    beats = [{"dateTime": "2023-01-10 22:00:05", "value": {"bpm": 60, "confidence": 1}}]
    day, report = ingest(tmp_path, {FOLDER + "heart_rate.json": json.dumps(beats)}, score("2023-01-10T06:30:30Z"))
    assert day.values("heart_rate")[1320] == 60 and "sleep_score" not in day.window.labels
    assert {reason: entry.rows for reason, entry in report.quarantined.items()} == {
        "time in UTC beside a clock of which no zone is known: give --time-zone": 1
    }


@pytest.mark.parametrize("folder", ["Earlier/", "Later/"])
def test_of_a_label_in_the_logs_and_in_a_table_the_tables_counts(tmp_path, folder):
    """In whatever order the files are read, and also where both are equal. A day in the logs alone has its label."""
    files = {
        FOLDER + "Global Export Data/resting_heart_rate-2023-01-01.json": json.dumps(
            [
                {"dateTime": f"{date} 00:00:00", "value": {"date": date, "value": value, "error": 6}}
                for date, value in (("01/10/23", 55.5), ("01/11/23", 58.0), ("01/12/23", 60.0), (None, 0.0))
            ]
        ),
        FOLDER + folder + "daily_resting_heart_rate.csv": (
            "timestamp,beats per minute,data source\n2023-01-10T00:00:00Z,61.25,Band\n"
            "2023-01-10T00:00:00Z,70,MobileTrack\n2023-01-11T00:00:00Z,58.0,Band\n"
        ),
        FOLDER + "steps-2023-01-10.json": json.dumps(
            [{"dateTime": f"01/{day}/23 20:00:00", "value": 9} for day in (10, 11, 12)]
        ),
    }
    found = read_source("takeout", tmp_path, {**files, **PROFILE})
    assert [day.window.labels["resting_heart_rate"] for day in found.people["koby"]] == [61.25, 58, 60]
    assert {reason: entry.rows for reason, entry in found.report.quarantined.items()} == {
        "label of a day for which a better source tells it": 3,
        "day or night without a measurement": 1,
    }
    assert "3 rows: label of a day for which a better source tells it (" in found.said
    assert not found.report.label_conflicts


def test_the_folders_of_fitbit_are_no_people(tmp_path):
    """The source is the folder Fitbit itself."""
    folders = ("Sleep Score", "Stress Score", "Heart", "Biometrics", "Active Zone Minutes (AZM)")
    score = "sleep_log_entry_id,timestamp,overall_score\n1,2023-01-10T07:00:00Z,80\n"
    files = {f"{folder}/sleep_score.csv": score for folder in folders}
    files["Global Export Data/steps-2023-01-10.json"] = STEPS[FOLDER + "steps-2023-01-10.json"]
    found = read_source("takeout", tmp_path, files, time_zone="UTC")
    assert found.only("source").window.labels == {"sleep_score": 80} and found.report.rows_kept == 6


def test_of_two_profiles_the_first_is_used_and_the_other_is_said(tmp_path):
    other = {FOLDER + "second/Profile.csv": "date_of_birth,timezone,gender\n1950-05-20,Europe/Berlin,MALE\n"}
    day, report = ingest(tmp_path, STEPS, PROFILE, other)
    assert day.window.labels == {"age": 32, "sex": "F"} and day.window.utc_offset_minutes == -480
    assert f"{FOLDER}second/Profile.csv: a further profile, the first one is used" in report.files_set_aside


def test_a_phone_and_a_band_that_count_the_same_steps_are_ranked(tmp_path):
    """Rows of one minute are several sources; their steps were added."""
    rows = [
        "timestamp,steps,data source",
        "2023-01-10T20:05:00Z,30,MobileTrack",
        "2023-01-10T20:05:00Z,28,Google Fitbit Air",
        "2023-01-10T20:05:00Z,30,Fit Health Connect",
        "2023-01-10T20:06:00Z,12,MobileTrack",
        "2023-01-10T20:00:00Z,7,MobileTrack",
    ]
    table = {FOLDER + "Physical Activity_GoogleData/steps_2023-01-01.csv": "\n".join(rows)}
    day, report = ingest(tmp_path, STEPS, table, time_zone="UTC")
    steps = day.values("steps")[[1200, 1205, 1206]]
    assert steps.tolist() == [9, 28, 12]  # the JSON file, which joins devices, comes before a phone
    assert report.outranked_minutes == {"steps of a phone": 2, "steps of a copy of another app": 1}
    day, report = ingest(tmp_path, time_zone="UTC", prefer=("mobiletrack",))
    assert day.values("steps")[[1200, 1205, 1206]].tolist() == [7, 30, 12]
    assert report.outranked_minutes["steps of a device"] == 1


def test_what_is_not_read_is_named_and_counted(tmp_path):
    names = (
        "Oxygen Saturation (SpO2)/Daily SpO2 - 2023-01-10-2023-02-10.csv",
        "Global Export Data/sedentary_minutes-2023-01-10.json",
        "Heart Rate Variability/Heart Rate Variability Histogram - 2023-01-10.csv",
        "Social/badge.json",
    )
    _, report = ingest(tmp_path, STEPS, {FOLDER + name: "timestamp,x\n" for name in names}, time_zone="UTC")
    assert report.ignored == {
        "summaries of days or nights": 2,
        "histograms of a night's heart rate variability": 1,
        "no minutes, sleep, exercise or profile of Fitbit": 1,
    }
    assert "4 files are not read (2 summaries of days or nights, 1 " in "\n".join(report.sentences())
    assert len(report.files_ignored) == 4


def test_an_exercise_that_the_logs_tell_too_counts_once(tmp_path):
    """The table is better. One before its first exercise and one between two of them are in the logs only."""
    rows = (
        "exercise_id,exercise_start,exercise_end,utc_offset,activity_name,events",
        '1,2023-01-10T18:00:00Z,2023-01-10T18:30:00Z,-08:00,Walk,"{""a"": [1, 2]}"',
        "2,2023-01-10T21:00:00Z,2023-01-10T21:10:30Z,-08:00,Outdoor Run,",
        "3,2023-01-10T22:00:00Z,2023-01-10T21:00:00Z,-08:00,Walk,",
        "4,2023-01-10T22:00:00Z,2023-01-10T22:10:00Z,-08:00,,",
    )
    logged = [
        {"logId": n, "activityName": name, "startTime": f"01/10/23 {start}", "duration": 1_800_000}
        for n, (name, start) in enumerate((("Bike", "17:00:00"), ("Walk", "17:59:58"), ("Swim", "19:30:00")))
    ]
    files = {
        TABLES + "UserExercises_2023-01-01.csv": "\n".join(rows),
        FOLDER + "exercise-0.json": json.dumps(logged),
        FOLDER + "exercise-100.json": json.dumps(logged[:1]),
    }
    day, report = ingest(tmp_path, STEPS, files, PROFILE)
    assert day.events == [
        ("activity", "cycling", 540, 570),
        ("activity", "walking", 600, 630),
        ("activity", "swimming", 690, 720),
        ("activity", "outdoor run", 780, 790.5),
    ]
    assert {reason: entry.rows for reason, entry in report.quarantined.items()} == {
        "ends before it starts": 1,
        "exercise without a name": 1,
        "event that another row tells too": 2,
    }
    assert report.quarantined["event that another row tells too"].samples == [
        FOLDER + "exercise-0.json",
        FOLDER + "exercise-100.json",
    ]
    assert report.rows_kept == 2 + 2 + 1 + 1  # exercises of the table and of the logs, the profile, steps
