"""LSM-2 on windows of half an hour: small enough to train dozens of times, with everything in use that has state.

Also a configuration file: `lsm train --config tests/train/short_training.py`.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lsm_jax import objectives
from lsm_jax.config import Config, defaults, load_config
from lsm_jax.data.loader import Loader
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import write_dataset
from lsm_jax.train.mesh import make_mesh, to_devices
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import Program, make_program
from lsm_jax.windows import Window, checked_window, hash_participant

CHANNELS = ("heart_rate", "steps", "skin_temperature")
MINUTES = 30
STEPS = 12


def get_config(variant: str = "") -> ConfigDict:
    """LSM-2 with its local context, two windows to a row, micro-batches and averaged parameters."""
    config = defaults()
    config.data.window_minutes = MINUTES
    config.data.prefetch = 2
    config.model.size = "1x16x2x32+1x16x2x32"
    config.model.context_width = 16
    config.rows.windows_per_row = 2
    config.rows.encoder_length = 18
    config.rows.decoder_length = 18
    config.train.batch_size = 8
    config.train.duration = f"{STEPS} steps"
    config.train.log_every = "1 steps"
    config.train.ema_decay = 0.9
    config.train.grad_accum_steps = 2
    config.train.peak_flops = 1e9
    config.checkpoint.every = "4 steps"
    config.checkpoint.keep = 9
    config.evaluate.every = "4 steps"
    config.evaluate.batches = 1
    return config


def short_config(dataset: Path, *overrides: str) -> Config:
    """The configuration on a dataset, with `key=value` changes."""
    changes = [f"--config.data.paths={dataset}", *(f"--config.{override}" for override in overrides)]
    return load_config(__file__, changes)


def half_hour_windows(people: int = 24, days: int = 2) -> Iterator[Window]:
    """A level and a trend per window that all channels share, noise and gaps."""
    random = np.random.default_rng(7)
    minutes = np.linspace(-1, 1, MINUTES)[:, None]
    for person in range(people):
        for day in range(days):
            level, trend = random.normal(size=2)
            curve = level + 0.5 * trend * minutes + 0.2 * random.normal(size=(MINUTES, len(CHANNELS)))
            values = np.array([75, 20, 33]) + curve * [10, 6, 0.5]
            values[:, 1] = np.maximum(values[:, 1], 0).round()
            values[random.random(values.shape) < 0.3] = np.nan
            start = dt.datetime(2024, 3, 1 + day, 6, tzinfo=dt.UTC)
            participant = hash_participant(str(person), "test")
            yield checked_window(values, CHANNELS, participant=participant, start=start)[0]


def half_hour_dataset(folder: Path) -> Path:
    """Writes the dataset of these tests: 24 people, two windows each."""
    write_dataset(folder, "half_hours", CHANNELS, half_hour_windows())
    return folder


def program_and_batches(dataset: Path, *overrides: str, count: int = 3) -> tuple[Program, list[Any]]:
    """The program of a configuration, and its first batches on the devices."""
    config = short_config(dataset, *overrides)
    mesh, datasets = make_mesh(config.mesh), open_datasets(config.data)
    spec = data_spec(config.data, datasets)
    program = make_program(config, objectives.build(config, spec), mesh, TrainSchedule(8, 34, STEPS))
    loader = Loader(config.data, datasets, spec, "train", 0, 8)
    batches = [to_devices(mesh, batch, 8) for batch in itertools.islice(loader, count)]
    loader.close()
    return program, batches
