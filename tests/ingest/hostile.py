"""Good small files of every format, and seeded mutations of them. A new format is one line of `CASES`."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import functools
import gzip
import html
import io
import json
import os
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.ingest.apple_export import HEAD, TAIL, record
from tests.ingest.fit_files import (
    FIT_EPOCH,
    HEART_RATES,
    MONITORING,
    SESSION,
    STRESS,
    TIMESTAMP,
    WALKING,
    Message,
    fit_file,
)
from tests.ingest.fit_files import SLEEP as SLEEP_LEVEL
from tests.ingest.test_actigraph import COLUMNS, preamble
from tests.ingest.test_empatica import session
from tests.ingest.test_fit import ACTIVITY_TYPE, CYCLES, HEART_RATE
from tests.ingest.test_glucose import CLARITY
from tests.ingest.test_oura import ACTIVITY, SLEEP, WORKOUT
from tests.ingest.test_oura import table as oura_table
from tests.ingest.test_rows import workbook

Table = list[list[str]]  # the first row is the header
Content = Table | bytes | dict[str, Any]
START = dt.datetime(2024, 5, 13, 8)
MINUTES = 20


@dataclasses.dataclass(frozen=True)
class Case:
    """A format, and the good files of a person whose id is a number."""

    format: str
    files: Callable[[int], dict[str, Content]]
    mapping: str = ""
    mutated: int = 500  # people with a mutated file


# Good files.


def _minutes(person: int) -> list[tuple[dt.datetime, int]]:
    return [(START + dt.timedelta(minutes=minute), (person * 7 + minute * 13) % 40) for minute in range(MINUTES)]


def _fitbit(person: int) -> dict[str, Content]:
    time, value, shift = ("ActivityMinute", "Steps", 0) if person % 2 else ("Time", "Value", 60)
    rows = [[str(person), f"{at:%m/%d/%Y %I:%M:%S %p}", str(number + shift)] for at, number in _minutes(person)]
    return {f"{person}.csv": [["Id", time, value], *rows]}


@functools.cache
def _session() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        session(Path(folder), minutes=2)
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def _empatica(person: int) -> dict[str, Content]:
    # Features of motion take long, so that few people have them.
    names = ("HR.csv", ("ACC.csv", *("EDA.csv", "TEMP.csv", "IBI.csv", "tags.csv") * 3)[person % 13])
    return {f"P{person}/{name}": _session()[name] for name in names}


def _table(suffix: str) -> Callable[[int], dict[str, Content]]:
    def files(person: int) -> dict[str, Content]:
        rows = [[f"{at:%Y-%m-%d %H:%M:%S}", str(60 + number), str(number)] for at, number in _minutes(person)]
        return {f"P{person}/day{suffix}": [["time", "pulse", "steps"], *rows]}

    return files


_MAPPING = """
[[tables]]
files = "*"
person = { path = "{person}/*" }
time = { column = "time" }
[tables.channels]
heart_rate = { column = "pulse", keep = ["pulse > 10"] }
steps = { column = "steps" }
"""


def _shared_table(person: int) -> dict[str, Content]:
    rows = [[str(person), f"{at:%Y-%m-%dT%H:%M:%SZ}", str(60 + number)] for at, number in _minutes(person)]
    files: dict[str, Content] = {f"{person}.csv": [["who", "time", "pulse"], *rows]}
    if person % 4 == 1:
        files[f"{person}.events.csv"] = [["who", "time", "what"], [str(person), f"{START:%Y-%m-%d %H:%M}", "lunch"]]
    if person % 4 == 3:
        files[f"{person}.people.csv"] = [["who", "age"], [str(person), "30"]]
    return files


_SHARED_MAPPING = """
[[tables]]
files = "*[0-9].*"
person = { column = "who" }
time = { column = "time" }
channels = { heart_rate = { column = "pulse" } }
[[events]]
files = "*.events.*"
person = { column = "who" }
time = { column = "time" }
kind = "meal"
name_column = "what"
minutes = 10
[[labels]]
files = "*.people.*"
person = { column = "who" }
columns = { age = "age" }
"""


def _oura(person: int) -> dict[str, Content]:
    """One of several kinds of files, so that each has its share of the damage."""
    everything = {"sleep": [SLEEP], "activity": {"data": [ACTIVITY]}, "workout": [WORKOUT]}
    beats = [f"{at:%Y-%m-%dT%H:%M:%S}.000Z;{60 + number};awake\n" for at, number in _minutes(person)]
    files: list[tuple[str, Content]] = [
        ("all.json", everything),
        ("sleepmodel.csv", oura_table(SLEEP).encode()),
        ("heartrate.csv", ("timestamp;bpm;source\n" + "".join(beats)).encode()),
    ]
    name, content = files[person % 3]
    return {f"P{person}/{name}": content}


def _fit(person: int) -> dict[str, Content]:
    start = int((START - dt.datetime(1970, 1, 1)).total_seconds()) - FIT_EPOCH
    messages: list[Message] = [
        (MONITORING, {TIMESTAMP: start + 60 * minute, HEART_RATE: 60 + (person + minute) % 40})
        for minute in range(MINUTES)
    ]
    messages += [
        (MONITORING, {TIMESTAMP: start + 600 * turn, CYCLES: 100 * turn, ACTIVITY_TYPE: WALKING}) for turn in range(3)
    ]
    messages += [
        (STRESS, {(0, "h"): 25, (1, "I"): start}),
        (SLEEP_LEVEL, {TIMESTAMP: start, (0, "enum"): 2}),
        (HEART_RATES, {TIMESTAMP: start + 36_000, (0, "B"): 52}),
        (SESSION, {TIMESTAMP: start + 120, (2, "I"): start, (7, "I"): 120_500, (5, "enum"): 1}),
    ]
    return {f"P{person}/a.fit": fit_file(*messages)}


def _glucose(person: int) -> dict[str, Content]:
    if person % 2:
        rows = [
            f"{place},{START + dt.timedelta(minutes=5 * place):%Y-%m-%dT%H:%M:%S},EGV,,,{value},,\n"
            for place, value in enumerate((80 + person % 40, "Low", 120))
        ]
        exercise = f"9,{START:%Y-%m-%dT%H:%M:%S},Exercise,,,,,00:45:00\n"
        return {f"P{person}/clarity.csv": (CLARITY + "".join(rows) + exercise).encode()}
    stamps = [f"{START + dt.timedelta(minutes=15 * place):%d-%m-%Y %H:%M}" for place in range(7)]
    history = [["Libre", "A1", at, "0", str(80 + (person + place) % 40), ""] for place, at in enumerate(stamps[:6])]
    header = ["Device", "Serial Number", "Device Timestamp", "Record Type"]
    header += ["Historic Glucose mg/dL", "Scan Glucose mg/dL"]
    return {f"P{person}/glucose.csv": [header, *history, ["Libre", "A1", stamps[6], "1", "", "LO"]]}


def _withings(person: int) -> dict[str, Content]:
    rows = [
        f'{at:%Y-%m-%dT%H:%M:%S}+02:00,"[30, 30]","[{60 + number},{61 + number}]"\n' for at, number in _minutes(person)
    ]
    pulse = {"raw_tracker_hr.csv": "start,duration,value\n" + "".join(rows)}
    others = [
        {"raw_tracker_sleep-state.csv": f"start,duration,value\n{START:%Y-%m-%dT%H:%M:%S}+02:00,[600],[1]\n"},
        {"weight.csv": f'Date,"Weight (kg)"\n"{START:%Y-%m-%d %H:%M:%S}",80\n'},
    ]
    files = pulse | others[person % 2]
    return {f"P{person}/{name}": text.encode() for name, text in files.items()}


def _actigraph(person: int) -> dict[str, Content]:
    rows = [f"{number},1,2,{number},60,5,0,9\n" for _, number in _minutes(person)]
    return {f"P{person}.csv": (preamble() + COLUMNS + "".join(rows)).encode()}


def _takeout(person: int) -> dict[str, Content]:
    """One of several kinds of files, so that each has its share of the damage."""
    folder = f"P{person}/Takeout/Fitbit/"
    night = [{"dateTime": "05/13/24 01:00:00", "level": "light", "seconds": 600 + person % 60}]
    beats = [
        {"dateTime": f"{at:%m/%d/%y %H:%M:%S}", "value": {"bpm": 60 + number, "confidence": 2}}
        for at, number in _minutes(person)
    ]
    oxygen = ["timestamp,value", *(f"{at:%Y-%m-%dT%H:%M:%SZ},{90 + number / 8}" for at, number in _minutes(person))]
    files: list[tuple[str, str]] = [
        ("Global Export Data/heart_rate-2024-05-13.json", json.dumps(beats)),
        ("Global Export Data/sleep-2024-05-13.json", json.dumps([{"logId": 1, "levels": {"data": night}}])),
        ("SpO2/Minute SpO2 - 2024-05-13.csv", "\n".join(oxygen)),
    ]
    chosen = _takeout_tables(person) if person % 4 == 3 else files[person % 4 :][:1]
    return {folder + name: text.encode() for name, text in chosen}


def _takeout_tables(person: int) -> Iterator[tuple[str, str]]:
    """Google's tables of one night and its day."""
    offset, day = "+05:30", "2024-05-13T0"
    stages = [f"{person},LIGHT,{offset},{day}1:{n:02}:00Z,{day}1:{n + 1:02}:00Z" for n in range(1 + person % 50)]
    yield (
        "UserSleepStages_2024-05-13.csv",
        "\n".join(("sleep_id,sleep_stage_type,start_utc_offset,sleep_stage_start,sleep_stage_end", *stages)),
    )
    yield (
        "UserSleeps_2024-05-13.csv",
        (
            "sleep_id,minutes_to_fall_asleep,minutes_after_wake_up,start_utc_offset,sleep_start,sleep_end\n"
            f"{person},{person % 9},1,{offset},{day}4:00:00Z,{day}5:00:00Z\n"
        ),
    )
    yield (
        "UserExercises_2024-05-13.csv",
        (f"exercise_start,exercise_end,activity_name\n{day}6:00:00Z,{day}6:{10 + person % 50}:00Z,Walk\n"),
    )
    yield "daily_resting_heart_rate.csv", f"timestamp,beats per minute\n2024-05-13T00:00:00Z,{50 + person % 50}\n"


