import copy
import dataclasses

import numpy as np
import polars as pl
import pytest
from tiny_run import CHANNELS, START, tiny_dataset, tiny_run

from lsm_jax.data.store import SPLITS, open_dataset, write_dataset
from lsm_jax.errors import RunError, UserError
from lsm_jax.export.embed import write_embeddings
from lsm_jax.windows import checked_window, hash_participant


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", people=6, empty_window=True)


@pytest.fixture(scope="module")
def run(dataset):
    return tiny_run(dataset.path)


@pytest.fixture(scope="module")
def written(run, dataset, tmp_path_factory):
    return write_embeddings(run, dataset, tmp_path_factory.mktemp("out") / "days.parquet", batch_size=4)


@pytest.fixture(scope="module")
def days(written):
    return pl.read_parquet(written.file)


def test_a_row_per_day(written, days, dataset):
    assert len(days) == written.rows == sum(len(dataset.source(split)) for split in SPLITS) == 18
    assert days.columns == [
        "participant", "split", "start", "utc_offset_minutes", "observed_share", "label_age", "label_sex", "embedding",
    ]  # fmt: skip
    assert {*days["split"]} == {*SPLITS}
    assert days["start"].min() == START
    assert {*days["label_sex"]} == {"F", "M"}
    assert days["label_age"].min() == 20.0
    assert days["embedding"].list.len().drop_nulls().unique().to_list() == [written.width] == [96]


def test_one_split_alone(run, dataset, days, tmp_path):
    alone = write_embeddings(run, dataset, tmp_path / "test.parquet", splits=("test",), batch_size=4)
    expected = days.filter(pl.col("split") == "test")
    found = pl.read_parquet(alone.file)
    assert len(found) == alone.rows == len(expected) > 0
    assert found.drop("embedding").equals(expected.drop("embedding"))
    assert {*pl.read_parquet(alone.people_file)["split"]} == {"test"}


def test_a_day_without_a_token_has_no_embedding(written, days):
    empty = days.filter(pl.col("observed_share") == 0)
    assert len(empty) == written.empty == 6
    assert empty["embedding"].null_count() == 6
    assert days.filter(pl.col("observed_share") > 0)["embedding"].null_count() == 0


def test_days_are_what_the_objective_embeds(run, days, dataset):
    window = dataset.source("train")[0]
    values = np.where(
        window.observed, (window.values - run.spec.mean) / run.spec.sd, np.nan
    )  # missing cells hold noise
    batch = {
        "values": values[None].astype(np.float32),
        "observed": window.observed[None],
        "window_id": np.zeros(1, np.int32),
    }
    expected = np.asarray(run.objective.embed(run.params, batch))[0]
    found = days.filter((pl.col("participant") == window.participant) & (pl.col("start") == window.start))
    np.testing.assert_allclose(found["embedding"][0].to_numpy(), expected, rtol=1e-4, atol=1e-5)


def test_people_are_means_over_their_days(written, days):
    people = pl.read_parquet(written.people_file)
    assert len(people) == written.people == 6
    for person in people.iter_rows(named=True):
        theirs = days.filter((pl.col("participant") == person["participant"]) & pl.col("embedding").is_not_null())
        assert person["days"] == len(theirs) == 2
        np.testing.assert_allclose(person["embedding"], np.stack(theirs["embedding"].to_list()).mean(axis=0), rtol=1e-5)
        assert person["label_age"] == theirs["label_age"][0]


def test_a_dataset_of_other_devices_is_refused(run, tmp_path):
    window, _ = checked_window(
        np.full((240, 1), 5.5, np.float32), ("glucose",), participant=hash_participant("a", "s"), start=START
    )
    write_dataset(tmp_path / "glucose", "glucose", ("glucose",), [window])
    with pytest.raises(UserError, match="glucose") as refused:
        write_embeddings(run, open_dataset(tmp_path / "glucose"), tmp_path / "days.parquet")
    assert all(name in str(refused.value) for name in CHANNELS)


def test_a_broken_model_leaves_no_file(run, dataset, tmp_path):
    broken = copy.copy(run.objective)
    broken.embed = lambda params, batch, pooling="": np.full((len(batch["values"]), 4), np.nan)
    with pytest.raises(RunError, match="not finite"):
        write_embeddings(dataclasses.replace(run, objective=broken), dataset, tmp_path / "days.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("level", ["day", "person", "hour"])
def test_an_interruption_leaves_the_files_that_were_there(level, run, dataset, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    (tmp_path / "days.parquet").write_text("earlier")
    with pytest.raises(KeyboardInterrupt):
        write_embeddings(run, dataset, tmp_path / "days.parquet", batch_size=4, level=level, progress=interrupt)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"days.parquet": "earlier"}
