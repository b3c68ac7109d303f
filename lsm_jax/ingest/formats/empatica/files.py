"""Reads the files of one Empatica E4 session: evenly sampled signals, heart beats, button presses.

Line 1 of a signal is its start (UTC; seconds since the Unix epoch, or a date and time), line 2 its rate in Hz, then one
sample per line. Beats are (offset from the start, interval); tags are one time per line. A sample's time follows from
its line number, so a damaged line costs that sample and shifts no other.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from lsm_jax.ingest.cells import LINE, numbers
from lsm_jax.ingest.files.faults import LOST_ROWS
from lsm_jax.ingest.files.opening import read_bytes
from lsm_jax.ingest.files.source import MIB, SourceFile, UnreadableFile
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.signals.heart import MAX_RR, MIN_RR
from lsm_jax.ingest.signals.skin import MAX_CONDUCTANCE, MAX_TEMPERATURE, MIN_TEMPERATURE
from lsm_jax.ingest.tables.header import Layout, read_header
from lsm_jax.ingest.tables.rows import read_rows
from lsm_jax.ingest.times.text import FIRST_SECOND, LAST_SECOND

MAX_HOURS = 72  # the E4's battery lasts two days
MIN_RATE = {"ACC": 8.0}  # Hz; slower acceleration gives no motion features
MAX_RATE = 64.0  # Hz, the fastest the device samples
MIN_REPEAT = 60  # s

# The sensor's range in the file's unit (acceleration in 1/64 g). A value outside costs its row.
RANGES = {
    "ACC": (-1024.0, 1024.0),
    "EDA": (0.0, MAX_CONDUCTANCE),
    "TEMP": (MIN_TEMPERATURE, MAX_TEMPERATURE),
    "HR": (25.0, 240.0),
}
COLUMNS = {"ACC": 3, "EDA": 1, "TEMP": 1, "HR": 1, "IBI": 2}


@dataclasses.dataclass(frozen=True)
class SampledSignal:
    """An evenly sampled signal."""

    file: str  # its name in reports
    start: float  # seconds since the Unix epoch
    rate: float  # Hz
    samples: Float[np.ndarray, "n k"]  # in the file's unit, NaN where missing or set aside
    utc_offset: int | None = None  # minutes, where the start is written with one that is not zero

    @property
    def end(self) -> float:
        return self.start + len(self.samples) / self.rate


@dataclasses.dataclass(frozen=True)
class Beats:
    """Heart beats in order."""

    file: str  # its name in reports
    start: float | None  # origin of the offsets, seconds since the Unix epoch; None if the file has none
    offset: Float[np.ndarray, " b"]  # seconds from `start`
    interval: Float[np.ndarray, " b"]  # seconds since the beat before
    line: Int[np.ndarray, " b"]  # its number in the file


def read_signal(file: SourceFile, sensor: str, report: IngestReport) -> SampledSignal:
    """Reads ACC, EDA, TEMP or HR. Rows that are not numbers or out of the sensor's range are quarantined.

    Raises:
      UnreadableFile: no start, no rate, no sample, or longer than any session.
    """
    names = _column_names(file, sensor)
    start = _seconds(names[0])
    if start is None:
        raise UnreadableFile("line 1 is no start time of the years 1990 to 2099")
    low, high = RANGES[sensor]
    rate, lines, values = 0.0, [], []
    for block in read_rows(file, names, report):
        line, cells = _cells(block, names)
        if not rate:
            rate = _rate(line, cells, sensor)
            line, cells = line[1:], cells[1:]
        if len(line) and line[-1] > MAX_HOURS * 3600 * rate:
            raise UnreadableFile(f"longer than {MAX_HOURS} hours, which is no session of this device")
        unreadable = np.isnan(cells).any(1)
        outside = ~unreadable & ((cells < low) | (cells > high)).any(1)
        report.quarantine("not a number", file.label, line[unreadable].tolist())
        report.quarantine(f"{sensor} outside {low:g} to {high:g}", file.label, line[outside].tolist())
        good = ~(unreadable | outside)
        lines.append(line[good])
        values.append(cells[good])
    if not sum(map(len, lines)):
        raise UnreadableFile("no sample in it")
    index = np.concatenate(lines) - 3
    report.rows_kept += len(index) + 1  # the rate is a row of the table too
    samples = np.full((int(index.max()) + 1, COLUMNS[sensor]), np.nan)
    samples[index] = np.concatenate(values)
    return SampledSignal(file.label, start, rate, samples, _utc_offset(names[0]))


def read_beats(file: SourceFile, report: IngestReport) -> Beats:
    """Reads IBI.csv. Beats out of order are sorted, repeated ones quarantined.

    Raises:
      UnreadableFile: empty, or no beat in it.
    """
    names = _column_names(file, "IBI")
    blocks = [_cells(block, names) for block in read_rows(file, names, report)]
    line = np.concatenate([np.empty(0, np.int64), *(line for line, _ in blocks)])
    cells = np.concatenate([np.empty((0, 2)), *(cells for _, cells in blocks)])
    unreadable = np.isnan(cells).any(1)
    impossible = ~unreadable & ((cells[:, 0] < 0) | (cells[:, 0] > MAX_HOURS * 3600))
    no_interval = ~unreadable & ~impossible & ((cells[:, 1] < MIN_RR) | (cells[:, 1] > MAX_RR))
    report.quarantine("not a number", file.label, line[unreadable].tolist())
    report.quarantine("beat outside any session", file.label, line[impossible].tolist())
    report.quarantine("interval no heart has", file.label, line[no_interval].tolist())
    good = ~(unreadable | impossible | no_interval)
    line, cells = line[good], cells[good]
    if not len(line):
        raise UnreadableFile("no heart beat in it")
    report.disordered += int((np.diff(cells[:, 0]) < 0).sum())
    _, once = np.unique(cells[:, 0], return_index=True)
    report.quarantine("the same beat again", file.label, np.delete(line, once).tolist())
    report.rows_kept += len(once)
    return Beats(file.label, _seconds(names[0]), cells[once, 0], cells[once, 1], line[once])


def read_tags(file: SourceFile, report: IngestReport) -> list[int]:
    """Reads tags.csv: times of button presses, seconds since the Unix epoch."""
    text = read_bytes(file, max_bytes=MIB).decode("utf-8-sig", "replace")
    lines = [(number, _seconds(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    kept = [int(seconds) for _, seconds in lines if seconds is not None]
    report.rows_read += len(lines)
    report.rows_kept += len(kept)
    report.quarantine("no time of the years 1990 to 2099", file.label, [n for n, time in lines if time is None])
    return kept


def drop_repeated_half(recorded: dict[str, SampledSignal], report: IngestReport) -> dict[str, SampledSignal]:
    """Cuts off the second half of a recording that repeats its first half sample by sample.

    E4 Connect has delivered such files. Noise does not repeat, so an exact repeat of a minute or more of motion or
    conductance is not a measurement. Pulse and temperature of the same session are cut at the same time.
    """
    lengths = [_repeat_seconds(recorded[name]) for name in ("ACC", "EDA") if name in recorded]
    length = max(lengths, default=0.0)
    if not length:
        return recorded
    cut = {}
    for name, signal in recorded.items():
        keep = round(length * signal.rate)
        report.unkeep(
            "the recording again from its start", signal.file, [keep + 3], rows=_recorded(signal.samples[keep:])
        )
        cut[name] = dataclasses.replace(signal, samples=signal.samples[:keep])
    return cut


def _repeat_seconds(signal: SampledSignal) -> float:
    """Seconds after which the whole signal repeats, 0 where it does not."""
    half = len(signal.samples) // 2
    first, second = signal.samples[:half], signal.samples[half:]
    if half < MIN_REPEAT * signal.rate or len(second) != half or np.isnan(first).any() or np.ptp(first) == 0:
        return 0.0
    return half / signal.rate if np.array_equal(first, second) else 0.0


def keep_one_recording(recorded: dict[str, SampledSignal], report: IngestReport) -> dict[str, SampledSignal]:
    """Drops signals that do not overlap in time with most of the session's other signals."""
    overlapping = {
        name: {other for other, theirs in recorded.items() if signal.start < theirs.end and theirs.start < signal.end}
        for name, signal in recorded.items()
    }
    kept = max(overlapping.values(), key=len, default=set())
    for name in recorded.keys() - kept:
        report.set_aside(recorded[name].file, "recorded at another time than the rest of its session")
        # The rate is a row too.
        report.unkeep(LOST_ROWS, recorded[name].file, rows=_recorded(recorded[name].samples) + 1)
    return {name: signal for name, signal in recorded.items() if name in kept}


