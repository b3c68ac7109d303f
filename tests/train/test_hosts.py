"""A run on four processes that goes on with two, and ends with one, is the run of one process."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import short_training
from forked_lsm import forked_lsm
from short_training import STEPS, arguments, short_config

from lsm_jax.train.loop import train
from lsm_jax.train.metrics import read_metrics

COUNTS = (
    "tokens_observed",
    "tokens_visible",
    "tokens_targets",
    "loss_weight",
    "text_share",
    "learning_rate",
    "skipped",
)
VALUES = ("loss", "validation_loss", "gradient_norm")


@pytest.mark.parametrize("variant", ["", "siglip"])
def test_four_hosts_then_two_then_one(half_hours: Path, tmp_path: Path, variant: str) -> None:
    """Equal counts of tokens: the global batches and their masks are the same. Values differ by the order of sums."""
    changes = ["optimizer.schedule=constant", "optimizer.warmup=0 steps", "train.grad_accum_steps=1"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert train(short_config(half_hours, *changes, variant=variant), alone) == STEPS
    with forked_lsm(tmp_path) as start:
        for stage, count in enumerate((4, 2, 1), 1):
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
            steps = f"train.duration={stage * STEPS // 3} steps"
            command = ["train", f"--config={short_training.__file__}:{variant}", f"--workdir={shared}"]
            command += arguments(half_hours, *changes, steps, variant=variant)
            processes = [
                start(*command, *((address, f"--process-count={count}", f"--process-id={number}") if count > 1 else ()))
                for number in range(count)
            ]
            for process in processes:
                process.join(300)
            assert [process.exitcode for process in processes] == [0] * count, [
                file.read_text()[-2000:] for file in sorted(tmp_path.glob("*.log"))[-count:]
            ]
    ours, theirs = read_metrics(alone), read_metrics(shared)
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert {name: one.get(name) for name in COUNTS} == {name: other.get(name) for name in COUNTS}
        for name in VALUES:
            if name in one:
                np.testing.assert_allclose(one[name], other[name], rtol=2e-5, err_msg=f"{name} at {one['step']}")
