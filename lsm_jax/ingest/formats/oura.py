"""Reads Oura: the account's CSV files, whose cells hold JSON, and the JSON of the API (version 2).

Both are documents with the same fields, and a document is known by its fields, not by the name of its file.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lsm_jax.ingest.cells import LINE, add_reason, is_empty, numbers, quarantine_rows
from lsm_jax.ingest.files.faults import UnusableEntry, entry
from lsm_jax.ingest.files.json import read_json
from lsm_jax.ingest.files.opening import first_bytes
from lsm_jax.ingest.files.source import MIB, SourceFile, UnreadableFile
from lsm_jax.ingest.formats.personal import RecordingReader
from lsm_jax.ingest.minutes.recording import Recording
from lsm_jax.ingest.minutes.sleep import SLEEP_CHANNELS, Spell, Stage
from lsm_jax.ingest.reader import Evidence, RecordEvent
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.header import read_header
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.clock import FLOATING
from lsm_jax.ingest.times.text import FIRST_SECOND, IMPOSSIBLE_DATE, ISO_FORMATS, LAST_SECOND, UNREADABLE, read_times

MAX_JSON_BYTES = 512 * MIB
_PHASES: dict[str, Stage] = {"1": "deep", "2": "light", "3": "rem", "4": "awake"}
_NO_SLEEP = ("rest", "deleted")  # types: falsely detected and rejected in the app's question, deleted by the wearer
_SLEEP_ITEMS = {"heart_rate": "heart_rate", "hrv": "rmssd"}
_INTENSITIES = {"1": 0.0, "2": 0.0, "3": 1.0, "4": 2.0, "5": 3.0}  # rest, inactive, low, medium, high; 0 is not worn
_CLASS_SECONDS = 300
_STREAM_MINUTES = 5.0  # the longest time between values of a stream
_NOT_WORN_MET = 0.1

Document = Mapping[str, Any]


class Kind(NamedTuple):
    """A kind of document: the fields that it is known by, its channels, and what adds it to a recording.

    `stream` is the field of a kind that comes in hundred thousands, with one value at one time; it is of the first
    channel.
    """

    fields: frozenset[str]
    channels: tuple[str, ...]
    add: Callable[[Document, Recording, IngestReport], None]
    stream: str = ""


def _heart_rate(document: Document, recording: Recording, _: IngestReport) -> None:
    second = _second(document["timestamp"])
    recording.add("heart_rate", [second], [_number(document["bpm"])], sensor="stream", period_minutes=_STREAM_MINUTES)


def _temperature(document: Document, recording: Recording, _: IngestReport) -> None:
    second, value = _second(document["timestamp"]), _number(document["skin_temp"])
    recording.add("skin_temperature", [second], [value], sensor="stream", period_minutes=_STREAM_MINUTES)


def _sleep(document: Document, recording: Recording, report: IngestReport) -> None:
    start = _local(document["bedtime_start"], recording)
    series = {channel: document[field] for field, channel in _SLEEP_ITEMS.items() if document.get(field)}
    is_sleep = document.get("type") not in _NO_SLEEP
    if not is_sleep and not series:
        raise UnusableEntry("sleep that the wearer rejected or deleted")
    items = {channel: (*_items(each), _interval(each)) for channel, each in series.items()}
    for channel, (second, value, interval) in items.items():
        recording.add(channel, second, value, sensor="sleep", period_minutes=interval / 60)
    if is_sleep:
        recording.add_spells(_stages(document, start))
    else:
        report.note("sleep that the wearer rejected (rest) or deleted is not read as sleep; its heart rates are read.")


def _stages(document: Document, start: float) -> Iterator[Spell]:
    phases, seconds = document.get("sleep_phase_30_sec"), 30
    if not phases:
        phases, seconds = document.get("sleep_phase_5_min"), 300
    for number, phase in enumerate(str(phases or "")):
        if phase in _PHASES:
            yield Spell(start + number * seconds, start + (number + 1) * seconds, _PHASES[phase])


def _daily_activity(document: Document, recording: Recording, report: IngestReport) -> None:
    series = document["met"]
    if not series and not document["class_5_min"]:
        return
    start = _local(series["timestamp"] if series else document["timestamp"], recording)
    if series:
        second, value = _items(series)
        worn = [met if met > _NOT_WORN_MET + 1e-6 else math.nan for met in value]
        report.invalid["met"] += sum(met <= _NOT_WORN_MET + 1e-6 for met in value)
        recording.add("met", second, worn, period_minutes=_interval(series) / 60)
    classes = str(document["class_5_min"] or "")
    report.not_worn_minutes += classes.count("0") * _CLASS_SECONDS // 60
    value = [_INTENSITIES.get(each, math.nan) for each in classes]
    times = [start + _CLASS_SECONDS * number for number in range(len(classes))]
    recording.add("activity_intensity", times, value, period_minutes=_CLASS_SECONDS / 60)


def _workout(document: Document, recording: Recording, _: IngestReport) -> None:
    _add_event("activity", str(document["activity"]), document, recording)


def _session(document: Document, recording: Recording, _: IngestReport) -> None:
    _add_event("session", str(document["type"]), document, recording)


def _add_event(kind: str, name: str, document: Document, recording: Recording) -> None:
    start, end = (_local(document[field], recording) for field in ("start_datetime", "end_datetime"))
    if end < start:
        raise UnusableEntry("ends before it starts")
    recording.add_event(RecordEvent(kind, name.replace("_", " ").lower()[:64], start / 60, end / 60))


KINDS = (
    Kind(frozenset({"timestamp", "bpm", "source"}), ("heart_rate",), _heart_rate, "bpm"),
    Kind(frozenset({"timestamp", "skin_temp"}), ("skin_temperature",), _temperature, "skin_temp"),
    Kind(frozenset({"bedtime_start", "sleep_phase_5_min"}), ("heart_rate", "rmssd", *SLEEP_CHANNELS), _sleep),
    Kind(frozenset({"class_5_min", "met"}), ("met", "activity_intensity"), _daily_activity),
    Kind(frozenset({"activity", "start_datetime", "end_datetime"}), (), _workout),
    Kind(frozenset({"type", "mood", "start_datetime", "end_datetime"}), (), _session),
)
ALL_CHANNELS = tuple(dict.fromkeys(channel for kind in KINDS for channel in kind.channels))


def _second(text: str) -> float:
    """Seconds since the epoch of a time with an offset; ValueError for other text."""
    time = dt.datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise UnusableEntry(UNREADABLE)
    second = time.timestamp()
    if not FIRST_SECOND <= second < LAST_SECOND:
        raise UnusableEntry(IMPOSSIBLE_DATE)
    return second


def _local(text: str, recording: Recording) -> float:
    """As `_second`, of a time that is written with the offset of the place; a Z names no place."""
    second = _second(text)
    offset = dt.datetime.fromisoformat(text).utcoffset() or dt.timedelta()
    if not text.strip().endswith("Z"):
        recording.offsets[int(second // 60)] = round(offset.total_seconds() / 60)
    return second


def _number(value: Any) -> float:
    """A number; NaN where there is none. ValueError for text that is none."""
    return math.nan if value is None or value == "" else float(value)


def _interval(series: Document) -> float:
    seconds = float(series["interval"])
    if not 0 < seconds <= 3600:
        raise UnusableEntry("interval of a series is not from 0 to 3600 seconds")
    return seconds


def _items(series: Document) -> tuple[list[float], list[float]]:
    """(seconds, values) of evenly spaced items; NaN where one is null."""
    value = [_number(item) for item in series["items"]]
    start, interval = _second(series["timestamp"]), _interval(series)
    return [start + interval * number for number in range(len(value))], value


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """CSV files with the columns of an Oura export, and JSON with its fields."""
    found = tuple(file for file in files if _kinds_of(file))
    return Evidence("Oura account export or API documents", found) if found else None


def _kinds_of(file: SourceFile) -> tuple[Kind, ...]:
    """The kinds of documents that a file seems to hold."""
    name = file.name.lower()
    if name.endswith(".csv"):
        try:
            columns = {*read_header(file).names}
        except UnreadableFile:
            return ()
        return tuple(kind for kind in KINDS if kind.fields <= columns)
    if name.endswith(".json"):
        start = first_bytes(file, 1 << 16)
        return tuple(kind for kind in KINDS if all(f'"{field}"'.encode() in start for field in kind.fields))
    return ()


class OuraReader(RecordingReader):
    """Reader of Oura exports (see `reader.Reader`)."""

    content = "Oura file"
    expected = (
        "heartrate.csv, sleepmodel.csv, dailyactivity.csv or the JSON of the API's sleep, heartrate, daily_activity"
    )

    def reads(self, file: SourceFile) -> str:
        return "" if _kinds_of(file) else "no heart rate, sleep, activity or workouts of Oura"

    def channels_of(self, file: SourceFile) -> Sequence[str]:
        if file.name.lower().endswith(".json"):
            return ALL_CHANNELS  # a file may hold several kinds one after the other
        return [channel for kind in _kinds_of(file) for channel in kind.channels]

    def add_file(self, file: SourceFile, recording: Recording, report: IngestReport) -> None:
        is_table = not file.name.lower().endswith(".json")
        streams = [kind for kind in _kinds_of(file) if kind.stream] if is_table else []
        if streams:
            self._add_stream(file, streams[0], recording, report)
            return
        documents = _json_documents(file, report) if not is_table else _rows(file, report)
        for line, document in documents:
            kind = next((kind for kind in KINDS if kind.fields <= document.keys()), None)
            if kind is None:
                report.rows_ignored += 1
                continue
            with entry(file.label, line, report):
                kind.add(document, recording, report)

    def _add_stream(self, file: SourceFile, kind: Kind, recording: Recording, report: IngestReport) -> None:
        """The rows of a table of one kind, all at once."""
        for block in read_rows(file, ("timestamp", kind.stream), report):
            second, reasons, clock = read_times(block["timestamp"], ISO_FORMATS, self._options.time_zone or "")
            reasons = add_reason(reasons, (clock == FLOATING).fill_null(False), UNREADABLE)
            value = numbers(block[kind.stream])
            reasons = add_reason(reasons, value.is_null() & ~is_empty(block[kind.stream]), "value is not a number")
            good = quarantine_rows(block[LINE], reasons, file.label, report)
            values = value.fill_null(math.nan).filter(good).to_list()
            recording.add(
                kind.channels[0],
                second.filter(good).to_list(),
                values,
                sensor="stream",
                period_minutes=_STREAM_MINUTES,
            )


def _rows(file: SourceFile, report: IngestReport) -> Iterator[tuple[int, Document]]:
    """The rows of a CSV file, with JSON cells as what they say."""
    for block in read_rows(file, read_header(file).names, report):
        for row in block.iter_rows(named=True):
            line = row.pop(LINE)
            try:
                yield line, {name: _cell(text) for name, text in row.items()}
            except (ValueError, RecursionError):
                report.quarantine("a cell is no JSON", file.label, [line])


def _cell(text: str | None) -> Any:
    """An object as itself, an empty cell or null as None, anything else as text."""
    if text and text.startswith("{"):
        return json.loads(text)
    return None if text in ("", "null") else text


def _json_documents(file: SourceFile, report: IngestReport) -> Iterator[tuple[int, Document]]:
    """The objects of a JSON file that are not part of a kind's document, numbered.

    Raises:
      UnreadableFile: damaged; the documents before the damage were yielded.
    """
    content, damage = read_json(file, MAX_JSON_BYTES)
    count = 0
    for count, document in enumerate(_objects(content), 1):
        report.rows_read += 1
        yield count, document
    if damage:
        raise UnreadableFile(f"damaged after document {count}, what comes before it is kept ({damage})")


def _objects(content: Any) -> Iterator[Document]:
    """Documents: the objects of lists, and an object that is of a kind by itself."""
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(reversed(item))
        elif isinstance(item, dict):
            lists = [value for value in item.values() if isinstance(value, list | dict)]
            if not lists or any(kind.fields <= item.keys() for kind in KINDS):
                yield item
            else:
                waiting.extend(reversed(lists))
