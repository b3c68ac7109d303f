"""What the files of a Google Takeout of Fitbit and of Fitbit's web API hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from lsm_jax.ingest.cells import LINE, add_reason, is_empty, numbers, quarantine_rows
from lsm_jax.ingest.files.faults import entry
from lsm_jax.ingest.files.json import read_json
from lsm_jax.ingest.files.source import SourceFile, UnreadableFile
from lsm_jax.ingest.formats.takeout.daily import add_resting_heart_rate, read_daily
from lsm_jax.ingest.formats.takeout.exercises import add_exercise, read_exercises
from lsm_jax.ingest.formats.takeout.kinds import API_SAMPLES, CSV_COLUMNS, JSON_SAMPLES, MAX_JSON_BYTES, Kind
from lsm_jax.ingest.formats.takeout.recording import JSON_FILES, SOURCE, WEB_API, TakeoutRecording, source_names
from lsm_jax.ingest.formats.takeout.sleep import add_sleep, read_sleeps, read_stages
from lsm_jax.ingest.minutes.series import minute_series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.rows import read_rows

_NO_SPO2 = 50.0  # written where the measurement failed


def read_file(file: SourceFile, kind: Kind, found: TakeoutRecording, report: IngestReport) -> None:
    """Adds what a file holds to `found`.

    Raises:
      UnreadableFile: it is damaged; what comes before the damage has been added.
    """
    tables: Mapping[str, Callable[[SourceFile, Kind, TakeoutRecording, IngestReport], None]] = {
        "csv": _read_csv,
        "sleep_stages": read_stages,
        "sleeps": read_sleeps,
        "daily": read_daily,
        "exercises": read_exercises,
    }
    if kind.name in tables:
        tables[kind.name](file, kind, found, report)
        return
    content, damage = read_json(file, MAX_JSON_BYTES)
    items = content if isinstance(content, list) else [content]
    if kind.name in JSON_SAMPLES:
        _add_samples(file, kind.name, items, found, report)
    else:
        adders: Mapping[str, Callable[[Any, TakeoutRecording], None]] = {
            "sleep": add_sleep,
            "api": add_sleep,
            "exercise": add_exercise,
            "resting_heart_rate": add_resting_heart_rate,
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
            "source": [JSON_FILES] * len(rows),
            LINE: np.arange(1, len(rows) + 1),
        },
        schema_overrides={"time": pl.String, "value": pl.String, "is_valid": pl.Boolean, "source": pl.String},
    )
    report.rows_read += len(table)
    _add_table(table, "time", {"value": (channel, scale, None)}, file, found, report)


def _read_csv(file: SourceFile, kind: Kind, found: TakeoutRecording, report: IngestReport) -> None:
    """Rows with a column of times, first, columns of signals, and perhaps the device or the app that wrote the row."""
    time = kind.columns[0]
    columns = {name: CSV_COLUMNS[name] for name in kind.columns if name in CSV_COLUMNS}
    blocks = list(read_rows(file, (time, *columns, SOURCE), report))
    if not blocks:
        return
    table = pl.concat(blocks)
    is_valid = pl.repeat(True, len(table), eager=True)
    if "value" in columns:  # of oxygen
        is_valid = (numbers(table["value"]) != _NO_SPO2).fill_null(True)
    table = table.with_columns(is_valid=is_valid, source=source_names(table))
    _add_table(table, time, columns, file, found, report)


def _add_table(
    table: pl.DataFrame,
    time: str,
    columns: Mapping[str, tuple[str, float, float | None]],
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
        samples = pl.DataFrame({"second": second, "value": parsed[name] * scale, "source": table["source"]}).filter(use)
        for (source,), group in samples.group_by("source", maintain_order=True):
            series = minute_series(
                channel, group["second"].to_numpy(), group["value"].to_numpy(), report, period_minutes=period
            )
            found.add_minutes(str(source), series)


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
            "source": [WEB_API] * len(entries),
            LINE: np.arange(1, len(entries) + 1),
        },
        schema_overrides={"time": pl.String, "value": pl.String, "is_valid": pl.Boolean, "source": pl.String},
    )
    report.rows_read += len(table)
    _add_table(table, "time", {"value": (*channel, period)}, file, found, report)
