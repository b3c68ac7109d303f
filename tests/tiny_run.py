"""A small dataset and an untrained run on it, for tests of what comes after training."""

import dataclasses
import datetime as dt

import jax
import jax.numpy as jnp
import numpy as np

from lsm_jax import objectives
from lsm_jax.config import Config, DataConfig
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.train.checkpoints import Checkpoints, CheckpointState
from lsm_jax.train.run import Run
from lsm_jax.train.state import State
from lsm_jax.train.workdir import write_config
from lsm_jax.windows import checked_window, hash_participant

CHANNELS = ("heart_rate", "steps", "skin_temperature")
MINUTES = 240
START = dt.datetime(2024, 3, 4, tzinfo=dt.UTC)  # a Monday


def tiny_windows(people=12, days=3, seed=0, empty_window=False):
    """Windows of four hours from midnight on: a curve of the person's own, noise, gaps; labels of both kinds."""
    rng = np.random.default_rng(seed)
    for person in range(people):
        level = rng.normal(size=3)
        for day in range(days):
            curve = np.sin(np.arange(MINUTES) / 40 + level[0])[:, None] * [8, 6, 0.5]
            values = [70, 12, 33] + level * [6, 3, 0.5] + curve + rng.normal(size=(MINUTES, 3)) * [3, 2, 0.1]
            values[:, 1] = np.maximum(values[:, 1], 0).round()
            values[rng.random(values.shape) < 0.2] = np.nan
            values[60 + 10 * person : 90 + 10 * person] = np.nan
            if empty_window and day == days - 1:
                values[:] = np.nan
            yield checked_window(
                values.astype(np.float32),
                CHANNELS,
                participant=hash_participant(f"person {person}", "salt"),
                start=START + dt.timedelta(days=day),
                labels={"age": 20.0 + person, "sex": "FM"[person % 2]},
            )[0]


def tiny_dataset(folder, name="tiny", **kwargs):
    """The dataset at `folder`, written there."""
    write_dataset(folder, name, CHANNELS, tiny_windows(**kwargs))
    return open_dataset(folder)


def tiny_config(*folders):
    """A configuration of a very small model on these datasets."""
    return Config(data=DataConfig(tuple(str(folder) for folder in folders), window_minutes=MINUTES))


def tiny_run(*folders, step=7):
    """An untrained run."""
    config = tiny_config(*folders)
    spec = data_spec(config.data, open_datasets(config.data))
    objective = objectives.build(config, spec)
    return Run(config, spec, objective, jax.jit(objective.init)(jax.random.key(0)), step)


def perturbed(run):
    """The run with noise on its parameters: initial biases are zeros, which would hide what an export leaves out."""
    random = np.random.default_rng(0)
    noise = lambda leaf: leaf + 0.1 * random.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return dataclasses.replace(run, params=jax.tree.map(noise, run.params))


def save_run(run, workdir):
    """Writes a run as the training loop leaves it, without the minute that compiling a training step takes."""
    write_config(workdir, run.config, run.spec)
    state = State(jnp.int32(run.step), jnp.int32(0), {}, run.params, (), {}, jax.random.key_data(jax.random.key(0)))
    checkpoints = Checkpoints(workdir / "checkpoints", 2, lambda *_, **__: None)
    checkpoints.save(CheckpointState(state, 0, {"step": 1.0}))
    checkpoints.close()
