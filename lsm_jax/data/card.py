"""What is in a dataset, gathered one window at a time: moments for normalisation and the data card."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from lsm_jax.channels import channel as registered
from lsm_jax.windows import MINUTES_PER_DAY, Window

TOKEN_MINUTES = 10  # LSM-2's patch: 10 minutes of one channel
GAP_BOUNDS = (1, 2, 5, 10, 30, 60, 180, 360, 720, 1440)  # a gap counts under the largest bound it reaches, in minutes
QUANTILES = (0, 5, 25, 50, 75, 95, 100)
_NAMED_VALUES = 50  # a text label with more values than this is described by their number alone


@dataclasses.dataclass(frozen=True)
class DatasetSummary:
    """What a writer reports: where the dataset is and how much it holds.

    Attributes:
      people, windows: by split, and `"all"`.
      days: person-days, by local date.
      missing_share: of all cells, over the dataset's channels.
      disk_bytes: of all files.
      warnings: plain sentences a person should read, such as a split without people.
    """

    path: Path
    people: Mapping[str, int]
    windows: Mapping[str, int]
    days: int
    missing_share: float
    disk_bytes: int
    warnings: tuple[str, ...]


class RunningMoments:
    """Count, mean and sum of squared deviations of every channel, merged window by window.

    Chan, Golub & LeVeque's pairwise update: no sum of squares that cancels, whatever the values' scale.
    """

    def __init__(self, channel_count: int) -> None:
        self.count = np.zeros(channel_count, np.int64)
        self.mean = np.zeros(channel_count)
        self.squares = np.zeros(channel_count)

    def add(self, other: RunningMoments) -> None:
        """Takes the cells that another has seen."""
        total = self.count + other.count
        share = other.count / np.maximum(total, 1)
        gap = other.mean - self.mean
        self.squares += other.squares + gap**2 * self.count * share
        self.mean += gap * share
        self.count = total

    @classmethod
    def of(cls, values: Float[np.ndarray, "c t"], observed: Bool[np.ndarray, "c t"]) -> RunningMoments:
        """The moments of some cells; unobserved ones must hold 0."""
        moments = cls(len(values))
        moments.count = observed.sum(axis=1)
        moments.mean = values.sum(axis=1, dtype=np.float64) / np.maximum(moments.count, 1)
        deviations = (values - moments.mean[:, None]) * observed
        moments.squares = np.einsum("ct,ct->c", deviations, deviations)
        return moments

    @property
    def sd(self) -> Float[np.ndarray, " c"]:
        """Population standard deviation; 0 where nothing was observed."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))