def _apple(person: int) -> dict[str, Content]:
    pulse = [
        record("HeartRate", str(60 + number), f"{at:%H:%M:%S}", unit="count/min") for at, number in _minutes(person)
    ]
    return {f"P{person}/export.xml": (HEAD + "".join(pulse) + TAIL).encode()}


CASES = {
    "apple": Case("apple", _apple),
    "takeout": Case("takeout", _takeout),
    "actigraph": Case("actigraph", _actigraph),
    "withings": Case("withings", _withings),
    "fitbit": Case("fitbit", _fitbit),
    "empatica": Case("empatica", _empatica),
    "csv": Case("table", _table(".csv"), _MAPPING, 130),
    "parquet": Case("table", _table(".parquet"), _MAPPING, 130),
    "excel": Case("table", _table(".xlsx"), _MAPPING, 130),
    "shared tables": Case("table", _shared_table, _SHARED_MAPPING, 110),
    "fit": Case("fit", _fit),
    "oura": Case("oura", _oura),
    "glucose": Case("glucose", _glucose),
}


# Writing.


def write_people(case: Case, source: Path, people: range, rng: random.Random | None = None) -> None:
    """Writes the files of people; with `rng` one file of each is mutated."""
    for person in people:
        files = case.files(person)
        target = rng.choice(sorted(files)) if rng else ""
        for path, content in files.items():
            place = source / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if rng and path == target:
                _write_mutated(place, content, rng)
            else:
                place.write_bytes(encoded(content, place.suffix))


