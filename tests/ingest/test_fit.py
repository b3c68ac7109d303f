"""FIT files: times, running totals, all-day values, activities, sleep, damage."""

import datetime as dt
import re
import sys

import numpy as np
import pytest

from lsm_jax.errors import UserError
from lsm_jax.ingest.detect import detect_format
from tests.ingest.fit_files import (
    FIT_EPOCH,
    HEART_RATES,
    HRV,
    HRV_STATUS,
    MONITORING,
    MONITORING_INFO,
    RECORD,
    RESPIRATION,
    RUNNING,
    SEDENTARY,
    SESSION,
    SLEEP,
    SPO2,
    STRESS,
    TIMESTAMP,
    WALKING,
    data,
    definition,
    fit_file,
    with_frame,
)
from tests.ingest.reading import read_source

MIDNIGHT = int(dt.datetime(2024, 5, 13, tzinfo=dt.UTC).timestamp()) - FIT_EPOCH
HEART_RATE, TIME_16, INTENSITY = (27, "B"), (26, "H"), (24, "B")
CYCLES, ACTIVE_CALORIES, ACTIVITY_TYPE = (3, "I"), (19, "H"), (5, "enum")


def at(minute, seconds=0):
    return MIDNIGHT + 60 * minute + seconds


def heart(minute, rate):
    return MONITORING, {TIMESTAMP: at(minute), HEART_RATE: rate}


def total(minute, activity, steps):
    return MONITORING, {TIMESTAMP: at(minute), CYCLES: steps, ACTIVITY_TYPE: activity}


def read(tmp_path, *messages, **options):
    return read_source("fit", tmp_path, {"P1/a.fit": fit_file(*messages)}, **options)


