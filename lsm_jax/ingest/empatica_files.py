"""The files of one Empatica E4 session: evenly sampled signals, heart beats, button presses.

Line 1 of a signal is its start (UTC; seconds since the Unix epoch, or spelled out), line 2 its rate in Hz,
then one sample a line. Beats are (offset from the start, interval), tags one time a line. A sample's place in
time is its line, so a damaged line costs that sample and shifts no other.
"""

from __future__ import annotations

import dataclasses
import datetime as dt

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from lsm_jax.ingest import signals
from lsm_jax.ingest.files import Limits, Refused, SourceFile, read_whole
from lsm_jax.ingest.parse import FIRST_SECOND, LAST_SECOND, numbers
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.rows import LINE, header, rows

# The E4's battery lasts two days; much more is no session of it.
LONGEST_HOURS = 72
SLOWEST_RATE = {"ACC": 8.0}  # Hz; motion has no features below
FASTEST_RATE = 64.0  # Hz, the fastest the device samples
SMALL_FILE = 1 << 20
SHORTEST_REPEAT = 60  # s

# What the sensor can give, in the file's unit; a value outside costs its row. Acceleration in 1/64 g.
RANGES = {
    "ACC": (-1024.0, 1024.0),
    "EDA": (0.0, signals.CONDUCTANCE_LIMIT),
    "TEMP": (signals.COLDEST, signals.WARMEST),
    "HR": (25.0, 240.0),
}
COLUMNS = {"ACC": 3, "EDA": 1, "TEMP": 1, "HR": 1, "IBI": 2}


@dataclasses.dataclass(frozen=True)
class Sampled:
    """An evenly sampled signal.

    Attributes:
      start: seconds since the Unix epoch.
      rate: Hz.
      samples: in the file's unit, NaN where missing or set aside.
    """

    start: float
    rate: float
    samples: Float[np.ndarray, "n k"]

    @property
    def end(self) -> float:
        return self.start + len(self.samples) / self.rate


@dataclasses.dataclass(frozen=True)
class Beats:
    """Heart beats in order.

    Attributes:
      start: what the offsets count from, seconds since the Unix epoch; None where the file does not say.
      offset: seconds from `start`.
      interval: seconds since the beat before.
      line: where each stands.
    """

    start: float | None
    offset: Float[np.ndarray, " b"]
    interval: Float[np.ndarray, " b"]
    line: Int[np.ndarray, " b"]


def read_sampled(file: SourceFile, sensor: str, report: IngestReport, limits: Limits) -> Sampled:
    """One of ACC, EDA, TEMP, HR. Rows that are no number or out of the sensor's range are quarantined.

    Raises:
      Refused: no start, no rate, no sample, or longer than any session.
    """
    names, first_cell = _opening(file, sensor, limits)
    start = _seconds(first_cell)
    if start is None:
        raise Refused("line 1 is no start time of the years 1990 to 2099")
    rate, lines, values = 0.0, [], []
    for block in rows(file, names, report, limits):
        line, cells = _cells(block, names)
        if not rate:
            rate = _rate(line, cells, sensor)
            line, cells = line[1:], cells[1:]
        if len(line) and line[-1] > LONGEST_HOURS * 3600 * rate:
            raise Refused(f"longer than {LONGEST_HOURS} hours, which is no session of this device")
        good = _checked(line, cells, sensor, file, report)
        lines.append(line[good])
        values.append(cells[good])
    if not sum(map(len, lines)):
        raise Refused("no sample in it")
    place = np.concatenate(lines) - 3
    report.rows_kept += len(place) + 1  # the rate is a row of the table too
    samples = np.full((int(place.max()) + 1, COLUMNS[sensor]), np.nan)
    samples[place] = np.concatenate(values)
    return Sampled(start, rate, samples)


def read_beats(file: SourceFile, report: IngestReport, limits: Limits) -> Beats:
    """IBI.csv. Beats out of order are sorted, repeated ones quarantined.

    Raises:
      Refused: empty, or no beat in it.
    """
    names, first_cell = _opening(file, "IBI", limits)
    blocks = [_cells(block, names) for block in rows(file, names, report, limits)]
    line = np.concatenate([line for line, _ in blocks]) if blocks else np.empty(0, np.int64)
    cells = np.concatenate([cells for _, cells in blocks]) if blocks else np.empty((0, 2))
    unreadable = np.isnan(cells).any(1)
    impossible = ~unreadable & ((cells[:, 0] < 0) | (cells[:, 0] > LONGEST_HOURS * 3600))
    no_interval = ~unreadable & ~impossible & ((cells[:, 1] < signals.SHORTEST_RR) | (cells[:, 1] > signals.LONGEST_RR))
    report.quarantine("not a number", file.label, line[unreadable].tolist())
    report.quarantine("beat outside any session", file.label, line[impossible].tolist())
    report.quarantine("interval no heart has", file.label, line[no_interval].tolist())
    good = ~(unreadable | impossible | no_interval)
    line, cells = line[good], cells[good]
    if not len(line):
        raise Refused("no heart beat in it")
    report.disordered += int((np.diff(cells[:, 0]) < 0).sum())
    _, once = np.unique(cells[:, 0], return_index=True)
    report.quarantine("the same beat again", file.label, np.delete(line, once).tolist())
    report.rows_kept += len(once)
    return Beats(_seconds(first_cell), cells[once, 0], cells[once, 1], line[once])


