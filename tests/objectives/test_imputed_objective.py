"""LSM-1: filled windows, a fixed number of visible tokens, and no hidden value in any prediction."""

import functools
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from tiny_run import MINUTES, tiny_config, tiny_dataset

from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import load_config, with_changes
from lsm_jax.data.spec import DataSpec, data_spec
from lsm_jax.evals.generative import Generative
from lsm_jax.export.embed import write_embeddings
from lsm_jax.export.folder import export_run
from lsm_jax.objectives import build
from lsm_jax.tokens.tasks import Task
from lsm_jax.train.run import Run

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "lsm1.py"
CHANNELS, LENGTH, WINDOWS = 7, 120, 4


@functools.cache
def objective(size="2x16x2x32+1x16x2x32", channels=CHANNELS, minutes=LENGTH):
    config = with_changes(load_config(str(CONFIG)), {"model.size": size, "data.window_minutes": minutes})
    zeros = np.zeros(channels, np.float32)
    return build(config, DataSpec(MINUTELY_26[:channels], zeros, zeros + 1, minutes, zeros + 0.5))


def batch(seed=0, density=0.5):
    rng = np.random.default_rng(seed)
    observed = rng.random((WINDOWS, LENGTH, CHANNELS)) < density
    values = np.where(observed, rng.normal(size=observed.shape), 0).astype(np.float32)
    return {"values": values, "observed": observed, "window_id": np.arange(WINDOWS, dtype=np.int32)}


@functools.cache
def params():
    """Initial parameters plus noise, so that the zero kernel of the head hides nothing."""
    leaves, tree = jax.tree.flatten(jax.jit(objective().init)(jax.random.key(0)))
    rng = np.random.default_rng(1)
    return tree.unflatten([leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


@functools.cache
def step():
    return jax.jit(jax.value_and_grad(objective().loss, has_aux=True))


def covered(hidden):
    """The cells of hidden tokens."""
    grid = objective().tokens
    return grid.windows(np.repeat(hidden[:, :, None], grid.cells_per_token, axis=2))


def imputed(data):
    """Filled windows, channel by channel."""
    result = np.zeros(data["values"].shape)
    for window, channel in np.ndindex(WINDOWS, CHANNELS):
        minutes = np.flatnonzero(data["observed"][window, :, channel])
        if len(minutes):
            line = np.interp(np.arange(LENGTH), minutes, data["values"][window, minutes, channel])
            result[window, :, channel] = line
    return result


def test_the_first_loss_is_the_mean_square_of_the_filled_hidden_cells():
    """The head begins with zeros. Imputed cells count; cells that only pad the last channel group do not."""
    data, rng = batch(density=0.2), jax.random.key(3)
    data["observed"][:, :, 2] = False
    hidden = np.asarray(objective().hidden(data, rng))
    assert (hidden.sum(axis=1) == round(0.8 * objective().tokens.size)).all()
    loss, metrics = jax.jit(objective().loss)(jax.jit(objective().init)(jax.random.key(0)), data, rng)
    np.testing.assert_allclose(loss, np.square(imputed(data))[covered(hidden)].mean(), rtol=1e-5)
    assert float(metrics["loss_weight"]) == covered(hidden).sum()
    assert float(metrics["tokens_visible"]) == (~hidden).sum()
    assert not metrics["tokens_visible_left_out"] and not metrics["tokens_targets_left_out"]
    assert float(metrics["row_fill"]) > 0.95


@pytest.mark.parametrize("garbage", [np.nan, 1e30])
def test_unobserved_bytes_change_nothing(garbage):
    clean = batch()
    dirty = clean | {"values": np.where(clean["observed"], clean["values"], garbage).astype(np.float32)}
    results = [step()(params(), each, jax.random.key(0)) for each in (clean, dirty)]
    jax.tree.map(np.testing.assert_array_equal, *results)
    np.testing.assert_array_equal(*(objective().embed(params(), each) for each in (clean, dirty)))


def test_hidden_values_never_reach_a_prediction():
    """Not through the encoder, and not through a line drawn to them."""
    data = batch(density=0.7)
    hidden = np.random.default_rng(4).random((WINDOWS, objective().tokens.size)) < 0.6
    cells = covered(hidden)
    other = data | {"values": np.where(cells, data["values"] + 7, data["values"])}
    first, second = (np.asarray(objective().reconstruct(params(), each, hidden)) for each in (data, other))
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first[cells], second[cells])
    np.testing.assert_array_equal(first[~cells], data["values"][~cells])
    visible = ~cells & data["observed"]
    changed = data | {"values": np.where(visible, data["values"] + 1, data["values"])}
    assert (np.asarray(objective().reconstruct(params(), changed, hidden))[cells] != first[cells]).mean() > 0.9


def test_a_batch_without_a_recorded_cell_gives_no_loss_no_gradient_and_no_embedding():
    nothing = batch(density=0.0)
    (loss, _), gradient = step()(params(), nothing, jax.random.key(0))
    assert float(loss) == 0
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
    assert not np.asarray(objective().embed(params(), nothing)).any()


@pytest.mark.parametrize(("size", "millions"), [("2m", 2), ("7m", 7), ("110m", 110), ("328m", 328)])
def test_sizes_have_the_published_numbers_of_parameters(size, millions):
    """Two significant digits, as the paper names them: 111M is its 110M."""
    made = objective(f"lsm1-{size}", 26, 300)
    assert made.tokens.size == 180
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(made.init, jax.random.key(0))))
    assert abs(count / 1e6 - millions) < max(0.5, 0.02 * millions)


