"""Several sources of one signal, such as a watch and a phone that count the same steps: they are ranked, not added."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from lsm_jax.ingest.reader import RecordEvent, Series
from lsm_jax.ingest.report import IngestReport

EVENT_TOLD_AGAIN = "event that another row tells too"
SLEEP_TOLD_AGAIN = "sleep of a time for which a better row, or an equal one, is used"


@dataclasses.dataclass(frozen=True)
class RankedSeries:
    """What one source recorded of a channel."""

    source: str  # its name, which often holds that of its owner: for the terminal of a dry run only
    kind: str  # what the report calls it, such as "a phone"
    rank: int  # 0 is the best; of equal ranks the series with more minutes is the better one
    series: Series


def best_of(sources: Sequence[RankedSeries], report: IngestReport) -> Series:
    """In each minute the value of the best source that has one. The minutes of the others are counted in the report.

    Args:
      sources: of one channel, at least one.
    """
    ordered = sorted(sources, key=lambda each: (each.rank, -len(each.series.minute), each.source))
    channel = ordered[0].series.channel
    minute = np.concatenate([each.series.minute for each in ordered])
    value = np.concatenate([each.series.value for each in ordered])
    owner = np.repeat(np.arange(len(ordered)), [len(each.series.minute) for each in ordered])
    recorded = np.flatnonzero(~np.isnan(value))
    minutes = np.bincount(owner[recorded], minlength=len(ordered))
    # The first of each minute belongs to the best source.
    _, first = np.unique(minute[recorded], return_index=True)
    best = recorded[first]
    used = np.bincount(owner[best], minlength=len(ordered))
    for each, count, others in zip(ordered, used.tolist(), (minutes - used).tolist(), strict=True):
        report.source_minutes[channel, each.source, "used"] += count
        report.source_minutes[channel, each.source, "set aside"] += others
        if others:
            report.outranked_minutes[f"{channel} of {each.kind}"] += others
    # Days without a value keep the NaN that marks them (`series.minute_series`).
    marker = np.setdiff1d(minute[np.isnan(value)] // 1440, minute[best] // 1440) * 1440 + 720
    empty = np.full(len(marker), np.nan, np.float32)
    return Series(channel, np.append(minute[best], marker), np.append(value[best], empty).astype(np.float32))


def best_events(ranked: Iterable[tuple[int, RecordEvent]]) -> list[RecordEvent]:
    """The events of the best sources in order of time.

    One whose middle lies in an event of a better source is the same event, told again, and is left out.

    Args:
      ranked: each event with the rank of its source, 0 is the best.
    """
    by_rank: dict[int, set[RecordEvent]] = {}
    for rank, event in ranked:
        by_rank.setdefault(rank, set()).add(event)
    kept: list[RecordEvent] = []
    for rank in sorted(by_rank):
        mine = list(by_rank[rank])
        ends = np.maximum.accumulate([-np.inf, *(event.end for event in kept)])
        middle = [(event.start + event.end) / 2 for event in mine]
        before = np.searchsorted([event.start for event in kept], middle, side="right")
        new = [event for event, at, end in zip(mine, middle, ends[before], strict=True) if end <= at]
        kept = sorted([*kept, *new], key=lambda event: (event.start, event.end, event.name))
    return kept


def set_aside_others(
    told: Iterable[tuple[Hashable, str]], kept: Iterable[Hashable], why: str, report: IngestReport
) -> None:
    """Sets aside the rows that tell what is not kept, or what a row before them tells.

    Args:
      told: what each row that was counted as kept tells, and the row's file.
    """
    left, others = Counter(kept), Counter[str]()
    for what, file in told:
        if left[what]:
            left[what] -= 1
        else:
            others[file] += 1
    for file, rows in others.items():
        report.unkeep(why, file, rows=rows)
