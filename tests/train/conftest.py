"""Fixtures of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_training import half_hour_dataset, short_config

from lsm_jax.train.loop import train


@pytest.fixture(scope="session")
def half_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of windows of half an hour: 24 people, two windows each."""
    return half_hour_dataset(tmp_path_factory.mktemp("data") / "half_hours")


@pytest.fixture(scope="session")
def whole_run(half_hours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of LSM-2 without interruption, with all its checkpoints."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train(short_config(half_hours), workdir)
    return workdir