def test_smooth_windows_are_overfitted():
    rng = np.random.default_rng(0)
    phase, period = rng.uniform(0, 6, (WINDOWS, 1, CHANNELS)), rng.uniform(20, 40, (WINDOWS, 1, CHANNELS))
    data = batch() | {"values": np.sin(np.arange(LENGTH)[None, :, None] / period + phase).astype(np.float32)}
    data["values"][~data["observed"]] = 0
    made, optimizer = objective("2x32x4x64+1x32x4x64"), optax.adam(3e-3)

    def update(carry, _):
        params, state = carry
        (loss, _), gradient = jax.value_and_grad(made.loss, has_aux=True)(params, data, jax.random.key(0))
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), loss

    def learn(rng):
        params = made.init(rng)
        return jax.lax.scan(update, (params, optimizer.init(params)), length=300)[1]

    losses = jax.jit(learn)(jax.random.key(0))
    assert losses[0] > 0.4
    assert losses[-1] < 0.02


def test_a_run_is_scored_embedded_and_exported(tmp_path):
    """On windows shorter than the stored ones, which are cut into whole parts."""
    dataset = tiny_dataset(tmp_path / "data", people=6, days=1)
    changes = {
        "objective.name": "imputed_reconstruction", "data.window_minutes": MINUTES // 2, "tokens.patch_channels": 5,
        "rows.layout": "fixed_drop", "model.decoder": "all", "model.num_neighbors": 0,
        "model.size": "1x16x2x32+1x16x2x32", "masking.share_of": "grid", "masking.policies": (("random", 0.8, 1.0),),
    }  # fmt: skip
    config = with_changes(tiny_config(dataset.path), changes)
    spec = data_spec(config.data, [dataset])
    made = build(config, spec)
    run = Run(config, spec, made, jax.jit(made.init)(jax.random.key(0)), step=3)
    result = Generative(tasks=(Task("random_imputation", share=0.5),)).run(run, [dataset])
    whole = {row["method"]: row for row in result.results if row["channel"] == "all"}
    assert whole["model"]["windows"] == 2 * len(dataset.source("test"))
    np.testing.assert_allclose(whole["model"]["cells"], whole["linear"]["cells"])
    files = write_embeddings(run, dataset, tmp_path / "days.parquet")
    assert (files.rows, files.width) == (12, 16)
    export_run(run, tmp_path / "run", tmp_path / "export", "safetensors", lambda card: str(card["objective"]))
    assert (tmp_path / "export" / "README.md").read_text() == "imputed_reconstruction"
