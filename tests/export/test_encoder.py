"""`lsm_jax.load`: arrays and frames in, embeddings with their times out."""

import dataclasses
import datetime as dt
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from language_run import language_dataset, language_run
from safetensors.numpy import save_file
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tiny_run import CHANNELS, MINUTES, save_run, tiny_dataset, tiny_run

import lsm_jax
from lsm_jax.errors import UserError
from lsm_jax.export.embed import write_embeddings
from lsm_jax.export.encoder import Encoder
from lsm_jax.sharding import named_parameters
from lsm_jax.train.workdir import write_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", people=3, empty_window=True)


@pytest.fixture(scope="module")
def encoder(dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    save_run(tiny_run(dataset.path), workdir)
    return lsm_jax.load(workdir)


@pytest.fixture(scope="module")
def days(dataset):
    """Windows of the dataset, [windows, time, channels], with NaN where nothing was recorded."""
    source = dataset.source("train")
    windows = [source[position] for position in range(len(source))]
    return np.stack([np.where(window.observed, window.values, np.nan) for window in windows])


@pytest.fixture(scope="module")
def embedded(encoder, days):
    return encoder.embed(days, channels=CHANNELS)


def frame(days):
    """The days of one person as a frame with times, a row per minute in which something was recorded."""
    times = [
        dt.datetime(2024, 3, 4) + dt.timedelta(days=day, minutes=minute)
        for day in range(len(days))
        for minute in range(MINUTES)
    ]
    rows = pl.DataFrame(days.reshape(-1, 3), [*CHANNELS]).with_columns(pl.Series("when", times, pl.Datetime("us")))
    return rows.filter(~pl.all_horizontal(pl.col(*CHANNELS).is_nan()))


def test_importing_the_package_imports_no_jax():
    code = "import sys, lsm_jax; assert 'jax' not in sys.modules; lsm_jax.load; assert 'jax' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        lsm_jax.lode  # noqa: B018


def test_arrays_are_normalised_as_in_a_dataset(encoder, dataset, embedded, tmp_path):
    written = write_embeddings(encoder.run, dataset, tmp_path / "days.parquet", splits=("train",))
    stored = pl.read_parquet(written.file)["embedding"]
    assert embedded.vectors.shape == (len(stored), 96)
    assert embedded.index.columns == ["window", "start", "minutes"]
    for ours, theirs in zip(embedded.vectors, stored, strict=True):
        if theirs is None:
            assert np.isnan(ours).all()
        else:
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert stored.null_count() == 1
    assert np.asarray(embedded) is embedded.vectors
    assert embedded.to_frame().columns[-1] == "embedding"


def test_channels_come_in_any_order_and_number(encoder, days, embedded):
    shuffled = encoder.embed(days[:, :, ::-1], channels=CHANNELS[::-1])
    np.testing.assert_allclose(shuffled.vectors, embedded.vectors, atol=1e-5)
    alone = encoder.embed(days[:, :, :1], channels=CHANNELS[:1]).vectors
    others = encoder.embed(np.where(np.arange(3) == 0, days, np.nan)).vectors
    np.testing.assert_allclose(alone, others, atol=1e-5)
    assert not np.allclose(alone[0], embedded.vectors[0], atol=1e-3)


def test_a_frame_is_cut_at_its_times(encoder, days, embedded):
    rows = frame(days[:2])
    found = encoder.embed(rows, time="when")
    np.testing.assert_allclose(found.vectors, embedded.vectors[:2], atol=1e-5)
    assert found.index["start"].to_list() == [dt.datetime(2024, 3, 4), dt.datetime(2024, 3, 5)]
    zoned = rows.with_columns(pl.col("when").dt.replace_time_zone("America/Chicago")).sample(
        fraction=1, shuffle=True, seed=0
    )
    np.testing.assert_allclose(encoder.embed(zoned).vectors, found.vectors, atol=1e-5)  # the only column of times


def test_what_begins_later_stands_at_its_time_of_day(encoder, days, embedded):
    late = days[0].copy()
    late[:100] = np.nan
    expected = encoder.embed(late).vectors
    zoned = dt.datetime(2024, 3, 4, 1, 40, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    for start in ("2024-03-04T01:40", "2024-03-04T01:40+02:00", zoned, np.datetime64("2024-03-04T01:40")):
        found = encoder.embed(days[0, 100:], start=start)
        np.testing.assert_allclose(found.vectors, expected, atol=1e-5)
        assert found.index["start"].to_list() == [dt.datetime(2024, 3, 4)]
    assert not np.allclose(encoder.embed(days[0, 100:]).vectors, expected, atol=1e-3)
    long = encoder.embed(np.concatenate([days[0], days[1, :30]]))
    np.testing.assert_allclose(long.vectors[0], embedded.vectors[0], atol=1e-5)
    assert long.index["start"].to_list() == [dt.timedelta(0), dt.timedelta(minutes=MINUTES)]


def test_masked_values_are_missing(encoder, days, embedded):
    hidden = np.isnan(days)
    masked = np.ma.MaskedArray(np.where(hidden, 50.0, days), hidden)
    np.testing.assert_array_equal(encoder.embed(masked).vectors, embedded.vectors)
    np.testing.assert_array_equal(encoder.transformer().transform(masked), embedded.vectors)


def test_rows_of_one_minute_are_added_or_averaged(encoder, days):
    rows = frame(days[:1])
    half = rows.with_columns(pl.col("steps") / 2)
    twice = pl.concat([half, half.with_columns(pl.col("when") + pl.duration(seconds=30))])
    np.testing.assert_allclose(encoder.embed(twice).vectors, encoder.embed(rows).vectors, atol=1e-5)


def test_a_pandas_frame_is_read_by_its_index(encoder, days):
    pandas = pytest.importorskip("pandas")
    index = pandas.date_range("2024-03-04", periods=MINUTES, freq="min", tz="Europe/Rome")
    found = encoder.embed(pandas.DataFrame(days[0], index=index, columns=CHANNELS))
    np.testing.assert_allclose(found.vectors, encoder.embed(days[0]).vectors, atol=1e-5)
    assert found.index["start"].to_list() == [dt.datetime(2024, 3, 4)]


def test_people_hours_and_tokens_have_their_times(encoder, days, embedded):
    rows = pl.concat(
        [frame(days[:2]).with_columns(participant=pl.lit("a")), frame(days[1:2]).with_columns(participant=pl.lit("b"))]
    )
    people = encoder.embed(rows, level="person")
    assert people.index.rows() == [("a", 2), ("b", 1)]
    np.testing.assert_allclose(people.vectors[0], embedded.vectors[:2].mean(axis=0), atol=1e-5)
    tokens = encoder.embed(rows, level="token")
    assert tokens.index.columns == ["participant", "start", "minutes", "channels"]
    assert {name for names in tokens.index["channels"] for name in names} == {*CHANNELS}
    mine = (tokens.index["participant"] == "b").to_numpy()
    np.testing.assert_allclose(tokens.vectors[mine].mean(axis=0), embedded.vectors[1], atol=1e-5)
    hours = encoder.embed(rows, level="hour")
    assert hours.index["minutes"].unique().to_list() == [60]
    in_hour = mine & (tokens.index["start"].dt.hour() == 1).to_numpy()
    chosen = ((hours.index["participant"] == "b") & (hours.index["start"].dt.hour() == 1)).to_numpy()
    np.testing.assert_allclose(hours.vectors[chosen][0], tokens.vectors[in_hour].mean(axis=0), atol=1e-5)


def test_values_in_another_unit_are_said(encoder, days):
    celsius = days[0].copy()
    celsius[:5, 2] = 91.4
    with pytest.warns(UserWarning, match="skin_temperature: 5 values are outside .* Are they in this unit"):
        encoder.embed(celsius)


def test_a_sample_that_cannot_be_is_not_averaged_with_others(encoder):
    """Three rows of one minute: a pulse of 400 was once averaged into a plausible 173."""
    times = [dt.datetime(2024, 3, 4, 8, 0, second) for second in (0, 20, 40)]
    rows = pl.DataFrame({"when": times, "heart_rate": [60.0, 64.0, 400.0], "steps": [200.0, 90.0, -5.0]})
    with pytest.warns(UserWarning, match="1 values are outside") as warned:
        found = encoder.embed(rows)
    assert [str(each.message).split(":")[0] for each in warned] == ["heart_rate", "steps"]
    expected = encoder.embed(pl.DataFrame({"when": times[:1], "heart_rate": [62.0], "steps": [290.0]}))
    np.testing.assert_array_equal(found.vectors, expected.vectors)
    with pytest.warns(UserWarning, match="steps: 1 values are outside"):  # each is possible, their sum is not
        encoder.embed(rows.with_columns(steps=pl.Series([200.0, 90.0, 40.0]), heart_rate=62.0))


def test_a_pandas_column_of_times_with_a_zone_is_that_zones_clock(encoder, days):
    pandas = pytest.importorskip("pandas")
    times = pandas.date_range("2024-03-04", periods=MINUTES, freq="min", tz="Europe/Rome")
    rows = pandas.DataFrame(days[0], columns=CHANNELS).assign(when=times)
    np.testing.assert_array_equal(encoder.embed(rows).vectors, encoder.embed(rows.set_index("when")).vectors)


@pytest.mark.parametrize(
    ("data", "options", "sentence"),
    [
        (np.zeros((9, 1)), {"channels": ["heart_rat"]}, r"'heart_rat' .* Did you mean 'heart_rate'"),
        (np.zeros((9, 2)), {}, r"has 2 columns, the run has 3 channels"),
        (np.zeros((9, 2)), {"channels": ["steps", "steps"]}, "names a channel twice"),
        (np.zeros(9), {}, r"give \[time, channels\]"),
        (np.zeros((9, 3)), {"start": "noon"}, "start='noon' is no time"),
        (np.zeros((9, 3)), {"level": "days"}, "no level 'days'.* Did you mean 'day'"),
        (np.zeros((9, 3)), {"level": "hour", "pooling": "mean"}, "leave it out for 'hour'"),
        (np.zeros((9, 3)), {"pooling": "means"}, "no pooling 'means'"),
        (pl.DataFrame({"steps": [1.0]}), {}, "no column of times"),
        (pl.DataFrame({"steps": [1.0], "when": [dt.datetime(2024, 1, 1)], "puls": [60.0]}), {}, "'puls' in the frame"),
        (pl.DataFrame({"steps": ["a"], "when": [dt.datetime(2024, 1, 1)]}), {}, "not all numbers"),
        (
            pl.DataFrame({"steps": [1.0, 2.0], "when": [dt.datetime(2024, 1, 1)] * 2, "participant": ["a", None]}),
            {},
            "1 rows of the frame have no 'participant'",
        ),
        (
            pl.DataFrame({"steps": [1.0, 2.0], "when": [dt.datetime(2024, 1, 1)] * 2, "participant": [7.0, np.nan]}),
            {},
            "1 rows of the frame have no 'participant'",
        ),
    ],
)
def test_what_cannot_be_read_is_said(encoder, data, options, sentence):
    with pytest.raises(UserError, match=sentence):
        encoder.embed(data, **options)


def test_a_transformer_for_pipelines(encoder, days, embedded):
    transformer = encoder.transformer(channels=CHANNELS)
    assert clone(transformer).encoder is encoder  # a copy would be compiled again
    assert transformer.get_feature_names_out()[-1] == "embedding95"
    np.testing.assert_allclose(transformer.fit_transform(days), embedded.vectors, atol=1e-5)
    full = days[np.isfinite(embedded.vectors).all(axis=1)]
    assert make_pipeline(transformer, StandardScaler()).fit_transform(full).shape == (len(full), 96)
    with pytest.raises(UserError, match="at most 240 minutes"):
        transformer.transform(np.zeros((1, 241, 3)))


def test_an_export_is_loaded_likewise(encoder, days, embedded, tmp_path):
    run = encoder.run
    save_file(
        {name: np.asarray(leaf) for name, leaf in named_parameters(run.params)}, tmp_path / "model.safetensors",
        metadata={"step": "7"},
    )  # fmt: skip
    write_config(tmp_path, run.config, run.spec)
    again = lsm_jax.load(tmp_path)
    np.testing.assert_array_equal(again.embed(days).vectors, embedded.vectors)
    with pytest.raises(UserError, match="one step only"):
        lsm_jax.load(tmp_path, step=3)


def test_texts_and_days_share_a_space(tmp_path):
    language_dataset(tmp_path, people=2)
    encoder = Encoder(language_run(tmp_path, "clip"))
    texts, day = encoder.embed_text(["The wearer slept.", "The wearer ran."]), encoder.embed(np.full((9, 3), 30.0))
    assert texts.shape == (2, day.vectors.shape[1])
    np.testing.assert_allclose(np.linalg.norm([*texts, *day.vectors], axis=1), 1, atol=1e-5)
    # A day without a recording has a place in that space, too, but it says nothing.
    two = encoder.embed(np.stack([np.full((9, 3), 30.0), np.full((9, 3), np.nan)]))
    np.testing.assert_array_equal(np.isnan(two.vectors).all(axis=1), [False, True])
    with pytest.raises(UserError, match="is empty"):
        encoder.embed_text([" "])


def test_a_run_without_text_embeds_none(encoder):
    with pytest.raises(UserError, match="knows no text"):
        encoder.embed_text(["The wearer slept."])


@pytest.mark.parametrize("level", ["person", "hour", "token"])
def test_the_command_writes_every_level(encoder, dataset, tmp_path, level):
    written = write_embeddings(encoder.run, dataset, tmp_path / "out.parquet", splits=("train",), level=level)
    rows = pl.read_parquet(written.file)
    assert len(rows) == written.rows
    assert written.people_file is None
    assert rows["embedding"].null_count() == written.empty == 0
    times = {"person": set(), "hour": {"start", "minutes"}, "token": {"start", "minutes", "channels"}}[level]
    assert times <= {*rows.columns}
    if level == "token":
        source = dataset.source("train")
        hidden = [encoder.run.objective.tokens.cells(source[row].observed[None]) for row in range(len(source))]
        assert len(rows) == sum(int(cells.any(axis=-1).sum()) for cells in hidden)


def test_normalisation_is_the_runs_own(encoder, days):
    moved = dataclasses.replace(encoder.run, spec=dataclasses.replace(encoder.run.spec, mean=encoder.run.spec.mean + 1))
    np.testing.assert_allclose(Encoder(moved).embed(days[:1] + 1).vectors, encoder.embed(days[:1]).vectors, atol=1e-4)