class Description:
    """Everything the sidecars of a dataset say, accumulated over its windows."""

    def __init__(self, name: str, text: str, channels: tuple[str, ...]) -> None:
        self.name, self.text, self.channels = name, text, channels
        self._training = RunningMoments(len(channels))
        self._training_minutes = 0
        self._all = RunningMoments(len(channels))
        self._low = np.full(len(channels), np.inf)
        self._high = np.full(len(channels), -np.inf)
        # By minute of the local day: observed cells per channel, and steps seen.
        self._observed_at = np.zeros((len(channels), MINUTES_PER_DAY), np.int64)
        self._steps_at = np.zeros(MINUTES_PER_DAY, np.int64)
        self._gap_count = np.zeros((len(channels), len(GAP_BOUNDS)), np.int64)
        self._gap_minutes = np.zeros((len(channels), len(GAP_BOUNDS)), np.int64)
        self._labels: dict[str, dict[str, float | str]] = {}
        self._events: dict[str, Counter[str]] = defaultdict(Counter)
        self._event_minutes: dict[str, Counter[str]] = defaultdict(Counter)
        self._rows: list[tuple[str, str, int, int, int, int, int]] = []

    def add(self, split: str, window: Window) -> None:
        """Takes one window laid out on the dataset's channels."""
        # Channel by channel: the store decodes windows so, and reductions over contiguous memory are much faster.
        values, observed = np.ascontiguousarray(window.values.T), np.ascontiguousarray(window.observed.T)
        moments = RunningMoments.of(values, observed)
        self._all.add(moments)
        if split == "train":
            self._training.add(moments)
            self._training_minutes += observed.shape[1]
        low = np.where(observed, values, np.float32(np.inf)).min(axis=1, initial=np.inf)
        high = np.where(observed, values, np.float32(-np.inf)).max(axis=1, initial=-np.inf)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._add_hours(observed, _local_minute(window), window.minutes_per_step)
        self._add_gaps(observed, window.minutes_per_step)
        self._labels.setdefault(window.participant, {}).update(window.labels)
        for event in window.events:
            self._events[event.kind][event.name] += 1
            self._event_minutes[event.kind][event.name] += (event.end - event.start) * window.minutes_per_step
        tokens = count_tokens(observed, max(TOKEN_MINUTES // window.minutes_per_step, 1))
        self._rows.append(
            (
                split,
                window.participant,
                int(window.start.timestamp()),
                window.utc_offset_minutes,
                observed.shape[1],
                int(moments.count.sum()),
                tokens,
            )
        )

    def index(self) -> pl.DataFrame:
        """A row per window, in order: who, when, how much."""
        return pl.DataFrame(self._rows, schema=INDEX_SCHEMA, orient="row")

    def normalisation(self) -> dict[str, Any]:
        """The training split's moments, as `normalisation.json` holds them."""
        moments = zip(self._training.mean, self._training.sd, self._training.count, strict=True)
        return {
            "training_minutes": self._training_minutes,
            "channels": {
                name: {"mean": float(mean), "sd": float(sd), "count": int(count)}
                for name, (mean, sd, count) in zip(self.channels, moments, strict=True)
            },
        }

    def card(self) -> dict[str, Any]:
        """The data card, as `data_card.json` holds it."""
        index = self.index()
        people, windows = _by_split(index)
        cells = int(index["steps"].sum()) * len(self.channels)
        quantiles = np.percentile(index["tokens"], QUANTILES) if len(index) else np.zeros(len(QUANTILES))
        return {
            "name": self.name,
            "description": self.text,
            "channels": list(self.channels),
            "people": people["all"],
            "windows": windows["all"],
            "days": _person_days(index),
            "people_by_split": people,
            "windows_by_split": windows,
            "missing_share": round(1 - int(self._all.count.sum()) / max(cells, 1), 6),
            "missing_by_hour": self._missing_by_hour(),
            "tokens_per_window": {
                "token": f"{TOKEN_MINUTES} minutes x 1 channel with at least one observed cell",
                "quantiles": {str(q): float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
            },
            "values": self._values(),
            "gaps": {
                "minutes_at_least": list(GAP_BOUNDS),
                "note": "a gap ends where its window ends",
                "count": dict(zip(self.channels, self._gap_count.tolist(), strict=True)),
                "minutes": dict(zip(self.channels, self._gap_minutes.tolist(), strict=True)),
            },
            "labels": _label_summary(self._labels),
            "events": {
                kind: {
                    name: {"count": count, "minutes": self._event_minutes[kind][name]}
                    for name, count in names.most_common()
                }
                for kind, names in sorted(self._events.items())
            },
            "warnings": list(_warnings(people)),
        }

    def summary(self, directory: Path) -> DatasetSummary:
        card = self.card()
        return DatasetSummary(
            path=directory,
            people=card["people_by_split"],
            windows=card["windows_by_split"],
            days=card["days"],
            missing_share=card["missing_share"],
            disk_bytes=sum(file.stat().st_size for file in directory.iterdir()),
            warnings=tuple(card["warnings"]),
        )

    def _add_hours(self, observed: Bool[np.ndarray, "c t"], start: int, minutes_per_step: int) -> None:
        first = 0
        while first < observed.shape[1]:  # up to each midnight
            minute = (start + first * minutes_per_step) % MINUTES_PER_DAY
            steps = min(-(-(MINUTES_PER_DAY - minute) // minutes_per_step), observed.shape[1] - first)
            self._observed_at[:, minute::minutes_per_step][:, :steps] += observed[:, first : first + steps]
            self._steps_at[minute::minutes_per_step][:steps] += 1
            first += steps

    def _add_gaps(self, observed: Bool[np.ndarray, "c t"], minutes_per_step: int) -> None:
        lengths, channel = gap_lengths(observed)
        lengths = lengths * minutes_per_step
        bound = np.searchsorted(GAP_BOUNDS, lengths, side="right") - 1
        np.add.at(self._gap_count, (channel, bound), 1)
        np.add.at(self._gap_minutes, (channel, bound), lengths)

    def _missing_by_hour(self) -> dict[str, list[float | None]]:
        """Share of missing steps by channel and local hour; None for an hour no window covers."""
        observed = self._observed_at.reshape(len(self.channels), 24, -1).sum(axis=2)
        steps = self._steps_at.reshape(24, -1).sum(axis=1)
        return {
            name: [
                round(1 - int(seen) / int(total), 4) if total else None
                for seen, total in zip(observed[column], steps, strict=True)
            ]
            for column, name in enumerate(self.channels)
        }

    def _values(self) -> dict[str, Any]:
        cells = max(int(self._steps_at.sum()), 1)
        values = {}
        for column, name in enumerate(self.channels):
            kind, count = registered(name), int(self._all.count[column])
            values[name] = {
                "unit": kind.unit,
                "plausible": [kind.low, kind.high],
                "count": count,
                "missing_share": round(1 - count / cells, 6),
                "min": float(self._low[column]) if count else None,
                "max": float(self._high[column]) if count else None,
                "mean": float(self._all.mean[column]) if count else None,
                "sd": float(self._all.sd[column]) if count else None,
            }
        return values


INDEX_SCHEMA = pl.Schema(
    {
        "split": pl.String,
        "participant": pl.String,
        "start_seconds": pl.Int64,
        "utc_offset_minutes": pl.Int64,
        "steps": pl.Int64,
        "observed": pl.Int64,
        "tokens": pl.Int64,
    }
)


def gap_lengths(observed: Bool[np.ndarray, "c t"]) -> tuple[Int[np.ndarray, " g"], Int[np.ndarray, " g"]]:
    """Length in steps and channel of every maximal run of unobserved cells, channel by channel."""
    channels, steps = observed.shape
    missing = np.zeros((channels, steps + 2), np.bool_)
    np.logical_not(observed, out=missing[:, 1:-1])
    edges = np.flatnonzero(missing[:, 1:] != missing[:, :-1])  # every run has its start and its end, in turn
    starts, ends = edges[::2], edges[1::2]
    return ends - starts, starts // (steps + 1)


def count_tokens(observed: Bool[np.ndarray, "c t"], patch: int) -> int:
    """Patches of `patch` steps of one channel with at least one observed cell; the last may be shorter."""
    seen = observed[:, ::patch].copy()
    for step in range(1, patch):
        later = observed[:, step::patch]
        seen[:, : later.shape[1]] |= later
    return int(np.count_nonzero(seen))


def _local_minute(window: Window) -> int:
    return int(window.start.timestamp()) // 60 + window.utc_offset_minutes


def _by_split(index: pl.DataFrame) -> tuple[dict[str, int], dict[str, int]]:
    """People and windows of every split and of `"all"`."""
    parts = {split: index.filter(pl.col("split") == split) for split in ("train", "validation", "test")} | {
        "all": index
    }
    people = {split: part["participant"].n_unique() for split, part in parts.items()}
    return people, {split: len(part) for split, part in parts.items()}


def _person_days(index: pl.DataFrame) -> int:
    local_day = (pl.col("start_seconds") + 60 * pl.col("utc_offset_minutes")) // 86400
    return index.select(pl.struct("participant", local_day.alias("day")).n_unique()).item()


def _warnings(people: Mapping[str, int]) -> list[str]:
    return [
        f"no person is left for the {split} split ({people['all']} in all); what needs it will refuse this dataset"
        for split in ("validation", "test")
        if not people[split]
    ]


def _label_summary(labels: Mapping[str, Mapping[str, float | str]]) -> dict[str, Any]:
    """Labels by name over people: the range of numbers, the counts of texts."""
    values: dict[str, list[float | str]] = defaultdict(list)
    for person in labels.values():
        for name, value in person.items():
            values[name].append(value)
    summary: dict[str, Any] = {}
    for name, found in sorted(values.items()):
        numbers = [value for value in found if not isinstance(value, str)]
        texts = Counter(value for value in found if isinstance(value, str))
        summary[name] = {"people": len(found)}
        if numbers:
            array = np.array(numbers, np.float64)
            summary[name] |= {
                "mean": float(array.mean()),
                "sd": float(array.std()),
                "min": float(array.min()),
                "max": float(array.max()),
            }
        if texts:
            summary[name]["values"] = dict(texts.most_common()) if len(texts) <= _NAMED_VALUES else {}
            summary[name]["distinct"] = len(texts)
    return summary