def read_tags(file: SourceFile, report: IngestReport, limits: Limits) -> list[int]:
    """tags.csv: when the button was pressed, seconds since the Unix epoch."""
    text = read_whole(file, limits, most=SMALL_FILE).decode("utf-8-sig", "replace")
    lines = [(number, _seconds(line)) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    kept = [int(seconds) for _, seconds in lines if seconds is not None]
    report.rows_read += len(lines)
    report.rows_kept += len(kept)
    report.quarantine("no time of the years 1990 to 2099", file.label, [number for number, at in lines if at is None])
    return kept


def without_repeat(
    sampled: dict[str, Sampled], files: dict[str, SourceFile], report: IngestReport
) -> dict[str, Sampled]:
    """Cuts the second half off a recording that repeats its first half sample by sample.

    E4 Connect has delivered such files. Noise repeats nowhere, so an exact repeat of a minute and more of
    motion or conductance is no measurement; pulse and temperature of the same session are cut at the same time.
    """
    lengths = [_repeat_seconds(sampled[name]) for name in ("ACC", "EDA") if name in sampled]
    length = max(lengths, default=0.0)
    if not length:
        return sampled
    cut = {}
    for name, signal in sampled.items():
        keep = round(length * signal.rate)
        report.quarantine(
            "the recording again from its start", files[name].label, [keep + 3], rows=max(len(signal.samples) - keep, 0)
        )
        report.rows_kept -= max(len(signal.samples) - keep, 0)
        cut[name] = dataclasses.replace(signal, samples=signal.samples[:keep])
    return cut


def _repeat_seconds(signal: Sampled) -> float:
    """Seconds after which the whole signal comes again, 0 where it does not."""
    half = len(signal.samples) // 2
    first, second = signal.samples[:half], signal.samples[half:]
    if half < SHORTEST_REPEAT * signal.rate or len(second) != half or np.isnan(first).any() or np.ptp(first) == 0:
        return 0.0
    return half / signal.rate if np.array_equal(first, second) else 0.0


def of_one_recording(
    sampled: dict[str, Sampled], files: dict[str, SourceFile], report: IngestReport
) -> dict[str, Sampled]:
    """Drops signals that were not recorded while most of the session's others were."""
    together = {
        name: {other for other, theirs in sampled.items() if signal.start < theirs.end and theirs.start < signal.end}
        for name, signal in sampled.items()
    }
    kept = max(together.values(), key=len, default=set())
    for name in sampled.keys() - kept:
        report.set_aside(files[name].label, "recorded at another time than the rest of its session")
        report.rows_kept -= int((~np.isnan(sampled[name].samples).any(1)).sum())
    return {name: signal for name, signal in sampled.items() if name in kept}


def _opening(file: SourceFile, sensor: str, limits: Limits) -> tuple[tuple[str, ...], str]:
    """(column names for `rows`, what stands in the first cell)."""
    names = header(file, limits, ",").names
    if len(names) != COLUMNS[sensor]:
        raise Refused(f"{len(names)} columns where {sensor} of an E4 has {COLUMNS[sensor]}")
    return names, names[0]


def _seconds(cell: str) -> float | None:
    """Seconds since the Unix epoch, of a number or a spelled-out time (UTC unless it says otherwise)."""
    try:
        seconds = float(cell)
    except ValueError:
        try:
            moment = dt.datetime.fromisoformat(cell.strip())
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    return seconds if FIRST_SECOND <= seconds < LAST_SECOND else None  # NaN is neither


def _cells(block: pl.DataFrame, names: tuple[str, ...]) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n k"]]:
    """Line numbers, and the cells as numbers with NaN where there is none."""
    cells = np.stack([numbers(block[name]).fill_null(np.nan).to_numpy() for name in names], axis=1)
    return block[LINE].to_numpy(), np.where(np.isfinite(cells), cells, np.nan)


def _rate(line: Int[np.ndarray, " n"], cells: Float[np.ndarray, "n k"], sensor: str) -> float:
    rate = cells[0, 0] if len(line) and line[0] == 2 else np.nan
    slowest = SLOWEST_RATE.get(sensor, 1 / 60)
    # `not (...)` also refuses NaN.
    if not (slowest <= rate <= FASTEST_RATE and abs(rate * 60 - round(rate * 60)) < 1e-6 and (cells[0] == rate).all()):
        raise Refused(f"line 2 is no sampling rate of {sensor} ({slowest:.3g} to {FASTEST_RATE:g} Hz)")
    return float(rate)


def _checked(
    line: Int[np.ndarray, " n"], cells: Float[np.ndarray, "n k"], sensor: str, file: SourceFile, report: IngestReport
) -> Bool[np.ndarray, " n"]:
    """Rows that are numbers within the sensor's range; the others are quarantined."""
    low, high = RANGES[sensor]
    unreadable = np.isnan(cells).any(1)
    outside = ~unreadable & ((cells < low) | (cells > high)).any(1)
    report.quarantine("not a number", file.label, line[unreadable].tolist())
    report.quarantine(f"{sensor} outside {low:g} to {high:g}", file.label, line[outside].tolist())
    return ~(unreadable | outside)
