"""Statistics of a dataset, accumulated window by window: normalisation moments, the index and the data card."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from lsm_jax.channels import channel as registered
from lsm_jax.windows import MINUTES_PER_DAY, Window

SPLITS = ("train", "validation", "test")
TOKEN_MINUTES = 10  # LSM-2's patch: 10 minutes of one channel
GAP_BOUNDS = (1, 2, 5, 10, 30, 60, 180, 360, 720, 1440)  # minutes; a gap counts under the largest bound it reaches
QUANTILES = (0, 5, 25, 50, 75, 95, 100)
CHECKSUM = "checksum"
_NO_PEOPLE = "no person is left for the {} split ({} in all); what needs it will refuse this dataset"
_MAX_NAMED_VALUES = 50  # with more distinct values, a text label is described by their number only


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of observed cells, of one channel or of C channels.

    The moments of disjoint sets of cells add up (Chan, Golub & LeVeque, 1983) without the cancellation of plain sums of
    squares.
    """

    count: Int[np.ndarray, "*c"]
    mean: Float[np.ndarray, "*c"]
    squares: Float[np.ndarray, "*c"]

    @classmethod
    def of_cells(cls, values: Float[np.ndarray, "c t"], observed: Bool[np.ndarray, "c t"]) -> Moments:
        """The moments of a window's observed cells. Unobserved values must be 0."""
        count = observed.sum(axis=1)
        mean = values.sum(axis=1, dtype=np.float64) / np.maximum(count, 1)
        deviations = (values - mean[:, None]) * observed
        return cls(count, mean, np.einsum("ct,ct->c", deviations, deviations))

    @classmethod
    def from_sd(cls, count: int, mean: float, sd: float) -> Moments:
        """The moments of one channel from its population standard deviation."""
        return cls(np.asarray(count), np.asarray(mean), np.asarray(sd**2 * count))

    @classmethod
    def of_nothing(cls, channel_count: int) -> Moments:
        """The moments of C channels without any observed cell."""
        return cls(np.zeros(channel_count, np.int64), np.zeros(channel_count), np.zeros(channel_count))

    def __add__(self, other: Moments) -> Moments:
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        difference = other.mean - self.mean
        squares = self.squares + (other.squares + difference**2 * self.count * share)
        return Moments(count, self.mean + difference * share, squares)

    @property
    def sd(self) -> Float[np.ndarray, "*c"]:
        """Population standard deviation; 0 where nothing was observed."""
        return np.sqrt(self.squares / np.maximum(self.count, 1))