def _write_mutated(place: Path, content: Content, rng: random.Random) -> None:
    way = rng.random()
    if way < 0.5 and not isinstance(content, bytes):
        mutate: Any = rng.choice(_OF_TABLES if isinstance(content, list) else _OF_JSON)
        written = encoded(mutate(content, rng), place.suffix, rng if rng.random() < 0.5 else None)
    elif way < 0.9:
        written = rng.choice(_OF_BYTES)(encoded(content, place.suffix), rng)
    else:
        rng.choice(_OF_PLACES)(place, encoded(content, place.suffix), rng)
        return
    place.write_bytes(written)


def encoded(content: Content, suffix: str, rng: random.Random | None = None) -> bytes:
    """The bytes of a file. With `rng` the columns of a Parquet file get types of their own."""
    if isinstance(content, bytes):
        return content
    if suffix == ".json":
        return json.dumps(content).encode("utf-8", "surrogatepass")
    if suffix == ".parquet":
        return _parquet(content, rng)
    if suffix == ".xlsx":
        return workbook([[html.escape(cell).replace("\0", "") for cell in row] for row in content])
    return "".join(",".join(row) + "\n" for row in content).encode("utf-8", "surrogatepass")


def _parquet(table: Table, rng: random.Random | None) -> bytes:
    width = len(table[0]) if table else 0
    rows = [row for row in table[1:] if len(row) == width]
    columns = []
    for place in range(width):
        cells = pl.Series([row[place].encode("utf-8", "replace").decode() for row in rows], dtype=pl.String)
        numbers = cells.cast(pl.Float64, strict=False)
        array = (cells if numbers.null_count() else numbers).to_arrow()
        columns.append(_other_type(array, rng) if rng and rng.random() < 0.5 else array)
    content = io.BytesIO()
    names = [name.encode("utf-8", "replace").decode() for name in table[0]] if table else []
    pq.write_table(pa.table(columns, names), content)
    return content.getvalue()


