"""Small datasets shared by the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from random_windows import CHANNELS, OTHER_CHANNELS, random_windows

from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.config import DataConfig
from lsm_jax.data import faults
from lsm_jax.data.store import Dataset, open_dataset, write_dataset
from lsm_jax.data.text import CaptionTokens


@pytest.fixture(autouse=True, scope="session")
def no_waiting() -> Iterator[None]:
    """Failed reads are tried again at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "_WAITS", (0.0,) * len(faults._WAITS))
        yield


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
    return lambda dataset: Path(shutil.copytree(dataset.path, tmp_path / "copy"))