def test_low_bits_of_the_time_count_on_and_roll_over(tmp_path):
    start = at(0)
    passed = 65536 - start % 65536  # the seconds until the low 16 bits start again
    low_bits = [(start + later) % 65536 for later in (60, passed - 2, passed + 60)]  # 0xFFFF would say "no value"
    found = read(tmp_path, heart(0, 60), *((MONITORING, {TIME_16: low, HEART_RATE: 70}) for low in low_bits))
    day = found.only("P1")
    assert set(np.flatnonzero(day.observed("heart_rate"))) == {0, 1, (passed - 2) // 60, (passed + 60) // 60}
    assert found.report.rows_read == 5 and found.report.rows_kept == 4 and found.report.rows_ignored == 1


def test_times_that_cannot_be_known_are_set_aside(tmp_path):
    early = (MONITORING, {TIME_16: 5, HEART_RATE: 70})
    since_power_up = (MONITORING, {TIMESTAMP: 5000, HEART_RATE: 70})
    found = read(tmp_path, early, since_power_up, heart(3, 60))
    assert np.flatnonzero(found.only("P1").observed("heart_rate")).tolist() == [3]
    assert found.report.quarantined["message without a time"].samples == ["P1/a.fit:2", "P1/a.fit:3"]


def test_totals_are_differenced_by_type_added_and_reset_at_midnight(tmp_path):
    day_before = fit_file(total(-10, WALKING, 8000), total(-5, WALKING, 8050), total(-5, RUNNING, 300))
    today = fit_file(
        total(5, WALKING, 20),
        total(5, RUNNING, 0),
        total(10, WALKING, 120),
        total(11, WALKING, 130),
        total(11, RUNNING, 60),
    )
    found = read_source("fit", tmp_path, {"P1/1.fit": today, "P1/2.fit": day_before, "P1/copy.fit": today})
    steps = found.people["P1"][1].values("steps")
    assert steps[:5] == pytest.approx([2] * 5)  # 20 since the reset, over the ten minutes around midnight
    assert steps[5:10] == pytest.approx([20 + 10] * 5) and steps[10] == pytest.approx(10 + 10)
    assert found.people["P1"][0].values("steps")[-10:-5] == pytest.approx([10] * 5)


@pytest.mark.parametrize(("local", "before"), [(3600, None), (0, 10)], ids=["not known", "from midnight"])
def test_a_message_with_its_intensity_speaks_for_the_time_since_the_one_before(tmp_path, local, before):
    def packed(minute, activity, cycles=None):
        counted = {} if cycles is None else {CYCLES: cycles}
        return MONITORING, {TIME_16: (at(minute)) % 65536, INTENSITY: 1 << 5 | activity, **counted}

    messages = [
        (MONITORING_INFO, {TIMESTAMP: at(0), (0, "I"): at(0) + local}),
        packed(10, WALKING, 100),
        packed(30, SEDENTARY),
        packed(32, WALKING, 140),
        packed(32, RUNNING, 0),
        packed(34, RUNNING, 160),
        packed(34, WALKING, 160),
    ]
    steps = read(tmp_path, *messages, time_zone="UTC").only("P1").values("steps")
    # What was counted before the first total is not known, unless monitoring starts at midnight.
    assert np.isnan(steps[:10]).all() if before is None else steps[:10].tolist() == [before] * 10
    assert steps[10:30].tolist() == [0] * 20 and steps[30:32].tolist() == [20, 20]
    assert steps[32:34].tolist() == [90, 90] and np.isnan(steps[34:]).all()


def test_all_day_values_of_their_own_messages(tmp_path):
    found = read(
        tmp_path,
        heart(0, 60),
        heart(1, 0),
        (STRESS, {(0, "h"): 25, (1, "I"): at(0)}),
        (STRESS, {(0, "h"): -1, (1, "I"): at(3)}),
        (RESPIRATION, {TIMESTAMP: at(0), (0, "h"): 1450}),
        (SPO2, {TIMESTAMP: at(0), (0, "B"): 96}),
        (HRV, {TIMESTAMP: at(0), (0, "H"): 40 * 128}),
        (MONITORING, {TIMESTAMP: at(10), ACTIVE_CALORIES: 0, ACTIVITY_TYPE: WALKING}),
        (MONITORING, {TIMESTAMP: at(20), ACTIVE_CALORIES: 30, ACTIVITY_TYPE: WALKING}),
        (HEART_RATES, {TIMESTAMP: at(600), (0, "B"): 52}),
        (HRV_STATUS, {TIMESTAMP: at(600), (1, "H"): 44 * 128, (6, "enum"): 4}),
    )
    day = found.only("P1")
    first = {name: day.values(name)[0] for name in ("heart_rate", "stress_level", "respiratory_rate", "spo2", "rmssd")}
    assert first == {"heart_rate": 60, "stress_level": 25, "respiratory_rate": 14.5, "spo2": 96, "rmssd": 40}
    assert day.observed("rmssd").sum() == 5 and day.observed("heart_rate").sum() == 1
    assert day.values("active_calories")[10:20] == pytest.approx([3] * 10)
    assert day.window.labels == {"resting_heart_rate": 52, "hrv_night_average": 44, "hrv_status": "balanced"}
    assert found.report.invalid == {"heart_rate": 1, "stress_level": 1}


def test_an_activity_gives_its_values_and_an_event(tmp_path):
    records = [
        (
            RECORD,
            {TIMESTAMP: at(60, 10 * n), (3, "B"): 150, (4, "B"): 85, (7, "H"): 210, (13, "b"): 27, (5, "I"): 3000 * n},
        )
        for n in range(12)
    ]
    session = (
        SESSION,
        {TIMESTAMP: at(62), (2, "I"): at(60), (7, "I"): 120_500, (5, "enum"): 10, (6, "enum"): 20},
    )
    day = read(tmp_path, *records, session).only("P1")
    assert day.events == [("activity", "strength training", 60, pytest.approx(62 + 0.5 / 60, abs=1e-4))]
    for channel, value in (("heart_rate", 150), ("cadence", 85), ("power", 210), ("device_temperature", 27)):
        assert day.values(channel)[60:62] == pytest.approx([value] * 2)
    assert day.values("distance")[60] == pytest.approx(180, rel=0.01)  # 30 m every 10 s


def test_a_file_that_is_there_twice_tells_its_activity_and_sleep_once(tmp_path):
    activity = (SESSION, {TIMESTAMP: at(62), (2, "I"): at(60), (7, "I"): 120_000, (5, "enum"): 1})
    content = fit_file(heart(60, 70), activity, (SLEEP, {TIMESTAMP: at(90), (0, "enum"): 2}))
    found = read_source("fit", tmp_path, {"P1/a.fit": content, "P1/copy.fit": content})
    assert [event[0] for event in found.only("P1").events] == ["activity", "sleep", "sleep"]
    assert found.report.quarantined["event that another row tells too"].samples == ["P1/copy.fit"]
    assert found.report.duplicates == {"heart_rate": 1, "stages of sleep": 1}


def test_running_totals_of_files_that_name_no_device_are_of_one_which_is_said(tmp_path):
    files = [fit_file(total(minute, WALKING, 100 * minute), serial=0) for minute in (10, 20)]
    found = read_source("fit", tmp_path, {"P1/1.fit": files[0], "P1/2.fit": files[1]})
    assert found.only("P1").values("steps")[10:20] == pytest.approx([100] * 10)
    assert "2 files: running totals are taken to be of one device, since the file names none (P1/1.fit, " in found.said


def test_stages_of_sleep_are_events_and_shares_of_minutes(tmp_path):
    levels = [(1380, 2), (1385, 2), (1390, 3), (1392, 0), (1394, 1), (1395, 4)]  # light, deep, unmeasurable, awake, rem
    day = read(tmp_path, *((SLEEP, {TIMESTAMP: at(minute, 30), (0, "enum"): level}) for minute, level in levels)).only(
        "P1"
    )
    assert day.events == [
        ("sleep", "light", 1380.5, 1390.5),
        ("sleep", "asleep", 1380.5, 1396.5),
        ("sleep", "deep", 1390.5, 1392.5),
        ("sleep", "awake", 1394.5, 1395.5),
        ("sleep", "rem", 1395.5, 1396.5),
    ]
    assert day.values("sleep_light")[1390] == 0.5 == day.values("sleep_deep")[1390]
    assert day.values("sleep_awake")[1395] == 0.5 and day.values("sleep_rem")[1396] == 1
    assert not day.observed("sleep_light")[1393]


def test_days_are_cut_by_the_local_time_that_the_watch_tells(tmp_path):
    told = (MONITORING_INFO, {TIMESTAMP: at(0), (0, "I"): at(0) - 5 * 3600})
    day = read(tmp_path, told, heart(600, 60)).only("P1")
    assert day.window.utc_offset_minutes == -300 and day.values("heart_rate")[300] == 60


def test_a_compressed_time_of_an_older_device(tmp_path):
    body = definition(0, RECORD, [TIMESTAMP, (3, "B")]) + data(0, {TIMESTAMP: at(0), (3, "B"): 100})
    body += definition(1, RECORD, [(3, "B")]) + data(0x80 | 1 << 5 | (at(0, 20) & 31), {(3, "B"): 110})
    day = read_source("fit", tmp_path, {"P1/a.fit": with_frame(body)}).only("P1")
    assert day.values("heart_rate")[0] == 105


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: content[:-30], "damaged after message"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 255]), "damaged after message 21, .*CRC"),
        (lambda content: content[:-40] + b"\xff" * 40, "damaged after message"),
    ],
)
def test_what_comes_before_the_damage_is_kept(tmp_path, damage, reason):
    content = damage(fit_file(*(heart(minute, 60 + minute) for minute in range(20))))
    found = read_source("fit", tmp_path, {"P1/a.fit": content, "P2/b.fit": fit_file(heart(0, 60)), "P3/c.fit": b"junk"})
    rates = found.only("P1").values("heart_rate")
    assert np.isfinite(rates[:15]).all() and rates[3] == 63
    assert found.only("P2").observed("heart_rate").sum() == 1 and found.people["P3"] == []
    (cut,) = [sentence for sentence in found.report.files_set_aside if sentence.startswith("P1/a.fit: ")]
    assert re.search(reason, cut)


def test_fit_is_recognised_and_the_missing_library_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.FIT").write_bytes(fit_file())
    assert detect_format(tmp_path)[0] == "fit"
    monkeypatch.setitem(sys.modules, "fitdecode", None)
    with pytest.raises(UserError, match=r"needs the library fitdecode .*pip install -e '\.\[fit\]'"):
        read(tmp_path, heart(0, 60))