def _other_type(array: pa.Array, rng: random.Random) -> pa.Array:
    count = len(array)
    made = [
        lambda: pa.array([[1.5]] * count),
        lambda: pa.array([{"a": [1]}] * count),
        lambda: pa.nulls(count),
        lambda: pa.array([2**64 - 1] * count, pa.uint64()),
        lambda: pa.array([dt.timedelta(days=9)] * count),
        lambda: pa.array([b"\xff\0"] * count),
        lambda: pa.array([True] * count),
        lambda: pa.array([2**62] * count, pa.timestamp("ns", "Asia/Kathmandu")),
        lambda: pa.array([-(2**62)] * count, pa.timestamp("us")),
        lambda: pa.array([2**31 - 1] * count, pa.date32()),
        lambda: pa.array([1] * count, pa.timestamp("s", "Mars/Olympus")),
        lambda: array.cast(pa.string()).dictionary_encode(),
        lambda: array.cast(pa.float64()).cast(pa.decimal256(60, 3)),
        lambda: array.cast(pa.float64()).cast(pa.float32()),
    ]
    try:
        return rng.choice(made)()
    except pa.ArrowException:
        return array


# Mutations. Each takes what it changes and the generator of random numbers.

# No thousands marks and decimal commas: files of these are refused with the keys that read them.
_CELLS = (
    *("", " ", "nan", "-inf", "1e400", "-1e400", "1e-400", "9" * 400, "-0", "0x1F", "1;5", "12:60"),
    *("NULL", "=1+1", "'", '"', '""', '"a', "[1, 2]", '{"a": [1]}', "\0", "\ufffd", "\U0001f4a5", "\u0663", "\r"),
    *("9999-99-99", "0000-00-00 00:00:00", "2024-02-30 00:00:00", "1970-01-01", "2024-05-13T08:00:00+99:99"),
    *("13/13/2024", "2262-04-12 00:00:00", "+292277026596-12-04T15:30:08Z", "1e18", "-1e18", "1" * 22, "true"),
)


def _inject(table: Table, rng: random.Random) -> Table:
    changed = [list(row) for row in table]
    for _ in range(rng.randint(1, 20)):
        row = rng.choice(changed)
        if row:
            row[rng.randrange(len(row))] = rng.choice(_CELLS)
    return changed


def _fill_column(table: Table, rng: random.Random) -> Table:
    place, cell = rng.randrange(len(table[0])), rng.choice(_CELLS)
    return [table[0], *([*row[:place], cell, *row[place + 1 :]] for row in table[1:])]


def _shuffle_columns(table: Table, rng: random.Random) -> Table:
    order = rng.sample(range(len(table[0])), len(table[0]))
    return [[row[place] for place in order] for row in table]


def _drop_column(table: Table, rng: random.Random) -> Table:
    gone = rng.randrange(len(table[0]))
    return [[*row[:gone], *row[gone + 1 :]] for row in table]


def _repeat_column(table: Table, rng: random.Random) -> Table:
    place = rng.randrange(len(table[0]))
    return [[*row, row[place]] for row in table]


def _rename_column(table: Table, rng: random.Random) -> Table:
    place, header = rng.randrange(len(table[0])), list(table[0])
    header[place] = rng.choice([header[place].upper(), header[place][:-1], f" {header[place]} ", "", "\0", "a.b"])
    return [header, *table[1:]]


