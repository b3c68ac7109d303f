"""What the loop adds to a bare step: `python tests/training/measure_overhead.py`.

Trains the small objective of these tests, whose step takes next to nothing, and calls the same compiled step on one
batch as often as fast as it goes. The difference is reading batches, dispatch, metrics, records and the clock.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import jax
from small_training import Regression, small_config, small_dataset

from lsm_jax.data.loader import Loader
from lsm_jax.data.spec import data_spec
from lsm_jax.training.duration import Schedule
from lsm_jax.training.loop import train
from lsm_jax.training.mesh import make_mesh, to_devices
from lsm_jax.training.metrics import read_metrics
from lsm_jax.training.state import make_program

STEPS = 2000


def bare_milliseconds(dataset: Path) -> float:
    """Per step: compiled step alone, each waited for."""
    config = small_config(dataset)
    mesh, spec = make_mesh(config.mesh), data_spec(config.data)
    program = make_program(config, Regression(config, spec), mesh, Schedule(8, 34, STEPS))
    batch = to_devices(mesh, next(Loader(config.data, spec, "train", 0, 8)), 8)
    state, _ = program.step(program.init(), batch)
    begin = time.perf_counter()
    for _ in range(STEPS):
        state, metrics = program.step(state, batch)
        jax.block_until_ready(metrics)
    return (time.perf_counter() - begin) / STEPS * 1e3


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        dataset = small_dataset(Path(folder) / "half_hours")
        changes = (f"train.duration={STEPS} steps", "train.log_every=50 steps", "evaluate.every=0 steps")
        train(small_config(dataset, *changes, f"checkpoint.every={STEPS} steps"), Path(folder) / "run")
        records = [record["time"] for record in read_metrics(Path(folder) / "run")]
        spent = {bucket: records[-1][bucket] - records[0][bucket] for bucket in ("step", "input", "other")}
        milliseconds = {bucket: value / (STEPS - 50) * 1e3 for bucket, value in spent.items()}
        print("loop, ms per step:", {bucket: round(value, 3) for bucket, value in milliseconds.items()})
        print("bare step, ms:", round(bare_milliseconds(dataset), 3))


if __name__ == "__main__":
    main()
