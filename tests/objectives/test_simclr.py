"""SimCLR: views of a window are told from others, unrecorded bytes are not read, and nothing is reconstructed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import tiny_config, tiny_dataset

from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import Config, with_changes
from lsm_jax.data.spec import DataSpec, data_spec
from lsm_jax.errors import UserError
from lsm_jax.evals import make_suite
from lsm_jax.export.embed import write_embeddings
from lsm_jax.export.folder import export_run
from lsm_jax.objectives import build
from lsm_jax.tokens.rows import dense
from lsm_jax.train.run import Run

CHANNELS, MINUTES, WINDOWS = 4, 60, 8
CHANGES = {
    "objective.name": "simclr", "model.size": "1x16x2x32+1x16x2x32", "rows.windows_per_row": 2,
    "masking.policies": (("random", 0.5, 1.0), ("time", 0.5, 1.0)), "train.batch_size": WINDOWS,
}  # fmt: skip


def objective(**changes):
    zeros = np.zeros(CHANNELS, np.float32)
    config = with_changes(Config(), CHANGES | {key.replace("__", "."): value for key, value in changes.items()})
    return build(config, DataSpec(MINUTELY_26[:CHANNELS], zeros, zeros + 1, MINUTES, zeros + 1))


def batch(recorded=WINDOWS):
    """Windows with a level of their own in each channel; only the first ones recorded something."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(WINDOWS, 1, CHANNELS)) + 0.3 * rng.normal(size=(WINDOWS, MINUTES, CHANNELS))
    observed = rng.random(values.shape) < 0.9
    observed[recorded:] = False
    values = np.where(observed, values, 0).astype(np.float32)
    return {"values": values, "observed": observed, "window_id": np.arange(WINDOWS, dtype=np.int32)}


@pytest.fixture(scope="module")
def learner():
    made = objective()
    return made, jax.jit(made.init)(jax.random.key(0)), jax.jit(jax.value_and_grad(made.loss, has_aux=True))


def test_the_loss_is_the_cross_entropy_of_the_partner(learner, monkeypatch):
    """Where both views see everything, NumPy gives the loss from vectors of windows that have a row each."""
    _, params, _ = learner
    monkeypatch.setattr("lsm_jax.objectives.simclr.training_masks", lambda key, observed, *_: observed & False)
    made = objective(objective__jitter=0.0, rows__encoder_length=2 * MINUTES // 10 * CHANNELS)
    loss, metrics = jax.jit(made.loss)(params, batch(), jax.random.key(1))
    cells = made.tokens.tokenize(batch())
    rows = dense(made.tokens.tokens_observed(cells.observed))
    vectors = np.asarray(jax.jit(lambda params: made.restored(params)(cells, rows, WINDOWS))(params))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    scores = vectors @ vectors.T / Config().objective.temperature
    np.testing.assert_allclose(loss, (np.log(np.exp(scores).sum(axis=1)) - np.diag(scores)).mean(), rtol=1e-4)
    assert float(metrics["retrieval_accuracy"]) == 1
    assert float(metrics["tokens_visible"]) == 2 * float(metrics["tokens_observed"])


def test_views_become_recognisable(learner):
    _, params, step = learner
    optimizer, data, losses = optax.adam(3e-3), batch(), []
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    for number in range(40):
        (loss, metrics), gradient = step(params, data, jax.random.key(number))
        params, state = update(params, state, gradient)
        losses.append(float(loss))
    assert losses[0] > 1
    assert np.mean(losses[-10:]) < 0.6 * losses[0]
    assert float(metrics["retrieval_accuracy"]) > 0.5


def test_unrecorded_bytes_and_windows_change_nothing(learner):
    _, params, step = learner
    data = batch(recorded=5)
    dirty = data | {"values": np.where(data["observed"], data["values"], np.nan).astype(np.float32)}
    clean, same = (step(params, each, jax.random.key(0)) for each in (data, dirty))
    jax.tree.map(np.testing.assert_array_equal, clean, same)
    assert float(clean[0][1]["loss_weight"]) == 5
    (loss, _), gradient = step(params, batch(recorded=0), jax.random.key(0))
    assert float(loss) == 0
    assert all(np.isfinite(leaf).all() and not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))


def test_a_run_embeds_and_exports_but_is_not_asked_to_reconstruct(tmp_path):
    dataset = tiny_dataset(tmp_path / "data", people=5, days=1)
    config = with_changes(tiny_config(dataset.path), CHANGES)
    spec = data_spec(config.data, [dataset])
    made = build(config, spec)
    run = Run(config, spec, made, jax.jit(made.init)(jax.random.key(0)), step=3)
    assert write_embeddings(run, dataset, tmp_path / "days.parquet").width == 16
    export_run(run, tmp_path / "run", tmp_path / "export", "safetensors", lambda card: "card")
    with pytest.raises(UserError, match=r"the suite generative scores runs of .*, and not of simclr"):
        make_suite("generative").check_objective(config.objective.name)
    with pytest.raises(UserError, match="cannot reconstruct"):
        made.reconstruct(run.params, {}, jnp.zeros((1, 1), bool))


@pytest.mark.parametrize(
    ("key", "value"), [("objective__temperature", 0.0), ("objective__jitter", -1.0), ("rows__layout", "dense")]
)
def test_bad_settings_are_refused(key, value):
    with pytest.raises(UserError, match=key.replace("__", r"\.")):
        objective(**{key: value, "rows__windows_per_row": 1})