def _shuffle_rows(table: Table, rng: random.Random) -> Table:
    return [table[0], *rng.sample(table[1:], len(table) - 1)]


def _repeat_rows(table: Table, rng: random.Random) -> Table:
    return table + table[1:] * rng.randint(1, 3)


def _drop_cells(table: Table, rng: random.Random) -> Table:
    return [row[: rng.randint(0, len(row))] if rng.random() < 0.3 else row for row in table]


def _headless(table: Table, rng: random.Random) -> Table:
    return rng.choice([table[1:], [["made by a watch"], *table], table[:1]])


_OF_TABLES = (
    _inject, _inject, _inject, _fill_column, _shuffle_columns, _drop_column, _repeat_column, _rename_column,
    _shuffle_rows, _repeat_rows, _drop_cells, _headless,
)  # fmt: skip


def _replace_nodes(content: Any, rng: random.Random, share: float = 0.1) -> Any:
    if rng.random() < share:
        odd = [None, [], {}, "", "x", -1, 1e308, 10**400, float("nan"), float("inf"), True, [[[]]], {"a": {"a": 1}}]
        return rng.choice([*odd, "2024-05-13T08:00:00+99:99", "\ud800", content, [content], {"data": content}])
    if isinstance(content, dict):
        return {key: _replace_nodes(value, rng, share) for key, value in content.items() if rng.random() > share / 3}
    return [_replace_nodes(value, rng, share) for value in content] if isinstance(content, list) else content


_OF_JSON = (_replace_nodes,)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randint(0, len(content))]


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 3, 30])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(content: bytes, rng: random.Random) -> bytes:
    begin = rng.randrange(len(content))
    return content[:begin] + rng.randbytes(rng.randint(1, 60)) + content[begin + 30 :]


def _repeat_bytes(content: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:end] + content[begin:]


def _remove_bytes(content: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:begin] + content[end:]


def _other_encoding(content: bytes, rng: random.Random) -> bytes:
    text = content.decode("latin-1")
    return rng.choice(
        [
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            text.encode("utf-16-be"),
            content.replace(b"a", b"\xe4"),
            content.replace(b"\n", b"\r"),
            content.replace(b"\n", b"\r\n"),
            content.replace(b",", rng.choice([b";", b"\t", b",,", b"|"])),
            content.replace(b"\n", b"\0\n"),
        ]
    )


def _replaced(content: bytes, rng: random.Random) -> bytes:
    return rng.choice(
        [
            b"",
            b"\n",
            b"\0" * 1000,
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"x" * (1 << 21),
            b'"' + content,
            content + b"," * 100_000 + b"\n",
            b"PK\x03\x04" + content,
            b"PAR1" + content + b"PAR1",
            b"\x1f\x8b\x08" + content,
            gzip.compress(content),
        ]
    )


_OF_BYTES = (
    _truncate, _truncate, _flip, _flip, _overwrite, _repeat_bytes, _remove_bytes, _other_encoding, _replaced
)  # fmt: skip


def _rename(place: Path, content: bytes, rng: random.Random) -> None:
    suffixes = (".CSV", ".parquet", ".xlsx", ".zip", ".gz", ".csv.gz", ".json", ".fit", "", ".exe")
    place.with_suffix(rng.choice(suffixes)).write_bytes(content)


def _gzip(place: Path, content: bytes, rng: random.Random) -> None:
    packed = gzip.compress(content)
    place.with_name(place.name + ".gz").write_bytes(rng.choice([packed, packed[: rng.randint(0, len(packed))]]))


def _zip(place: Path, content: bytes, rng: random.Random) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(rng.choice(["", "../", "/", "a/b/", "a\\"]) + place.name, content)
        archive.writestr("inner.zip", b"PK\x03\x04")
    mutate = rng.choice([lambda packed, _: packed, _truncate, _flip, _overwrite])
    place.with_suffix(".zip").write_bytes(mutate(packed.getvalue(), rng))


def _no_file(place: Path, content: bytes, rng: random.Random) -> None:
    with contextlib.suppress(FileExistsError):
        rng.choice(
            [
                lambda: os.mkfifo(place),
                lambda: place.symlink_to(place.parent),
                lambda: place.symlink_to("/etc/passwd"),
                lambda: place.symlink_to(place.name),
                place.mkdir,
            ]
        )()


_OF_PLACES = (_rename, _gzip, _gzip, _zip, _zip, _no_file)
