"""The loader, against reading the same records and against copying the same bytes in memory.

All deliver the same windows in the same order. `loader` decodes, normalises and batches them ahead of time, in threads
or processes; `raw` only reads the records; `copy` copies a finished batch, the least that a loader can do.
"""

from __future__ import annotations

import contextlib
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
from lsm_jax.tools.bench.harness import Contender, machine, race, spread, write_report
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
    with contextlib.ExitStack() as stack:
        folder = data or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "synthetic"
        if data is None:
            write_dataset(folder, "synth", MINUTELY_26, synthetic_windows(people=50, days=8))
        results = _measure(folder, settings, progress)
    write_report(out, machine_before, settings, results, data=folder.name)
    return results


def _measure(data: Path, settings: InputBench, progress: Callable[[int, int], None] | None) -> list[dict[str, Any]]:
    loaders = {f"loader {workers}": _TimedLoader(data, settings, workers) for workers in settings.workers}
    first = next(iter(loaders.values()))
    first.open(0)
    batch = first.next_batch()
    first.close()
    target = {name: np.empty_like(part) for name, part in batch.items()}

    def copy(_: int) -> None:
        for _ in range(settings.batches):
            for name, part in batch.items():
                np.copyto(target[name], part)

    contenders = [
        *(Contender(name, loader.run, loader.open, loader.close) for name, loader in loaders.items()),
        Contender("raw", _raw_reader(data, settings)),
        Contender("copy", copy),
    ]
    timings = race(contenders, settings.repeats, settings.budget, progress)
    windows = settings.batch_size * settings.batches
    batch_bytes = float(sum(part.nbytes for part in batch.values()) * settings.batches)
    results = []
    for label, timing in timings.items():
        name, _, workers = label.partition(" ")
        seconds = spread(timing.seconds)
        read_bytes = float(np.mean(timing.returned[1:])) if name == "raw" else batch_bytes
        result = {
            "name": name,
            "windows_per_second": windows / seconds["median"],
            "bytes_per_second": read_bytes / seconds["median"],
            "workers": int(workers) if workers else None,
            "spread": seconds,
        }
        if workers in ("", "0"):  # the processor time of other processes is not known
            result["windows_per_cpu_second"] = windows / float(np.median(timing.cpu_seconds))
        results.append(result)
    return results


class _TimedLoader:
    """The loader, opened for every round: one that waits for its turn would have batches ready."""

    def __init__(self, data: Path, settings: InputBench, workers: int) -> None:
        self._config = DataConfig(paths=(str(data),), workers=workers)
        self._settings = settings
        self._datasets = open_datasets(self._config)
        self._spec = data_spec(self._config, self._datasets)

    def open(self, number: int) -> None:
        settings = self._settings
        position = number * settings.batches
        self._loader = Loader(
            self._config, self._datasets, self._spec, _SPLIT, settings.seed, settings.batch_size, position
        )
        for _ in range(_READ_AHEAD):
            self.next_batch()

    def next_batch(self) -> dict[str, np.ndarray]:
        return next(self._loader)

    def run(self, _: int) -> None:
        for _ in range(self._settings.batches):
            self.next_batch()

    def close(self) -> None:
        self._loader.close()


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
