"""What the files of a Google Takeout of Fitbit and of Fitbit's web API hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from lsm_jax.ingest.cells import LINE, add_reason, is_empty, numbers, quarantine_rows
from lsm_jax.ingest.files.faults import UnusableEntry, entry
from lsm_jax.ingest.files.json import read_json
from lsm_jax.ingest.files.source import SourceFile, UnreadableFile
from lsm_jax.ingest.formats.takeout.kinds import API_SAMPLES, CSV_COLUMNS, JSON_SAMPLES, MAX_JSON_BYTES, Kind
from lsm_jax.ingest.minutes.ranked import RankedSeries
from lsm_jax.ingest.minutes.recording import Recording
from lsm_jax.ingest.minutes.series import minute_series
from lsm_jax.ingest.minutes.sleep import STAGES, Spell, Stage
from lsm_jax.ingest.reader import RecordEvent
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.clock import FLOATING
from lsm_jax.ingest.times.text import ISO_FORMATS, read_times

NO_ZONE = "time of the wearer's clock, of which no zone is known: give --time-zone"
_UTC_FORMATS = ("%m/%d/%y %H:%M:%S", "%m/%d/%Y %H:%M:%S")
_LOCAL_FORMATS = (*ISO_FORMATS, "%Y-%m-%dT%H:%M", "%Y-%m-%d")
_DAY = 86400
_NO_SPO2 = 50.0  # written where the measurement failed
_STAGE_NAMES: dict[str, Stage] = {"wake": "awake", **dict(zip(STAGES, STAGES, strict=True))}
_CLASSIC_CODES: dict[str, Stage] = {"1": "asleep", "2": "restless", "3": "awake"}
_ACTIVITIES = {"walk": "walking", "run": "running", "bike": "cycling", "swim": "swimming", "weights": "weightlifting"}


class TakeoutRecording(Recording):
    """What the files of one person hold. Times of a wall clock without a zone are read where all times are."""

    def instants(self, cells: pl.Series) -> tuple[pl.Series, pl.Series]:
        """(seconds since the epoch, reasons where there are none). The spelling tells UTC from the wearer's clock."""
        utc, local = read_times(cells, _UTC_FORMATS, "UTC"), read_times(cells, _LOCAL_FORMATS, self.time_zone)
        is_utc = cells.str.contains("/", literal=True).fill_null(False)
        reasons = local.reason
        if not self.is_wall_clock:
            reasons = add_reason(reasons, (local.clock == FLOATING).fill_null(False), NO_ZONE)
        return utc.second.zip_with(is_utc, local.second), utc.reason.zip_with(is_utc, reasons)

    def instant(self, text: object) -> float:
        """Seconds since the epoch; UnusableEntry with the reason where there are none."""
        second, reason = self.instants(pl.Series([text if isinstance(text, str) else None], dtype=pl.String))
        if reason[0] is not None:
            raise UnusableEntry(reason[0])
        return float(second[0])


def read_file(file: SourceFile, kind: Kind, found: TakeoutRecording, report: IngestReport) -> None:
    """Adds what a file holds to `found`.

    Raises:
      UnreadableFile: it is damaged; what comes before the damage has been added.
    """
    if kind.name == "csv":
        _read_csv(file, kind, found, report)
        return
    content, damage = read_json(file, MAX_JSON_BYTES)
    items = content if isinstance(content, list) else [content]
    if kind.name in JSON_SAMPLES:
        _add_samples(file, kind.name, items, found, report)
    else:
        adders: Mapping[str, Callable[[Any, TakeoutRecording], None]] = {
            "sleep": _add_sleep,
            "api": _add_sleep,
            "exercise": _add_exercise,
            "resting_heart_rate": _add_resting_heart_rate,
        }
        entries = [*_api_items(items, file, found, report)] if kind.name == "api" else items
        _add_each(entries, adders[kind.name], file, found, report)
    if damage:
        raise UnreadableFile(f"damaged after item {len(items)}, what comes before it is kept ({damage})")