class DatasetStatistics:
    """Accumulates the content of a dataset's sidecar files over its windows."""

    def __init__(self, name: str, text: str, channels: tuple[str, ...]) -> None:
        self.name, self.text, self.channels = name, text, channels
        self._training = Moments.of_nothing(len(channels))
        self._training_minutes = 0
        self._all = Moments.of_nothing(len(channels))
        self._low = np.full(len(channels), np.inf)
        self._high = np.full(len(channels), -np.inf)
        # By minute of the local day: observed cells per channel, and steps.
        self._observed_at = np.zeros((len(channels), MINUTES_PER_DAY), np.int64)
        self._steps_at = np.zeros(MINUTES_PER_DAY, np.int64)
        self._gap_count = np.zeros((len(channels), len(GAP_BOUNDS)), np.int64)
        self._gap_minutes = np.zeros((len(channels), len(GAP_BOUNDS)), np.int64)
        # By label and person, the values of the person's windows, in order: labels of days have several.
        self._labels: dict[str, dict[str, dict[float | str, None]]] = defaultdict(lambda: defaultdict(dict))
        self._events: dict[str, Counter[str]] = defaultdict(Counter)
        self._event_minutes: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(int))
        self._rows: list[tuple[str, str, int, int, int, int, int, int]] = []

    def add(self, split: str, window: Window, checksum: int) -> None:
        """Adds one window on the dataset's channels, and the checksum of its record."""
        # Channel-major, as the store decodes windows: reductions over contiguous memory are much faster.
        values, observed = np.ascontiguousarray(window.values.T), np.ascontiguousarray(window.observed.T)
        moments = Moments.of_cells(values, observed)
        self._all += moments
        if split == "train":
            self._training += moments
            self._training_minutes += observed.shape[1]
        low = np.where(observed, values, np.float32(np.inf)).min(axis=1, initial=np.inf)
        high = np.where(observed, values, np.float32(-np.inf)).max(axis=1, initial=-np.inf)
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        start, steps = int(window.start.timestamp()), observed.shape[1]
        self._add_hours(observed, start // 60 + window.utc_offset_minutes, window.minutes_per_step)
        self._add_gaps(observed, window.minutes_per_step)
        for name, value in window.labels.items():
            self._labels[name][window.participant][value] = None
        for event in window.events:
            self._events[event.kind][event.name] += 1
            self._event_minutes[event.kind][event.name] += (event.end - event.start) * window.minutes_per_step
        tokens = count_tokens(observed, max(TOKEN_MINUTES // window.minutes_per_step, 1))
        cells = int(moments.count.sum())
        row = (split, window.participant, start, window.utc_offset_minutes, steps, cells, tokens, checksum)
        self._rows.append(row)

    def index(self) -> pl.DataFrame:
        """One row per window, in stored order."""
        return pl.DataFrame(self._rows, schema=INDEX_SCHEMA, orient="row")

    def normalisation(self) -> dict[str, Any]:
        """The content of `normalisation.json`: the training split's moments."""
        mean, sd, count = self._training.mean.tolist(), self._training.sd.tolist(), self._training.count.tolist()
        channels = zip(self.channels, mean, sd, count, strict=True)
        moments = {name: dict(zip(("mean", "sd", "count"), numbers, strict=True)) for name, *numbers in channels}
        return {"training_minutes": self._training_minutes, "channels": moments}

    def card(self) -> dict[str, Any]:
        """The content of `data_card.json`."""
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
            "warnings": [_NO_PEOPLE.format(split, people["all"]) for split in SPLITS[1:] if not people[split]],
        }

    def _add_hours(self, observed: Bool[np.ndarray, "c t"], start: int, minutes_per_step: int) -> None:
        first = 0
        while first < observed.shape[1]:  # day by day, up to midnight
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
        """Share of missing steps by channel and local hour; None for an hour that no window covers."""
        observed = self._observed_at.reshape(len(self.channels), 24, -1).sum(axis=2)
        steps = self._steps_at.reshape(24, -1).sum(axis=1)
        return {
            name: [
                round(1 - int(count) / int(total), 4) if total else None
                for count, total in zip(observed[column], steps, strict=True)
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
        CHECKSUM: pl.UInt64,
    }
)


def gap_lengths(observed: Bool[np.ndarray, "c t"]) -> tuple[Int[np.ndarray, " g"], Int[np.ndarray, " g"]]:
    """The length in steps and the channel of every gap (maximal run of unobserved cells), channel by channel."""
    channels, steps = observed.shape
    missing = np.zeros((channels, steps + 2), np.bool_)
    np.logical_not(observed, out=missing[:, 1:-1])
    edges = np.flatnonzero(missing[:, 1:] != missing[:, :-1])  # starts and ends of gaps alternate
    starts, ends = edges[::2], edges[1::2]
    return ends - starts, starts // (steps + 1)


def count_tokens(observed: Bool[np.ndarray, "c t"], patch: int) -> int:
    """Number of patches of `patch` steps of one channel with an observed cell; the last patch may be shorter."""
    tokens_observed = observed[:, ::patch].copy()
    for step in range(1, patch):
        cells = observed[:, step::patch]
        tokens_observed[:, : cells.shape[1]] |= cells
    return int(np.count_nonzero(tokens_observed))


def _by_split(index: pl.DataFrame) -> tuple[dict[str, int], dict[str, int]]:
    """People and windows of every split and of `"all"`."""
    parts = {split: index.filter(pl.col("split") == split) for split in SPLITS} | {"all": index}
    people = {split: part["participant"].n_unique() for split, part in parts.items()}
    return people, {split: len(part) for split, part in parts.items()}


def _person_days(index: pl.DataFrame) -> int:
    local_day = (pl.col("start_seconds") + 60 * pl.col("utc_offset_minutes")) // 86400
    return index.select(pl.struct("participant", local_day.alias("day")).n_unique()).item()


def _label_summary(labels: Mapping[str, Mapping[str, Mapping[float | str, None]]]) -> dict[str, Any]:
    """By label, over the different values of each person: statistics of its numbers and counts of its texts."""
    summary: dict[str, Any] = {}
    for name, of_people in sorted(labels.items()):
        values = [value for person in of_people.values() for value in person]
        numbers = np.array([value for value in values if not isinstance(value, str)], np.float64)
        texts = Counter(value for value in values if isinstance(value, str))
        summary[name] = {"people": len(of_people)}
        if len(numbers):
            statistics = {"mean": numbers.mean(), "sd": numbers.std(), "min": numbers.min(), "max": numbers.max()}
            summary[name] |= {key: float(value) for key, value in statistics.items()}
        if texts:
            summary[name]["values"] = dict(texts.most_common()) if len(texts) <= _MAX_NAMED_VALUES else {}
            summary[name]["distinct"] = len(texts)
    return summary