def _recorded(samples: Float[np.ndarray, "n k"]) -> int:
    """How many samples were kept."""
    return int((~np.isnan(samples).any(1)).sum())


def _column_names(file: SourceFile, sensor: str) -> tuple[str, ...]:
    """The cells of line 1, which serve as column names. The first is the start time."""
    names = read_header(file, Layout(",")).names
    if len(names) != COLUMNS[sensor]:
        raise UnreadableFile(f"{len(names)} columns where {sensor} of an E4 has {COLUMNS[sensor]}")
    return names


def _seconds(cell: str) -> float | None:
    """Seconds since the Unix epoch, from a number or an ISO 8601 time (UTC unless it has an offset)."""
    try:
        seconds = float(cell)
    except ValueError:
        try:
            moment = dt.datetime.fromisoformat(cell.strip())
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return seconds if FIRST_SECOND <= seconds < LAST_SECOND else None  # NaN is neither


def _utc_offset(cell: str) -> int | None:
    """The minutes of local time minus UTC that a start time is written with; None for zero and for none."""
    try:
        offset = dt.datetime.fromisoformat(cell.strip()).utcoffset()
    except ValueError:
        return None
    return int(offset.total_seconds() // 60) if offset else None


def _cells(block: pl.DataFrame, names: tuple[str, ...]) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n k"]]:
    """Line numbers, and the cells as numbers; NaN for a cell that is not one."""
    cells = np.stack([numbers(block[name]).fill_null(np.nan).to_numpy() for name in names], axis=1)
    return block[LINE].to_numpy(), np.where(np.isfinite(cells), cells, np.nan)


def _rate(line: Int[np.ndarray, " n"], cells: Float[np.ndarray, "n k"], sensor: str) -> float:
    rate = cells[0, 0] if len(line) and line[0] == 2 else np.nan
    lowest = MIN_RATE.get(sensor, 1 / 60)
    # `not (...)` also refuses NaN.
    if not (lowest <= rate <= MAX_RATE and abs(rate * 60 - round(rate * 60)) < 1e-6 and (cells[0] == rate).all()):
        raise UnreadableFile(f"line 2 is no sampling rate of {sensor} ({lowest:.3g} to {MAX_RATE:g} Hz)")
    return float(rate)
