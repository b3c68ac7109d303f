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
from lsm_jax.data.loader import Batch, Loader
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
) -> dict[str, Any]:
    """Measures the input of a dataset, a synthetic one if there is none, writes `out` and returns what it wrote.

    Raises:
      UserError: the folder is no dataset.
    """
    machine_before = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = data or Path(temporary) / "synthetic"
        if data is None:
            write_dataset(folder, "synth", MINUTELY_26, synthetic_windows(people=50, days=8))
        results = _measure(folder, settings, progress)
    return write_report(out, machine_before, settings, results, data=folder.name)


def _measure(data: Path, settings: InputBench, progress: Callable[[int, int], None] | None) -> list[dict[str, Any]]:
    loaders = [_timed_loader(data, settings, workers) for workers in dict.fromkeys(settings.workers)]
    batch = loaders[0].prepare(0)
    loaders[0].finish()
    target = {name: np.empty_like(part) for name, part in batch.items()}

    def copy(_: int) -> None:
        for _ in range(settings.batches):
            for name, part in batch.items():
                np.copyto(target[name], part)

    contenders = [
        *loaders,
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


def _timed_loader(data: Path, settings: InputBench, workers: int) -> Contender:
    """The loader, opened for every round: one that waits for its turn would have batches ready."""
    config = DataConfig(paths=(str(data),), workers=workers)
    datasets = open_datasets(config)
    spec = data_spec(config, datasets)
    loader: Loader

    def start(number: int) -> Batch:
        nonlocal loader
        loader = Loader(config, datasets, spec, _SPLIT, settings.seed, settings.batch_size, number * settings.batches)
        return [next(loader) for _ in range(_READ_AHEAD)][-1]

    def run(_: int) -> None:
        for _ in range(settings.batches):
            next(loader)

    return Contender(f"loader {workers}", run, start, lambda: loader.close())


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
