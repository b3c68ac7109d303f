"""Damaged exports: no traceback, the good person is whole, and the rows add up."""

import json

import numpy as np
import pytest

from tests.ingest.fit_files import HEART_RATES, MONITORING, SESSION, SLEEP, STRESS, TIMESTAMP, fit_file
from tests.ingest.reading import read_source
from tests.ingest.test_actigraph import COLUMNS, preamble
from tests.ingest.test_fit import ACTIVITY_TYPE, CYCLES, HEART_RATE, WALKING, at
from tests.ingest.test_glucose import CLARITY, ENGLISH
from tests.ingest.test_oura import ACTIVITY, WORKOUT, table
from tests.ingest.test_oura import SLEEP as NIGHT
from tests.ingest.test_withings import HR

# Tables cost more time a file, and have a hostile suite of their own.
FILES = {"fit": 500, "oura": 500, "withings": 200, "actigraph": 200, "glucose": 100}
_STRANGE = [b"\0", b'"', b"[[[[", b"-1e999", b"\xff\xfe", b"\n,;\n", b"9" * 400]
EXPORTS = {
    "fit": {
        "a.fit": fit_file(
            *((MONITORING, {TIMESTAMP: at(minute), HEART_RATE: 60}) for minute in range(5)),
            *((MONITORING, {TIMESTAMP: at(10 * n), CYCLES: 100 * n, ACTIVITY_TYPE: WALKING}) for n in range(3)),
            (STRESS, {(0, "h"): 25, (1, "I"): at(0)}),
            (SLEEP, {TIMESTAMP: at(0), (0, "enum"): 2}),
            (HEART_RATES, {TIMESTAMP: at(600), (0, "B"): 52}),
            (SESSION, {TIMESTAMP: at(62), (2, "I"): at(60), (7, "I"): 120_500, (5, "enum"): 1}),
        )
    },
    "glucose": {
        "libre.csv": ENGLISH + "Libre,A1,13-05-2024 08:00,0,90,,,\nLibre,A1,13-05-2024 08:10,1,,LO,,\n",
        "clarity.csv": CLARITY + "3,2024-05-13T00:00:07,EGV,,,Low,,\n4,2024-05-13T18:00:00,Exercise,,,,,00:45:00\n",
    },
    "oura": {
        "all.json": json.dumps({"sleep": {"data": [NIGHT]}, "activity": [ACTIVITY], "workout": [WORKOUT]}),
        "sleepmodel.csv": table(NIGHT),
        "heartrate.csv": "timestamp;bpm;source\n2024-05-14T10:00:00.000Z;70;awake\n",
    },
    "withings": {
        "raw_tracker_hr.csv": HR,
        "raw_tracker_sleep-state.csv": HR.replace("70", "1"),
        "weight.csv": 'Date,"Weight (kg)"\n"2024-05-14 23:30:00",80\n',
    },
    "actigraph": {"a.csv": preamble() + COLUMNS + "300,400,0,12,61,50,0,500\n" * 3},
}


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """The content with bytes changed, cut, repeated or put in."""
    changed = bytearray(content)
    for _ in range(random.integers(1, 6)):
        place = int(random.integers(0, max(len(changed), 1)))
        match random.integers(0, 5):
            case 0:
                changed[place : place + 1] = bytes([random.integers(0, 256)])
            case 1:
                del changed[place:]
            case 2:
                changed[place:place] = changed[place : place + int(random.integers(1, 200))]
            case 3:
                del changed[place : place + int(random.integers(1, 40))]
            case _:
                changed[place:place] = random.choice(_STRANGE)
    return bytes(changed)


@pytest.mark.parametrize("name", EXPORTS)
def test_damage_costs_no_more_than_it_touches(tmp_path, name):
    random = np.random.default_rng(18)
    export = {
        path: content if isinstance(content, bytes) else content.encode() for path, content in EXPORTS[name].items()
    }
    files = {f"good/{path}": content for path, content in export.items()}
    whole = read_source(name, tmp_path / "whole", dict(files), date_order="day").people["good"]
    paths = [*export]
    for number in range(FILES[name]):
        path = paths[number % len(paths)]
        files[f"bad{number % 20}/{number}/{path}"] = damaged(export[path], random)
    found = read_source(name, tmp_path / "all", files, date_order="day")
    for day, expected in zip(found.people["good"], whole, strict=True):
        assert day.events == expected.events and day.window.labels == expected.window.labels
        for channel in expected.window.channels:
            np.testing.assert_array_equal(day.values(channel), expected.values(channel))
    found.report.check()