def _add_samples(file: SourceFile, name: str, items: list[Any], found: TakeoutRecording, report: IngestReport) -> None:
    """Samples such as {"dateTime": "01/31/23 08:00:05", "value": {"bpm": 60, "confidence": 2}}."""
    channel, scale = JSON_SAMPLES[name]
    rows = [item if isinstance(item, dict) else {} for item in items]
    values = [row.get("value") for row in rows]
    bpm = [value.get("bpm") if isinstance(value, dict) else value for value in values]
    is_valid = [not (isinstance(value, dict) and value.get("confidence") == 0) for value in values]
    table = pl.DataFrame(
        {
            "time": [time if isinstance(time := row.get("dateTime"), str) else None for row in rows],
            "value": [str(value)[:40] if isinstance(value, str | int | float) else None for value in bpm],
            "is_valid": is_valid,
            LINE: np.arange(1, len(rows) + 1),
        },
        schema_overrides={"time": pl.String, "value": pl.String, "is_valid": pl.Boolean},
    )
    report.rows_read += len(table)
    source = ("Takeout's JSON files", 1)
    _add_table(table, "time", {"value": (channel, scale, None)}, source, file, found, report)


def _read_csv(file: SourceFile, kind: Kind, found: TakeoutRecording, report: IngestReport) -> None:
    """Rows with a column of times, first, and columns of signals."""
    time = kind.columns[0]
    columns = {name: CSV_COLUMNS[name] for name in kind.columns if name in CSV_COLUMNS}
    blocks = list(read_rows(file, (time, *columns), report))
    if not blocks:
        return
    table = pl.concat(blocks)
    is_valid = pl.repeat(True, len(table), eager=True)
    if "value" in columns:  # of oxygen
        is_valid = (numbers(table["value"]) != _NO_SPO2).fill_null(True)
    table = table.with_columns(is_valid=is_valid)
    _add_table(table, time, columns, ("Takeout's CSV files", 0), file, found, report)


def _add_table(
    table: pl.DataFrame,
    time: str,
    columns: Mapping[str, tuple[str, float, float | None]],
    source: tuple[str, int],
    file: SourceFile,
    found: TakeoutRecording,
    report: IngestReport,
) -> None:
    """Adds minute values of the good rows; a row whose cells are all bad is set aside."""
    second, reasons = found.instants(table[time])
    parsed = {name: numbers(table[name]) for name in columns}
    parsed = {name: values.set((~values.is_finite()).fill_null(True), None) for name, values in parsed.items()}
    no_value = pl.select(pl.all_horizontal([values.is_null() for values in parsed.values()])).to_series()
    damaged = pl.select(
        pl.any_horizontal([parsed[name].is_null() & ~is_empty(table[name]) for name in columns])
    ).to_series()
    reasons = add_reason(reasons, no_value & damaged, "value is not a number")
    good = quarantine_rows(table[LINE], reasons, file.label, report)
    for name, (channel, scale, period) in columns.items():
        use = good & parsed[name].is_not_null()
        if invalid := int((use & ~table["is_valid"]).sum()):
            report.invalid[channel] += invalid
        use &= table["is_valid"]
        if use.any():
            times, values = second.filter(use).to_numpy(), parsed[name].filter(use).to_numpy() * scale
            series = minute_series(channel, times, values, report, period_minutes=period)
            found.ranked.append(RankedSeries(source[0], source[1], series))


def _add_each(
    items: list[Any],
    add: Callable[[Any, TakeoutRecording], None],
    file: SourceFile,
    found: TakeoutRecording,
    report: IngestReport,
) -> None:
    """Adds items one by one; one that is damaged is set aside."""
    for number, item in enumerate(items, 1):
        report.rows_read += 1
        with entry(file.label, number, report):
            add(item, found)


def _add_sleep(log: Any, found: TakeoutRecording) -> None:
    """A sleep log with stages of some length (`levels`), or with a state of each minute (`minuteData`)."""
    if "levels" in log:
        spells = _spells(log["levels"]["data"], found)
        for wake in _spells(log["levels"].get("shortData") or [], found):
            spells = [part for spell in spells for part in _without(spell, wake)] + [wake]
    else:
        start = found.instant(log["startTime"])
        states = [_CLASSIC_CODES[str(entry["value"])] for entry in log["minuteData"]]
        spells = [Spell(start + 60 * n, start + 60 * n + 60, stage) for n, stage in enumerate(states)]
    found.add_spells(spells)


