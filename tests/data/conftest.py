"""Small datasets that the tests of this room share."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.channels import channels as registered
from lsm_jax.config import DataConfig
from lsm_jax.data.store import Dataset, open_dataset, write_dataset
from lsm_jax.data.text import CaptionTokens
from lsm_jax.windows import Event, Window, checked_window, hash_participant

CHANNELS = ("heart_rate", "steps", "skin_temperature")
OTHER_CHANNELS = ("glucose", "heart_rate")


def person(number: int) -> str:
    return hash_participant(f"person {number}", "test")


def random_windows(
    people: int, days: int, channels: tuple[str, ...] = CHANNELS, steps: int = 1440, seed: int = 0
) -> Iterator[Window]:
    """Windows of plausible noise with gaps; steps are whole numbers."""
    random = np.random.default_rng(seed)
    kinds = registered(channels)
    for number in range(people):
        for day in range(days):
            values = np.stack([random.normal(kind.mean, kind.sd / 3, steps) for kind in kinds], axis=1)
            if "steps" in channels:
                column = channels.index("steps")
                values[:, column] = np.abs(values[:, column]).round()
            for column in range(len(channels)):
                start, length = random.integers(0, steps), random.integers(0, steps)
                values[start : start + length, column] = np.nan
            yield checked_window(
                values,
                channels,
                participant=person(number),
                start=dt.datetime(2024, 3, 1, 22, tzinfo=dt.UTC) + dt.timedelta(days=day),
                utc_offset_minutes=120,
                labels={"age": 30.0 + number, "sex": "F" if number % 2 else "M"},
                events=[Event("sleep", "asleep", 0, steps // 3)],
            )[0]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ten people of three days: 7 train, 1 validates, 2 test."""
    folder = tmp_path_factory.mktemp("data") / "small"
    write_dataset(folder, "small", CHANNELS, random_windows(10, 3), description="ten people")
    return open_dataset(folder)


@pytest.fixture(scope="session")
def other_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Another device: other channels, in another order."""
    folder = tmp_path_factory.mktemp("data") / "other"
    write_dataset(folder, "other", OTHER_CHANNELS, random_windows(4, 5, OTHER_CHANNELS, seed=1))
    return open_dataset(folder)


@pytest.fixture(scope="session")
def captions() -> CaptionTokens:
    """Captions of `dataset`'s windows, with a tokenizer trained on them."""
    captioner = Captioner(("semantic", "statistical"), 3)
    return CaptionTokens(captioner, Tokenizer.train([captioner(w).text for w in random_windows(10, 3)], 400), 250)


@pytest.fixture(scope="session")
def data_config() -> Callable[..., DataConfig]:
    """`data_config(dataset, ..., **changes)`: the section `data` of a configuration."""

    def make(*datasets: Dataset, **changes) -> DataConfig:
        return DataConfig(paths=tuple(str(dataset.path) for dataset in datasets), **changes)

    return make


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Dataset], Path]:
    """`copy_of(dataset)`: a copy of its folder to damage."""
    import shutil

    return lambda dataset: Path(shutil.copytree(dataset.path, tmp_path / "copy"))
