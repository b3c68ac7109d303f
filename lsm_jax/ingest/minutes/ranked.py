"""Several sources of one signal, such as a watch and a phone that count the same steps: they are ranked, not added."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lsm_jax.ingest.reader import Series
from lsm_jax.ingest.report import IngestReport


@dataclasses.dataclass(frozen=True)
class RankedSeries:
    """What one source recorded of a channel."""

    source: str  # its name in the report
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
    # The first of each minute belongs to the best source.
    _, first = np.unique(minute[recorded], return_index=True)
    for number, each in enumerate(ordered):
        if outranked := int((owner[recorded] == number).sum() - (owner[recorded][first] == number).sum()):
            report.outranked_minutes[f"{channel} of {each.source}"] += outranked
    best = recorded[first]
    # Days without a value keep the NaN that marks them (`series.minute_series`).
    marker = np.setdiff1d(minute[np.isnan(value)] // 1440, minute[best] // 1440) * 1440 + 720
    empty = np.full(len(marker), np.nan, np.float32)
    return Series(channel, np.append(minute[best], marker), np.append(value[best], empty).astype(np.float32))
