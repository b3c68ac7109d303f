"""What the robustness suite takes away from windows: sensors, hours of the day, and random gaps."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Int

from lsm_jax.channels import REGISTRY
from lsm_jax.data.loader import Batch, WindowInfo
from lsm_jax.windows import MINUTES_PER_DAY

_GAP_MINUTES = 30
_HOURS = {"night": (0, 6), "morning": (6, 12), "afternoon": (12, 18), "evening": (18, 24)}  # local time
_BLOCK_HOURS = (1, 3, 6, 12)
_GAP_SHARES = (0.1, 0.3, 0.5, 0.7)


@dataclasses.dataclass(frozen=True)
class Removal:
    """Something that is taken away from every window; of all channels where `sensor` is empty.

    Attributes:
      kind: sensor, hours or gaps.
      sensor: its channels are taken away for the whole window.
      start, end: hours of local time.
      hours: length of a block at a random place.
      share: share of the half-hours, each channel's own.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("sensor", "hours", "gaps")

    kind: str
    name: str
    sensor: str = ""
    start: int = 0
    end: int = 0
    hours: int = 0
    share: float = 0.0

    def removed(
        self, channels: Sequence[str], clock: Int[np.ndarray, " t"], rng: np.random.Generator
    ) -> Bool[np.ndarray, "t c"]:
        """The cells of one window that are taken away, recorded or not.

        Args:
          clock: local minute of the day of each step.
        """
        minutes = np.arange(len(clock))
        if self.kind == "sensor":
            of_sensor = np.array([REGISTRY[name].sensor == self.sensor for name in channels])
            return np.broadcast_to(of_sensor, (len(clock), len(channels)))
        if self.kind == "gaps":
            count = -(-len(clock) // _GAP_MINUTES)
            # The first of a random order: gaps of a larger share contain those of a smaller one.
            rank = rng.random((count, len(channels))).argsort(axis=0).argsort(axis=0)
            return (rank < round(self.share * count))[minutes // _GAP_MINUTES]
        if self.hours:
            first = int(rng.integers(max(len(clock) - 60 * self.hours, 0) + 1))
            inside = (minutes >= first) & (minutes < first + 60 * self.hours)
        else:
            inside = (clock >= 60 * self.start) & (clock < 60 * self.end)
        return np.broadcast_to(inside[:, None], (len(clock), len(channels)))


def removals(channels: Iterable[str]) -> list[Removal]:
    """All removals for a dataset with these channels; no sensor where there is one only."""
    sensors = list(dict.fromkeys(REGISTRY[name].sensor for name in channels))
    return [
        *(Removal("sensor", f"without {sensor}", sensor=sensor) for sensor in (sensors if len(sensors) > 1 else [])),
        *(Removal("hours", f"without {name}", start=start, end=end) for name, (start, end) in _HOURS.items()),
        *(Removal("hours", f"without {hours} h", hours=hours) for hours in _BLOCK_HOURS),
        *(Removal("gaps", f"without {share:.0%}", share=share) for share in _GAP_SHARES),
    ]


def reduced(
    batches: Iterable[tuple[Batch, list[WindowInfo]]], channels: Sequence[str], removal: Removal, seed: int
) -> Iterator[tuple[Batch, list[WindowInfo]]]:
    """Batches from which something is taken away: a function of seed, removal and window only."""
    for batch, infos in batches:
        observed = batch["observed"].copy()
        for row, info in enumerate(infos):
            window = f"{removal.kind} {info.participant} {info.index} {info.offset}"
            rng = np.random.default_rng([seed, zlib.crc32(window.encode())])
            clock = (int(batch["start_minute"][row]) + np.arange(observed.shape[1])) % MINUTES_PER_DAY
            observed[row] &= ~removal.removed(channels, clock, rng)
        yield {**batch, "observed": observed, "values": np.where(observed, batch["values"], 0)}, infos
