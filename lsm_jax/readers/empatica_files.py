"""The files of one Empatica E4 session: evenly sampled signals, heart beats, button presses.

Line 1 of a signal is its start (UTC; seconds since the Unix epoch, or spelled out), line 2 its rate in Hz,
then one sample a line. Beats are (offset from the start, interval), tags one time a line. A sample's place in
time is its line, so a damaged line costs that sample and shifts no other.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from lsm_jax.readers import signals
from lsm_jax.readers.files import Limits, Refused, SourceFile, read_whole
from lsm_jax.readers.parse import ISO_FORMATS, epoch_seconds, numbers
from lsm_jax.readers.report import IngestReport
from lsm_jax.readers.rows import LINE, header, rows

TIMES = (*ISO_FORMATS, "unix_s")
# The E4's battery lasts two days; much more is no session of it.
LONGEST_HOURS = 240
FASTEST_RATE = 256.0  # Hz, above anything the device samples
SMALL_FILE = 1 << 20

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
    start = _start(first_cell)
    if start is None:
        raise Refused(f"line 1 is no start time between 1990 and 2099 ({_shown(first_cell)})")
    rate, lines, values = 0.0, [], []
    for block in rows(file, names, report, limits):
        line, cells = _cells(block, names)
        if not rate:
            rate = _rate(line, cells)
            report.rows_kept += 1
            line, cells = line[1:], cells[1:]
        if len(line) and line[-1] > LONGEST_HOURS * 3600 * rate:
            raise Refused(f"longer than {LONGEST_HOURS} hours, which is no session of this device")
        good = _checked(line, cells, sensor, file, report)
        lines.append(line[good])
        values.append(cells[good])
    if not sum(map(len, lines)):
        raise Refused("no sample in it")
    place = np.concatenate(lines) - 3
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
    # The beat of a stray second header is none; a beat from before the start or after any session neither.
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
    return Beats(_start(first_cell), cells[once, 0], cells[once, 1], line[once])


def read_tags(file: SourceFile, report: IngestReport, limits: Limits) -> list[int]:
    """tags.csv: when the button was pressed, seconds since the Unix epoch."""
    text = read_whole(file, limits, most=SMALL_FILE).decode("utf-8-sig", "replace")
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        return []
    seconds, reason = epoch_seconds(pl.Series([line for _, line in lines], dtype=pl.String), TIMES, "UTC")
    report.rows_read += len(lines)
    for (number, _), why in zip(lines, reason.to_list(), strict=True):
        report.quarantine(why, file.label, [number] if why else [])
    kept = seconds.drop_nulls().to_list()
    report.rows_kept += len(kept)
    return kept


def _opening(file: SourceFile, sensor: str, limits: Limits) -> tuple[tuple[str, ...], str]:
    """(column names for `rows`, what stands in the first cell)."""
    names = header(file, limits, ",").names
    if len(names) != COLUMNS[sensor]:
        raise Refused(f"{len(names)} columns where {sensor} of an E4 has {COLUMNS[sensor]}")
    return names, names[0]


def _start(cell: str) -> float | None:
    seconds = epoch_seconds(pl.Series([cell], dtype=pl.String), TIMES, "UTC")[0].item()
    return None if seconds is None else float(seconds)


def _shown(cell: str) -> str:
    return repr(cell[:40])


def _cells(block: pl.DataFrame, names: tuple[str, ...]) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n k"]]:
    """Line numbers, and the cells as numbers with NaN where there is none."""
    cells = np.stack([numbers(block[name]).fill_null(np.nan).to_numpy() for name in names], axis=1)
    return block[LINE].to_numpy(), np.where(np.isfinite(cells), cells, np.nan)


def _rate(line: Int[np.ndarray, " n"], cells: Float[np.ndarray, "n k"]) -> float:
    rate = cells[0, 0] if len(line) and line[0] == 2 else np.nan
    # `not (...)` also refuses NaN.
    if not (1 / 60 <= rate <= FASTEST_RATE and abs(rate * 60 - round(rate * 60)) < 1e-6 and (cells[0] == rate).all()):
        raise Refused("line 2 is no sampling rate in Hz")
    return float(rate)


def _checked(
    line: Int[np.ndarray, " n"], cells: Float[np.ndarray, "n k"], sensor: str, file: SourceFile, report: IngestReport
) -> np.ndarray:
    """bool[n]: rows that are numbers within the sensor's range; the others are quarantined."""
    low, high = RANGES[sensor]
    unreadable = np.isnan(cells).any(1)
    outside = ~unreadable & ((cells < low) | (cells > high)).any(1)
    report.quarantine("not a number", file.label, line[unreadable].tolist())
    report.quarantine(f"{sensor} outside {low:g} to {high:g}", file.label, line[outside].tolist())
    good = ~(unreadable | outside)
    report.rows_kept += int(good.sum())
    return good
