import dataclasses

import numpy as np
import pytest
from tiny_run import tiny_dataset, tiny_run, tiny_windows

from lsm_jax.channels import MINUTELY_26
from lsm_jax.data.loader import evaluation_batches
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.errors import UserError
from lsm_jax.evals.removals import Removal, reduced, removals
from lsm_jax.evals.robustness import Robustness
from lsm_jax.windows import Event

CHANNELS = ("heart_rate", "steps", "skin_temperature")
CLOCK = (np.arange(1440) + 300) % 1440  # from five in the morning


def rng():
    return np.random.default_rng(3)


def test_every_sensor_is_removed_and_a_single_one_is_not():
    names = [removal.sensor for removal in removals(MINUTELY_26) if removal.kind == "sensor"]
    assert names == ["PPG", "ACC", "EDA", "TEMP", "ALT"]
    assert not any(removal.kind == "sensor" for removal in removals(["activity_count", "steps"]))
    removed = Removal("sensor", "without ACC", sensor="ACC").removed(CHANNELS, CLOCK, rng())
    assert removed.any(axis=0).tolist() == removed.all(axis=0).tolist() == [False, True, False]


def test_hours_are_of_local_time_or_one_block():
    night = Removal("hours", "without night", start=0, end=6).removed(CHANNELS, CLOCK, rng())
    assert (night == (CLOCK < 360)[:, None]).all()
    block = Removal("hours", "without 3 h", hours=3).removed(CHANNELS, CLOCK, rng())[:, 0]
    assert block.sum() == 180
    assert np.flatnonzero(block)[-1] - np.flatnonzero(block)[0] == 179


def test_gaps_have_their_share_and_grow():
    less, more = (Removal("gaps", "", share=share).removed(CHANNELS, CLOCK, rng()) for share in (0.3, 0.7))
    np.testing.assert_allclose([less.mean(), more.mean()], [0.3, 0.7], atol=0.02)
    assert not (less & ~more).any()
    half_hours = more.reshape(48, 30, 3)
    assert (half_hours.all(axis=1) == half_hours.any(axis=1)).all()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", people=24, days=1)


@pytest.fixture(scope="module")
def run(dataset):
    return tiny_run(dataset.path)


@pytest.mark.parametrize("removal", removals(CHANNELS), ids=str)
def test_what_is_taken_away_cannot_be_read(dataset, run, removal):
    source = dataset.source("test")
    ((full, infos),) = evaluation_batches(source, run.spec, len(source))
    ((less, _),) = reduced([(full, infos)], run.spec.channels, removal, 0)
    assert not (less["observed"] & ~full["observed"]).any()
    assert (less["values"] == np.where(less["observed"], full["values"], 0)).all()
    few = evaluation_batches(source, run.spec, 3)
    again = np.concatenate([batch["observed"][: len(of)] for batch, of in reduced(few, run.spec.channels, removal, 0)])
    assert (again == less["observed"]).all()  # whatever the batches
    if removal.name in ("without night", "without afternoon"):  # the windows are of the first hours of the day
        assert less["observed"].any() == (removal.name == "without afternoon")


def test_drops_from_end_to_end(dataset, run, tmp_path):
    suite = Robustness(kinds=("sensor",), batch_size=64)
    result = suite.run(run, [dataset])
    rows = [row for row in result.results if row["task"] == "age"]
    assert {row["method"] for row in rows} == {"pretrained", "random_encoder", "engineered_linear"}
    assert {row["removal"] for row in rows} == {"without PPG", "without ACC", "without TEMP"}
    for row in rows:
        if row["drop"] is not None:
            np.testing.assert_allclose(row["drop"], row["full_value"] - row["value"])
    paired = next(
        row
        for row in result.comparisons
        if (row["task"], row["method"], row["removal"]) == ("age", "random_encoder", "without PPG")
    )
    drop = {row["method"]: row["drop"] for row in rows if row["removal"] == "without PPG"}
    np.testing.assert_allclose(paired["difference"], drop["random_encoder"] - drop["pretrained"])
    assert "without PPG" in result.table()
    assert "The drop of each method minus that of the pre-trained encoder" in result.markdown()
    first = result.write(tmp_path / "a").read_bytes()
    assert suite.run(run, [dataset]).write(tmp_path / "b").read_bytes() == first


def test_the_order_of_methods_loses_no_comparison(dataset, run):
    orders = ("engineered_linear", "pretrained"), ("pretrained", "engineered_linear")
    one, two = (Robustness(kinds=("sensor",), batch_size=64, methods=methods).run(run, [dataset]) for methods in orders)
    key = lambda row: (row["task"], row["removal"])  # noqa: E731
    assert sorted(one.comparisons, key=key) == sorted(two.comparisons, key=key) and one.comparisons


def test_a_method_that_is_not_fitted_here_is_named(dataset, run):
    with pytest.raises(UserError, match="robustness has no method 'pca'"):
        Robustness(methods=("pretrained", "pca")).run(run, [dataset])


@pytest.mark.parametrize(
    ("others", "removed"),
    [(("heart_rate", "skin_temperature"), {"without PPG", "without TEMP"}), (("heart_rate",), set())],
)
def test_only_what_a_task_may_read_is_taken_away(tmp_path, others, removed):
    """Tasks about sleep do not read `sleep_state`: without it nothing changes. A sensor alone is not removed."""

    def windows():
        for window in tiny_windows(people=24, days=1):
            values, columns = window.values.copy(), [1, *(window.channels.index(name) for name in others)]
            values[:, 1] = np.where(window.observed[:, 1], np.clip(values[:, 1], 1, 3), 0)
            yield dataclasses.replace(
                window,
                values=values[:, columns],
                observed=window.observed[:, columns],
                channels=("sleep_state", *others),
                events=(Event("sleep", "asleep", 0, 120),),
            )

    write_dataset(tmp_path / "slept", "slept", ("sleep_state", *others), windows())
    suite = Robustness(kinds=("sensor",), methods=("engineered_linear",), batch_size=64)
    rows = suite.run(tiny_run(tmp_path / "slept"), [open_dataset(tmp_path / "slept")]).results
    assert {row["removal"] for row in rows if row["task"] == "detect_sleep"} == removed
    assert "without SLEEP" in {row["removal"] for row in rows if row["task"] == "age"}