def _spells(entries: list[Any], found: TakeoutRecording) -> list[Spell]:
    """The spells of a log; UnusableEntry where one of them is bad."""
    texts = [time if isinstance(time := entry["dateTime"], str) else None for entry in entries]
    second, reasons = found.instants(pl.Series(texts, dtype=pl.String))
    if reason := next(iter(reasons.drop_nulls()), None):
        raise UnusableEntry(reason)
    lengths = [float(entry["seconds"]) for entry in entries]
    if not all(0 <= seconds <= _DAY for seconds in lengths):
        raise UnusableEntry("lasts longer than a day")
    stages = [_STAGE_NAMES[entry["level"]] for entry in entries]
    return [Spell(at, at + length, stage) for at, length, stage in zip(second, lengths, stages, strict=True)]


def _without(spell: Spell, wake: Spell) -> Iterator[Spell]:
    """The parts of a spell before and after a short time awake."""
    if wake.start >= spell.end or wake.end <= spell.start:
        yield spell
        return
    if spell.start < wake.start:
        yield spell._replace(end=wake.start)
    if wake.end < spell.end:
        yield spell._replace(start=wake.end)


def _add_exercise(log: Any, found: TakeoutRecording) -> None:
    start, seconds = found.instant(log["startTime"]), float(log["duration"]) / 1000
    if not 0 <= seconds <= _DAY:
        raise UnusableEntry("lasts longer than a day")
    name = str(log["activityName"]).lower()[:64]
    found.events.append(RecordEvent("activity", _ACTIVITIES.get(name, name), start / 60, (start + seconds) / 60))


def _add_resting_heart_rate(entry: Any, found: TakeoutRecording) -> None:
    """Of a day, which is given as a date on the wearer's clock."""
    value = float(entry["value"]["value"])
    if not math.isfinite(value):
        raise UnusableEntry("value is not a number")
    if value and entry["value"]["date"]:  # days without a value have 0
        month, day, year = (int(part) for part in str(entry["value"]["date"]).split("/"))
        noon = found.instant(f"{year + 2000 if year < 100 else year}-{month:02d}-{day:02d} 12:00:00")
        found.add_day_labels(noon, {"resting_heart_rate": value})


def _api_items(items: list[Any], file: SourceFile, found: TakeoutRecording, report: IngestReport) -> Iterator[Any]:
    """Adds the intraday values of web API documents; gives their sleep logs."""
    for document in items:
        for name, (channel, scale) in API_SAMPLES.items() if isinstance(document, dict) else ():
            intraday, days = document.get(f"activities-{name}-intraday"), document.get(f"activities-{name}")
            if isinstance(intraday, dict) and isinstance(intraday.get("dataset"), list):
                _add_dataset(intraday, days, (channel, scale), file, found, report)
        logs = document.get("sleep") if isinstance(document, dict) else None
        yield from logs if isinstance(logs, list) else ()


def _add_dataset(
    intraday: dict[str, Any],
    days: Any,
    channel: tuple[str, float],
    file: SourceFile,
    found: TakeoutRecording,
    report: IngestReport,
) -> None:
    """Values such as {"time": "08:00:00", "value": 60} of the day that the document's summary names."""
    entries = [entry if isinstance(entry, dict) else {} for entry in intraday["dataset"]]
    summary = days[0] if isinstance(days, list) and days and isinstance(days[0], dict) else {}
    interval = intraday.get("datasetInterval")
    period = float(interval) if isinstance(interval, int) and intraday.get("datasetType") == "minute" else None
    period = period if period and 1 < period <= 60 else None
    table = pl.DataFrame(
        {
            "time": [f"{summary.get('dateTime', '')} {entry.get('time', '')}" for entry in entries],
            "value": [str(entry.get("value"))[:40] for entry in entries],
            "is_valid": [True] * len(entries),
            LINE: np.arange(1, len(entries) + 1),
        },
        schema_overrides={"time": pl.String, "value": pl.String, "is_valid": pl.Boolean},
    )
    report.rows_read += len(table)
    _add_table(table, "time", {"value": (*channel, period)}, ("Fitbit's web API", 0), file, found, report)
