"""The data specification: pooled moments, observed shares of a mixture, and its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lsm_jax.channels import channel
from lsm_jax.data.spec import DataSpec, data_spec, mixture_weights, open_datasets
from lsm_jax.data.store import Dataset
from lsm_jax.errors import UserError


def training_cells(dataset: Dataset, name: str) -> np.ndarray:
    column = dataset.channels.index(name)
    windows = list(dataset.source("train"))
    return np.concatenate([window.values[window.observed[:, column], column] for window in windows]).astype(np.float64)


def test_moments_of_two_datasets_are_those_of_their_cells_together(dataset, other_dataset, data_config) -> None:
    spec = data_spec(data_config(dataset, other_dataset), [dataset, other_dataset])
    assert spec.channels == ("heart_rate", "steps", "skin_temperature", "glucose"), "the registry's order"
    cells = np.concatenate([training_cells(part, "heart_rate") for part in (dataset, other_dataset)])
    np.testing.assert_allclose([spec.mean[0], spec.sd[0]], [cells.mean(), cells.std()], rtol=1e-6)


def test_the_observed_share_follows_the_mixture(dataset, other_dataset, data_config) -> None:
    shares = {
        part.name: len(training_cells(part, "heart_rate")) / part.training_minutes for part in (dataset, other_dataset)
    }
    spec = data_spec(data_config(dataset, other_dataset, weights=(1.0, 3.0)), [dataset, other_dataset])
    assert spec.observed_share[0] == pytest.approx(0.25 * shares["small"] + 0.75 * shares["other"])
    windows = [len(part.source("train")) for part in (dataset, other_dataset)]
    by_windows = data_spec(data_config(dataset, other_dataset), [dataset, other_dataset]).observed_share[0]
    assert by_windows == pytest.approx(np.average(list(shares.values()), weights=windows))


def test_a_channel_nobody_recorded_takes_the_registry(dataset, data_config) -> None:
    spec = data_spec(data_config(dataset, channels=("glucose", "steps")), [dataset])
    assert spec.channels == ("glucose", "steps")
    assert (spec.mean[0], spec.sd[0]) == pytest.approx((channel("glucose").mean, channel("glucose").sd))
    assert spec.observed_share[0] == 0


def test_a_saved_specification_comes_back_bit_for_bit(dataset, data_config, tmp_path: Path) -> None:
    spec = data_spec(data_config(dataset, window_minutes=300), [dataset])
    spec.save(tmp_path / "spec.json")
    back = DataSpec.load(tmp_path / "spec.json")
    assert (back.channels, back.window_minutes) == (spec.channels, 300)
    for key in ("mean", "sd", "observed_share"):
        np.testing.assert_array_equal(getattr(back, key), getattr(spec, key))
        assert getattr(back, key).dtype == np.float32


def poisoned(content: dict, poison: object) -> list:
    return [
        poison,
        content | {"window_minutes": poison},
        content | {"channels": poison},
        content | {"channels": {"steps": poison}},
        content | {"channels": {"steps": content["channels"]["steps"] | {"sd": poison}}},
    ]


@pytest.mark.parametrize("poison", [None, [], "x", -1, 0, float("nan")])
def test_a_damaged_specification_is_refused(dataset, data_config, tmp_path: Path, poison) -> None:
    file = tmp_path / "spec.json"
    data_spec(data_config(dataset), [dataset]).save(file)
    for damaged in poisoned(json.loads(file.read_text()), poison):
        file.write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=r"spec\.json"):
            DataSpec.load(file)


def test_paths_weights_and_channels_that_do_not_fit_are_refused(dataset, data_config) -> None:
    with pytest.raises(UserError, match=r"data\.paths is empty"):
        open_datasets(data_config())
    with pytest.raises(UserError, match=r"data\.weights"):
        data_spec(data_config(dataset, weights=(1.0, 2.0)), [dataset])
    with pytest.raises(UserError, match=r"heart_rate"):
        data_spec(data_config(dataset, channels=("heart_rat",)), [dataset])
    with pytest.raises(UserError, match="without windows"):
        mixture_weights(data_config(dataset, weights=(1.0, 1.0)), [3, 0])
