"""Runs whose folder is in an object store, against an emulator: cut at any instant, they go on bit for bit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import short_training
from short_training import short_config
from stores import BUCKET, emulator

from lsm_jax import storage
from lsm_jax.errors import UserError
from lsm_jax.storage import Store, upload_folder
from lsm_jax.train.loop import train
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.run import load_run

# A host that is lost while it uploads checkpoint 8: all files are there but one and the manifest.
LOST_IN_STEP_8 = """
import os, signal, sys
from lsm_jax.cli.main import main
from lsm_jax.storage import Store

upload = Store.upload

def dies(self, files):
    if "checkpoints/8/_METADATA" in files:
        upload(self, {"checkpoints/8/_METADATA": files["checkpoints/8/_METADATA"]})
        os.kill(os.getpid(), signal.SIGKILL)
    upload(self, files)

Store.upload = dies
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def data_url(half_hours: Path, tmp_path_factory: pytest.TempPathFactory):
    """The dataset of these tests, in a store."""
    with emulator("s3"):
        url = f"s3://{BUCKET}/data"
        upload_folder(half_hours, url)
        yield url


def command(data: str, run: str, *options: str) -> list[str]:
    return ["train", f"--config={short_training.__file__}", f"--workdir={run}", f"--config.data.paths={data}", *options]


def on_host(name: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a host of its own: it shares no folder with others. It has one device, as these tests have."""
    return {**os.environ, "LSM_STORE_CACHE": str(tmp_path / name), "JAX_NUM_CPU_DEVICES": "1"}


def test_a_run_whose_host_is_lost_in_an_upload_goes_on_elsewhere_bit_for_bit(
    data_url: str, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"s3://{BUCKET}/lost"
    arguments = [sys.executable, "-c", LOST_IN_STEP_8, *command(data_url, url)]
    lost = subprocess.run(arguments, env=on_host("first", tmp_path), capture_output=True, text=True, timeout=500)
    assert lost.returncode == -signal.SIGKILL, lost.stderr[-3000:]
    assert "checkpoints/8/_METADATA" in Store(url).files()

    monkeypatch.setenv("LSM_STORE_CACHE", str(tmp_path / "second"))
    assert load_run(url).step == 4
    with pytest.raises(UserError, match=f"{url} has no checkpoint of step 8; it has 4"):
        load_run(url, step=8)
    assert train(short_config(data_url), url) == 12
    assert "resumes from checkpoint 4" in capfd.readouterr().err

    found, expected = load_run(url), load_run(whole_run)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    ours, theirs = (
        [{name: record.get(name) for name in ("step", "loss", "validation_loss")} for record in read_metrics(folder)]
        for folder in (storage.local_copy(url, "copies"), whole_run)
    )
    assert ours == theirs


def test_two_hosts_that_share_no_folder_save_one_checkpoint_and_one_host_goes_on(
    half_hours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["checkpoint.every=2 steps", "evaluate.every=0 steps", "train.grad_accum_steps=1"]
    with emulator("gs"):
        url, data = f"gs://{BUCKET}/two", f"gs://{BUCKET}/data"
        upload_folder(half_hours, data)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            several = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}", "--process-count=2", "--config.mesh.fsdp=2"]
        several += [f"--config.{change}" for change in ("train.duration=3 steps", *changes)]
        arguments = [sys.executable, "-m", "lsm_jax", *command(data, url, *several)]
        processes = [
            subprocess.Popen(
                [*arguments, f"--process-id={number}"],
                env=on_host(f"host-{number}", tmp_path), stderr=subprocess.PIPE, text=True,
            )
            for number in range(2)
        ]  # fmt: skip
        for process in processes:
            _, errors = process.communicate(timeout=500)
            assert process.returncode == 0, errors[-3000:]
        files = {*Store(url).files()}
        assert {
            f"checkpoints/{step}/ocdbt.process_{host}/manifest.ocdbt" for step in (2, 3) for host in (0, 1)
        } <= files
        assert "run.lock" not in files
        assert not list((tmp_path / "host-1").glob("**/*.orbax-checkpoint-tmp*/*.*"))

        monkeypatch.setenv("LSM_STORE_CACHE", str(tmp_path / "third"))
        assert load_run(url).step == 3
        assert train(short_config(data, "train.duration=4 steps", *changes), url) == 4
        steps = [record["step"] for record in read_metrics(storage.local_copy(url, "runs")) if "loss" in record]
        assert steps == [1, 2, 3, 4]
