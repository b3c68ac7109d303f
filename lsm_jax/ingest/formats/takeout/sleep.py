"""Sleep of Takeout and of the web API: JSON logs with stages, and the tables UserSleeps and UserSleepStages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from lsm_jax.ingest.cells import LINE, add_reason, is_empty, numbers, quarantine_rows
from lsm_jax.ingest.files.faults import UnusableEntry
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.takeout.kinds import SLEEP_TIMES, STAGE_TIMES, Kind
from lsm_jax.ingest.formats.takeout.recording import DAY, JSON_RANK, TOO_LONG, Sleep, TakeoutRecording
from lsm_jax.ingest.minutes.ranked import SLEEP_TOLD_AGAIN
from lsm_jax.ingest.minutes.sleep import MAX_GAP_MINUTES, STAGES, Spell, Stage, sleeps_of
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.rows import read_rows

_STAGE_NAMES: dict[str, Stage] = {"wake": "awake", **{stage: stage for stage in STAGES if stage != "in bed"}}
_CLASSIC_CODES: dict[str, Stage] = {"1": "asleep", "2": "restless", "3": "awake"}
_SESSION_RANK = JSON_RANK + 1  # the table UserSleeps tells no stages
_NO_ID = f"no id of the sleep in some rows: stages at most {MAX_GAP_MINUTES} minutes apart are taken for one sleep"


def add_sleep(log: Any, found: TakeoutRecording) -> None:
    """A log of a sleep with its stages (`levels`), with a state of each minute (`minuteData`), or with neither."""
    levels = log.get("levels") or {}
    if entries := levels.get("data"):
        spells = _uninterrupted([*_spells(entries, found), *_spells(levels.get("shortData") or [], found)])
    elif states := log.get("minuteData"):
        start = found.instant(log["startTime"])
        stages = [_CLASSIC_CODES[str(entry["value"])] for entry in states]
        spells = [Spell(start + 60 * n, start + 60 * n + 60, stage) for n, stage in enumerate(stages)]
    else:
        start = found.instant(log["startTime"])
        asleep = start + 60 * float(log.get("minutesToFallAsleep") or 0)
        awake = start + float(log["duration"]) / 1000 - 60 * float(log.get("minutesAfterWakeup") or 0)
        if not start <= asleep <= awake <= start + DAY:
            raise UnusableEntry("ends before it starts" if asleep > awake else TOO_LONG)
        found.sleeps.append(Sleep(_SESSION_RANK, asleep, awake, found.file))
        return
    found.sleeps.append(_sleep(JSON_RANK, found.file, spells))


def read_stages(file: SourceFile, _: Kind, found: TakeoutRecording, report: IngestReport) -> None:
    """Rows of UserSleepStages: a stage each, with the id of its sleep; without ids the time tells sleeps apart."""
    sleeps: dict[str, list[Spell]] = {}
    columns = ("sleep_id", "sleep_stage_type", "start_utc_offset", *STAGE_TIMES)
    for block in read_rows(file, columns, report):
        start, end, reasons = found.times(block, STAGE_TIMES)
        names = block["sleep_stage_type"].str.strip_chars().str.to_lowercase()
        stages = names.replace_strict(_STAGE_NAMES, default=None, return_dtype=pl.String)
        reasons = add_reason(reasons, stages.is_null(), "unknown stage of sleep")
        good = quarantine_rows(block[LINE], reasons, file.label, report)
        ids = pl.repeat("", len(block), eager=True)
        if "sleep_id" in block.columns:
            ids = block["sleep_id"].str.strip_chars().set(is_empty(block["sleep_id"]), "")
        rows = pl.DataFrame({"id": ids, "start": start, "end": end, "stage": stages}).filter(good)
        for sleep, *spell in rows.iter_rows():
            sleeps.setdefault(sleep, []).append(Spell(*spell))
        _add_offsets(block, start, found)
    repeated = sum(len(spells) - len({*spells}) for spells in sleeps.values())
    report.unkeep(SLEEP_TOLD_AGAIN, file.label, rows=repeated)
    if without_id := [*sleeps_of(sorted({*sleeps.pop("", [])}))]:
        report.lack(_NO_ID, file.label)
    for spells in (*(sorted({*each}) for each in sleeps.values()), *without_id):
        found.sleeps.append(_sleep(0, file.label, _uninterrupted(spells), rows=len(spells)))


def read_sleeps(file: SourceFile, _: Kind, found: TakeoutRecording, report: IngestReport) -> None:
    """Rows of UserSleeps: a sleep each, from going to bed to getting up."""
    minutes = ("minutes_to_fall_asleep", "minutes_after_wake_up")
    for block in read_rows(file, (*SLEEP_TIMES, "start_utc_offset", *minutes), report):
        start, end, reasons = found.times(block, SLEEP_TIMES)
        before, after = (
            60 * numbers(block[name]).fill_null(0) if name in block.columns else pl.repeat(0.0, len(block), eager=True)
            for name in minutes
        )
        asleep, awake = start + before, end - after
        impossible = (before < 0) | (after < 0) | ~(awake - asleep).is_between(0, DAY)  # a cell may be NaN
        reasons = add_reason(reasons, impossible.fill_null(False), "ends before it starts")
        good = quarantine_rows(block[LINE], reasons, file.label, report)
        rows = pl.DataFrame({"start": asleep, "end": awake}).filter(good)
        found.sleeps += [Sleep(_SESSION_RANK, begin, stop, file.label) for begin, stop in rows.iter_rows()]
        _add_offsets(block, start, found)


def _add_offsets(block: pl.DataFrame, start: pl.Series, found: TakeoutRecording) -> None:
    if "start_utc_offset" in block.columns:
        found.add_offsets(start, block["start_utc_offset"])


def _sleep(rank: int, file: str, spells: Iterable[Spell], rows: int = 1) -> Sleep:
    ordered = tuple(sorted(spells))
    return Sleep(rank, ordered[0].start, max(spell.end for spell in ordered), file, ordered, rows)


def _spells(entries: list[Any], found: TakeoutRecording) -> list[Spell]:
    """The spells of a log; UnusableEntry where one of them is bad."""
    texts = [time if isinstance(time := entry["dateTime"], str) else None for entry in entries]
    second, reasons = found.instants(pl.Series(texts, dtype=pl.String))
    if reason := next(iter(reasons.drop_nulls()), None):
        raise UnusableEntry(reason)
    lengths = [float(entry["seconds"]) for entry in entries]
    if not all(0 <= seconds <= DAY for seconds in lengths):
        raise UnusableEntry(TOO_LONG)
    stages = [_STAGE_NAMES[entry["level"]] for entry in entries]
    return [Spell(at, at + length, stage) for at, length, stage in zip(second, lengths, stages, strict=True)]


def _uninterrupted(spells: list[Spell]) -> list[Spell]:
    """The spells of one sleep, without the short times awake that are told beside the stage around them."""
    rest = [spell for spell in spells if spell.stage != "awake"]
    wakes = sorted(spell for spell in spells if spell.stage == "awake")
    for wake in wakes:
        rest = [part for spell in rest for part in _without(spell, wake)]
    return rest + wakes


def _without(spell: Spell, wake: Spell) -> Iterator[Spell]:
    """The parts of a spell before and after a short time awake."""
    if wake.start >= spell.end or wake.end <= spell.start:
        yield spell
        return
    if spell.start < wake.start:
        yield spell._replace(end=wake.start)
    if wake.end < spell.end:
        yield spell._replace(start=wake.end)
