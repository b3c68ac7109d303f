"""`launch/quickstart` itself, on fewer people and with fewer steps, in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl

from lsm_jax.train.metrics import read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_quickstart_ends_with_a_table_and_a_report(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    shutil.copy(REPOSITORY / "launch" / "quickstart", tmp_path / "launch")
    # The package that is being tested is installed already.
    (tmp_path / "launch" / "install").write_text("#!/usr/bin/env bash\n")
    (tmp_path / "launch" / "install").chmod(0o755)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    environment = os.environ | {"LSM_QUICKSTART_PEOPLE": "12", "LSM_QUICKSTART_DAYS": "2"}
    options = ["--config.train.duration=6 steps", "--config.train.log_every=2 steps", "--config.evaluate.batches=1"]
    finished = subprocess.run(
        [tmp_path / "launch" / "quickstart", *options], capture_output=True, text=True, check=False, env=environment
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "| random_imputation" in finished.stdout
    run = tmp_path / "runs" / "quickstart"
    assert json.loads((run / "cohort" / "data_card.json").read_text())["people"] == 12
    assert [record["step"] for record in read_metrics(run) if "loss" in record] == [2, 4, 6]
    assert json.loads((run / "eval" / "generative.json").read_text())["results"]
    assert len(pl.read_parquet(run / "embeddings.parquet")) > 0
    report = (run / "report.html").read_text()
    assert "<html" in report and "random imputation" in report
