"""What the loop adds to a bare step: `python tests/train/measure_overhead.py`.

Trains the small objective of these tests, whose step takes next to nothing, and calls the same compiled step on one
batch as often. The difference is what the loop does: taking batches, dispatch, metrics, records and the clock. CPU time
of the main thread is compared, since the wall time of so short a step says more about the machine's other work.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import jax
from small_training import Regression, small_config, small_dataset

from lsm_jax.data.loader import Loader
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.train.loop import train
from lsm_jax.train.mesh import make_mesh, to_devices
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import make_program

FEW, MANY = 200, 2200


def bare(dataset: Path) -> float:
    """Main-thread CPU milliseconds per step: the compiled step alone, its metrics fetched."""
    config = small_config(dataset)
    mesh, spec = make_mesh(config.mesh), data_spec(config.data, open_datasets(config.data))
    program = make_program(config, Regression(config, spec), mesh, TrainSchedule(8, 34, MANY))
    batch = to_devices(mesh, next(Loader(config.data, open_datasets(config.data), spec, "train", 0, 8)), 8)
    state, _ = program.step(program.init(), batch)
    begin = time.thread_time()
    for _ in range(MANY - FEW):
        state, metrics = program.step(state, batch)
        jax.device_get(metrics)
    return (time.thread_time() - begin) / (MANY - FEW) * 1e3


def loop(dataset: Path, workdir: Path, steps: int) -> float:
    """Main-thread CPU milliseconds of a run."""
    changes = (f"train.duration={steps} steps", f"checkpoint.every={steps} steps")
    begin = time.thread_time()
    train(small_config(dataset, *changes, "train.log_every=50 steps", "evaluate.every=0 steps"), workdir)
    return (time.thread_time() - begin) * 1e3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = small_dataset(Path(folder) / "half_hours")
        runs = {steps: Path(folder) / str(steps) for steps in (FEW, FEW + 1, MANY)}
        spent = {steps: loop(dataset, workdir, steps) for steps, workdir in runs.items()}  # the first one warms up
        print(f"loop: {(spent[MANY] - spent[FEW + 1]) / (MANY - FEW - 1):.3f} ms of main-thread CPU per step")
        print(f"bare step: {bare(dataset):.3f} ms")
        time_of = read_metrics(runs[MANY])[-1]["time"]
        print("wall, ms per step:", {name: round(time_of[name] / MANY * 1e3, 3) for name in ("step", "input")})


if __name__ == "__main__":
    main()
