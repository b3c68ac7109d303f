"""A dataset, an objective and configurations small enough to train dozens of times; also a program that trains.

Run as `python small_training.py DATASET WORKDIR` it takes the further arguments of `lsm train`.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lsm_jax.channels import channels as registered
from lsm_jax.config import Config, defaults, load_config
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import write_dataset
from lsm_jax.objectives import OBJECTIVES, Objective
from lsm_jax.train import processes
from lsm_jax.train.loop import train
from lsm_jax.windows import Window, checked_window, hash_participant

CHANNELS = ("heart_rate", "steps", "skin_temperature")
MINUTES = 30
_WIDTH, _HIDDEN, _LAYERS = 8, 16, 2


class Regression(Objective):
    """Predicts hidden cells from shown ones with two residual blocks: every mechanism of the real one, in little."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        self._cells = spec.window_minutes * len(spec.channels)
        self.implementations = {"attention": "none"}

    def init(self, rng: jax.Array) -> dict[str, Any]:
        first, second, third, last = jax.random.split(rng, 4)
        normal = lambda key, *shape: 0.3 * jax.random.normal(key, shape)  # noqa: E731
        return {
            "encoder": {
                "patches": {"projection": {"kernel": normal(first, self._cells, _WIDTH)}},
                "blocks": {
                    "feed_forward": {
                        "expand": {
                            "kernel": normal(second, _LAYERS, _WIDTH, _HIDDEN),
                            "bias": jnp.zeros((_LAYERS, _HIDDEN)),
                        },
                        "contract": {
                            "kernel": normal(third, _LAYERS, _HIDDEN, _WIDTH),
                            "bias": jnp.zeros((_LAYERS, _WIDTH)),
                        },
                    }
                },
            },
            "head": {"kernel": normal(last, _WIDTH, self._cells), "bias": jnp.zeros(self._cells)},
        }

    def loss(self, params: Mapping[str, Any], batch: Mapping[str, jax.Array], rng: jax.Array) -> tuple[Any, Any]:
        values, observed = (batch[name].reshape(-1, self._cells) for name in ("values", "observed"))
        keys = jax.vmap(lambda example: jax.random.fold_in(rng, example))(batch["window_id"])
        hidden = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (self._cells,)))(keys) & observed
        encoder = params["encoder"]
        tokens = jnp.where(observed & ~hidden, values, 0) @ encoder["patches"]["projection"]["kernel"]
        tokens, _ = jax.lax.scan(_block, tokens, encoder["blocks"]["feed_forward"])
        predicted = tokens @ params["head"]["kernel"] + params["head"]["bias"]
        weight = hidden.sum().astype(jnp.float32)
        loss = jnp.where(hidden, jnp.square(predicted - values), 0).sum() / jnp.maximum(weight, 1)
        share = hidden.mean(axis=1).mean()
        return loss, {"loss_weight": weight, "hidden_share": share, "useful_flops": 6.0 * weight}


# `load_config` runs this file again as a configuration, which must not register a second class.
OBJECTIVES.setdefault("small_regression", Regression)  # type: ignore[attr-defined]


def _block(tokens: jax.Array, layer: Mapping[str, Any]) -> tuple[jax.Array, None]:
    expanded = jax.nn.gelu(tokens @ layer["expand"]["kernel"] + layer["expand"]["bias"])
    return tokens + expanded @ layer["contract"]["kernel"] + layer["contract"]["bias"], None


def small_windows(people: int = 24, days: int = 2) -> Iterator[Window]:
    """Windows of half an hour with gaps."""
    random = np.random.default_rng(7)
    kinds = registered(CHANNELS)
    for person in range(people):
        for day in range(days):
            values = np.stack([random.normal(kind.mean, kind.sd / 3, MINUTES).clip(kind.low) for kind in kinds], axis=1)
            values[random.random(values.shape) < 0.3] = np.nan
            start = dt.datetime(2024, 3, 1 + day, 6, tzinfo=dt.UTC)
            participant = hash_participant(str(person), "test")
            yield checked_window(values, CHANNELS, participant=participant, start=start)[0]


def small_dataset(folder: Path) -> Path:
    """Writes the dataset of these tests."""
    write_dataset(folder, "half_hours", CHANNELS, small_windows())
    return folder


def get_config(variant: str = "") -> ConfigDict:
    """Twelve steps with everything that has state in use."""
    config = defaults()
    config.data.window_minutes = MINUTES
    config.data.prefetch = 2
    config.objective.name = "small_regression"
    config.train.batch_size = 8
    config.train.duration = "12 steps"
    config.train.log_every = "1 steps"
    config.train.ema_decay = 0.9
    config.train.grad_accum_steps = 2
    config.train.peak_flops = 1e9
    config.checkpoint.every = "4 steps"
    config.evaluate.every = "6 steps"
    config.evaluate.batches = 1
    return config


def small_config(dataset: Path, *overrides: str) -> Config:
    """The configuration on a dataset, with `key=value` changes."""
    changes = [f"--config.data.paths={dataset}", *(f"--config.{override}" for override in overrides)]
    return load_config(__file__, changes)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--coordinator")
    parser.add_argument("--process-id", type=int)
    parser.add_argument("--process-count", type=int)
    args, overrides = parser.parse_known_args(arguments)
    processes.initialise(args.coordinator, args.process_id, args.process_count)
    train(load_config(__file__, [f"--config.data.paths={args.dataset}", *overrides]), args.workdir)


if __name__ == "__main__":
    main(sys.argv[1:])
