"""Every objective on windows of half an hour: small enough to train dozens of times.

Also a configuration file: `lsm train --config tests/train/short_training.py` is LSM-2 with everything in use that has
state; `short_training.py:coca` and so on are the other objectives.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lsm_jax import objectives
from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.config import Config, defaults, load_config
from lsm_jax.data.loader import Loader
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import write_dataset
from lsm_jax.train.mesh import make_mesh, to_devices
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import Program, make_program
from lsm_jax.windows import Event, Window, checked_window, hash_participant

CHANNELS = ("heart_rate", "steps", "skin_temperature")
MINUTES = 30
STEPS = 12
ACTIVITIES = ("running", "stair climbing", "yoga")
LANGUAGE = ("clip", "siglip", "coca")
VARIANTS = ("imputed_reconstruction", *LANGUAGE)


def get_config(variant: str = "") -> ConfigDict:
    """LSM-2 with its local context, two windows to a row, micro-batches and averaged parameters; or an objective."""
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
    if variant:
        config.objective.name = variant
    if variant == "imputed_reconstruction":
        _lsm1(config)
    if variant in LANGUAGE:
        _language(config)
    return config


def _lsm1(config: ConfigDict) -> None:
    """The plain masked autoencoder, as in `configs/lsm1.py`."""
    config.tokens.patch_channels = 2
    config.masking.policies = (("random", 0.5, 1.0),)
    config.masking.share_of = "grid"
    config.rows.layout = "fixed_drop"
    config.model.decoder = "all"
    config.model.positions = "sincos"
    config.model.patch_input = "values"
    config.model.asinh_inputs = False
    config.model.num_neighbors = 0


def _language(config: ConfigDict) -> None:
    """Windows beside semantic captions, stretches of windows among them. It has no micro-batches."""
    config.model.size = "1x16x2x32+1x16x2x32+1x16x2x32"
    config.tokens.patch_channels = 3
    config.rows.encoder_length = 6
    config.language.levels = "semantic"
    config.language.vocab_size = 280
    config.language.text_length = 32
    config.language.embed_dim = 16
    config.language.caption_queries = 2
    config.language.event_crop_prob = 0.5
    config.train.grad_accum_steps = 1


def short_config(dataset: Path, *overrides: str, variant: str = "") -> Config:
    """The configuration of an objective on a dataset, with `key=value` changes."""
    return load_config(f"{__file__}:{variant}", arguments(dataset, *overrides, variant=variant))


def arguments(dataset: Path, *overrides: str, variant: str = "") -> list[str]:
    """What names the dataset, and the tokenizer for captions, on the command line."""
    own = [f"data.paths={dataset}"]
    own += [f"language.tokenizer={dataset.with_name('tokenizer.json')}"] if variant in LANGUAGE else []
    return [f"--config.{override}" for override in (*own, *overrides)]


def half_hour_windows(people: int = 24, days: int = 2) -> Iterator[Window]:
    """A level and a trend per window that all channels share, noise and gaps; a logged activity."""
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
            window = checked_window(values, CHANNELS, participant=participant, start=start)[0]
            begin = (days * person + day) % 8
            yield dataclasses.replace(window, events=(Event("activity", ACTIVITIES[person % 3], begin, begin + 22),))


def half_hour_dataset(folder: Path) -> Path:
    """Writes the dataset of these tests: 24 people, two windows each; and beside it a tokenizer of their captions."""
    write_dataset(folder, "half_hours", CHANNELS, half_hour_windows())
    captioner = Captioner(("semantic",))
    texts = [captioner(window).text for window in half_hour_windows()]
    Tokenizer.train(texts, 280).save(folder.with_name("tokenizer.json"))
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
