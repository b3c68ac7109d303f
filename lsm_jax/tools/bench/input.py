"""The loader against the raw read of the same records and a bare copy of the same bytes.

All three deliver the same windows in the same order. `loader` decodes, normalises and batches them, ahead of who takes
them, with 0 or more processes; `raw` reads the records and does nothing with them; `copy` moves a ready batch in
memory, which no loader can beat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from lsm_jax.config import DataConfig
from lsm_jax.data.loader import Loader
from lsm_jax.data.order import DataOrder
from lsm_jax.data.shards import list_shards, read_info
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.tools.bench.harness import Contender, race, spread
from lsm_jax.tools.bench.report import machine, write_report

_AHEAD = 8  # batches taken before the clock starts: more than the loader reads ahead, so none is a gift
_SPLIT = "train"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      workers: processes of the loader; 0: threads of this one.
      batch_size, batches: windows of a batch, batches of a round.
      rounds, budget: of each contender, and seconds for all together.
    """

    workers: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 32
    batches: int = 32
    rounds: int = 10
    budget: float = 120.0
    seed: int = 0


def measure(
    data: Path, settings: Settings, out: Path, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Measures the input of a dataset folder and writes `out`; UserError where it is no dataset."""
    measured_on = machine()
    config = DataConfig(paths=(str(data),))
    loaded = {workers: _Loaded(config, settings, workers) for workers in settings.workers}
    raw = _Raw(data, settings)
    batch = loaded[settings.workers[0]].first_batch()
    copy = {name: np.empty_like(part) for name, part in batch.items()}

    def copied(_: int) -> None:
        for _ in range(settings.batches):
            for name, part in batch.items():
                np.copyto(copy[name], part)

    contenders = [
        *(Contender(f"loader {workers}", made.run, made.prepare, made.close) for workers, made in loaded.items()),
        Contender("raw", raw.run),
        Contender("copy", copied),
    ]
    timings = race(contenders, settings.rounds, settings.budget, progress)
    windows = settings.batch_size * settings.batches
    batch_bytes = float(sum(part.nbytes for part in batch.values()) * settings.batches)
    results = []
    for contender in contenders:
        timing = timings[contender.name]
        name, _, workers = contender.name.partition(" ")
        seconds = spread(timing.seconds)
        moved = float(np.mean(timing.returned[1:])) if name == "raw" else batch_bytes
        result = {
            "name": name,
            "windows_per_second": windows / seconds["median"],
            "bytes_per_second": moved / seconds["median"],
            "workers": int(workers) if workers else None,
            "spread": seconds,
        }
        # Of processes that read ahead the clock of this one knows nothing.
        if not workers or workers == "0":
            result["windows_per_cpu_second"] = windows / float(np.median(timing.cpu_seconds))
        results.append(result)
    write_report(out, measured_on, {"data": data.name, **dataclasses.asdict(settings)}, results)
    return results


class _Loaded:
    """The loader, opened anew for every round: one that waited its turn would have batches ready."""

    def __init__(self, config: DataConfig, settings: Settings, workers: int) -> None:
        self._config = dataclasses.replace(config, workers=workers)
        self._settings = settings
        self._datasets = open_datasets(self._config)
        self._spec = data_spec(self._config, self._datasets)
        self._loader: Loader | None = None

    def first_batch(self) -> dict[str, np.ndarray]:
        self.prepare(0)
        assert self._loader is not None
        batch = next(self._loader)
        self.close()
        return batch

    def prepare(self, number: int) -> None:
        settings = self._settings
        position = number * settings.batches
        self._loader = Loader(
            self._config, self._datasets, self._spec, _SPLIT, settings.seed, settings.batch_size, position
        )
        for _ in range(_AHEAD):
            next(self._loader)

    def run(self, _: int) -> None:
        assert self._loader is not None
        for _ in range(self._settings.batches):
            next(self._loader)

    def close(self) -> None:
        if self._loader is not None:
            self._loader.close()
            self._loader = None


class _Raw:
    """The records as stored, one after the other."""

    def __init__(self, data: Path, settings: Settings) -> None:
        shards = list_shards(data, read_info(data))[_SPLIT]
        self._source = ArrayRecordDataSource([str(data / shard) for shard in shards])
        self._order = DataOrder(settings.seed, [len(self._source)], [1.0])
        self._windows = settings.batch_size * settings.batches
        self._ahead = settings.batch_size * _AHEAD

    def run(self, number: int) -> int:
        """Reads a round's records and returns their bytes."""
        first = number * self._windows + self._ahead
        _, windows = self._order.lookup(first + np.arange(self._windows))
        return sum(len(self._source[int(window)]) for window in windows)
