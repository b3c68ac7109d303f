"""The loader, against reading the same records and against copying the same bytes in memory.

All deliver the same windows in the same order. `loader` decodes, normalises and batches them ahead of time, in threads
or processes; `raw` only reads the records; `copy` copies a finished batch, the least that a loader can do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import DataConfig
from lsm_jax.data.loader import Loader
from lsm_jax.data.order import DataOrder
from lsm_jax.data.shards import list_shards, read_info
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import write_dataset
from lsm_jax.synth.cohort import windows as synthetic_windows
from lsm_jax.tools.bench.harness import Contender, machine, race, report_row, write_report
from lsm_jax.tools.bench.settings import InputBench

_READ_AHEAD = 8  # batches taken before the clock starts, more than the loader has ready
_SPLIT = "train"


def measure(
    data: Path | None, settings: InputBench, out: Path, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Measures the input of a dataset, a synthetic one if there is none, and writes `out`.

    Raises:
      UserError: the folder is no dataset.
    """
    machine_before = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = data or Path(temporary) / "synthetic"
        if data is None:
            write_dataset(folder, "synth", MINUTELY_26, synthetic_windows(people=50, days=8))
        results = _measure(folder, settings, progress)
    write_report(out, machine_before, settings, results, data=folder.name)
    return results


def _measure(data: Path, settings: InputBench, progress: Callable[[int, int], None] | None) -> list[dict[str, Any]]:
    loaders = {workers: _TimedLoader(data, settings, workers) for workers in settings.workers}
    batch = loaders[settings.workers[0]].first_batch()
    target = {name: np.empty_like(part) for name, part in batch.items()}

    def copy(_: int) -> None:
        for _ in range(settings.batches):
            for name, part in batch.items():
                np.copyto(target[name], part)

    contenders = [
        *(Contender(f"loader {workers}", each.run, each.open, each.close) for workers, each in loaders.items()),
        Contender("raw", _raw_reader(data, settings)),
        Contender("copy", copy),
    ]
    timings = race(contenders, settings.repeats, settings.budget, progress)
    windows = settings.batch_size * settings.batches
    batch_bytes = float(sum(part.nbytes for part in batch.values()) * settings.batches)
    results = []
    for label, timing in timings.items():
        name, _, workers = label.partition(" ")
        read_bytes = float(np.mean(timing.returned[1:])) if name == "raw" else batch_bytes
        columns = {
            "name": name,
            "windows_per_second": windows / timing.median,
            "bytes_per_second": read_bytes / timing.median,
            "workers": int(workers) if workers else None,
        }
        if workers in ("", "0"):  # the processor time of other processes is not known
            columns["windows_per_cpu_second"] = windows / timing.cpu_median
        results.append(report_row(columns, label, {"raw": "raw", "copy": "copy"}, timings))
    return results


class _TimedLoader:
    """The loader, opened for every round: one that waits for its turn would have batches ready."""

    def __init__(self, data: Path, settings: InputBench, workers: int) -> None:
        self._settings = settings
        self._config = DataConfig(paths=(str(data),), workers=workers)
        self._datasets = open_datasets(self._config)
        self._spec = data_spec(self._config, self._datasets)

    def open(self, number: int) -> None:
        settings = self._settings
        position = number * settings.batches
        self._loader = Loader(
            self._config, self._datasets, self._spec, _SPLIT, settings.seed, settings.batch_size, position
        )
        self._take(_READ_AHEAD)

    def run(self, _: int) -> None:
        self._take(self._settings.batches)

    def close(self) -> None:
        self._loader.close()

    def first_batch(self) -> dict[str, np.ndarray]:
        self.open(0)
        batch = next(self._loader)
        self.close()
        return batch

    def _take(self, batches: int) -> None:
        for _ in range(batches):
            next(self._loader)


def _raw_reader(data: Path, settings: InputBench) -> Callable[[int], int]:
    """Reads the records of a round one after the other and returns their bytes."""
    shards = list_shards(data, read_info(data))[_SPLIT]
    source = ArrayRecordDataSource([str(data / shard) for shard in shards])
    order = DataOrder(settings.seed, [len(source)], [1.0])
    windows = settings.batch_size * settings.batches

    def run(number: int) -> int:
        first = number * windows + settings.batch_size * _READ_AHEAD
        _, indices = order.lookup(first + np.arange(windows))
        return sum(len(source[int(index)]) for index in indices)

    return run
