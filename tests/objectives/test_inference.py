"""Several windows to a row give what one window to a row gives, whatever their neighbours are."""

import jax
import numpy as np
import pytest
from language_run import language_dataset, language_run
from tiny_run import CHANNELS, MINUTES, tiny_config

from lsm_jax import objectives
from lsm_jax.config import with_changes
from lsm_jax.data.spec import DataSpec
from lsm_jax.objectives.pooling import POOLINGS, pool
from lsm_jax.tokens.inference_rows import packed_rows

WINDOWS = 11
SPEC = DataSpec(CHANNELS, np.zeros(3, np.float32), np.ones(3, np.float32), MINUTES, np.full(3, 0.5, np.float32))


@pytest.fixture(scope="module")
def batch():
    """Windows from empty to full, and values in unobserved cells that nothing may read."""
    rng = np.random.default_rng(0)
    shape = (WINDOWS, MINUTES // 10, len(CHANNELS))
    share = np.linspace(0, 1, WINDOWS)[rng.permutation(WINDOWS), None, None]
    observed = np.repeat(rng.random(shape) < share, 10, axis=1)
    values = np.where(observed, rng.normal(size=observed.shape), np.nan).astype(np.float32)
    start = np.zeros(WINDOWS, np.int32)
    return {"values": values, "observed": observed, "start_minute": start, "weekday": start,
            "window_id": np.arange(WINDOWS, dtype=np.int32)}  # fmt: skip


@pytest.fixture(scope="module", params=["masked_reconstruction", "imputed_reconstruction"])
def model(request):
    """An objective and parameters of which none is zero."""
    config = with_changes(
        tiny_config("nowhere"), {"objective.name": request.param, "model.size": "1x24x2x48+2x24x2x48"}
    )
    objective = objectives.build(config, SPEC)
    return objective, shaken(objective)


def shaken(objective):
    """Parameters of which none is zero."""
    rng, params = np.random.default_rng(1), jax.jit(objective.init)(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + rng.normal(scale=0.1, size=leaf.shape).astype(np.float32), params)


def one_by_one(batch, function):
    """The results for each window in a batch of its own."""
    return np.concatenate([function(slice(row, row + 1)) for row in range(len(batch["values"]))])


def part(batch, rows):
    return {name: array[rows] for name, array in batch.items()}


def test_embeddings_do_not_depend_on_the_neighbours_in_a_row(model, batch):
    objective, params = model
    tokens = jax.jit(objective.encode_tokens, static_argnums=0)(objective.tokens.size, params, batch)
    for pooling in POOLINGS:
        packed = objective.embed(params, batch, pooling)
        np.testing.assert_allclose(packed, pool(tokens, objective.tokens, pooling), atol=1e-5)
    assert (packed[batch["observed"].any(axis=(1, 2))] != 0).any(axis=1).all()
    order = np.random.default_rng(2).permutation(WINDOWS)
    np.testing.assert_allclose(objective.embed(params, part(batch, order), "hour"), packed[order], atol=1e-5)


def test_token_embeddings_keep_window_and_place(model, batch):
    objective, params = model
    alone = jax.jit(objective.encode_tokens, static_argnums=0)(objective.tokens.size, params, batch)
    packed = objective.embed_tokens(params, batch)
    for window in range(WINDOWS):
        ours, theirs = ([np.asarray(array[window]) for array in each] for each in (packed, alone))
        np.testing.assert_array_equal(ours[1][ours[2]], theirs[1][theirs[2]])
        np.testing.assert_allclose(ours[0][ours[2]], theirs[0][theirs[2]], atol=1e-5)


@pytest.mark.parametrize("decoder", ["cross", "observed", "all"])
def test_reconstructions_do_not_depend_on_the_neighbours_in_a_row(batch, decoder):
    changes = {"model.decoder": decoder, "model.size": "1x24x2x48+2x24x2x48", "rows.eval_max_tokens": 40}
    objective = objectives.build(with_changes(tiny_config("nowhere"), changes), SPEC)
    params = shaken(objective)
    hidden = objective.read_tokens(batch) & (np.random.default_rng(5).random((WINDOWS, objective.tokens.size)) < 0.4)
    packed = objective.reconstruct(params, batch, hidden)
    other = np.roll(np.arange(WINDOWS), 3)
    ablated = objective.ablate_encoder(params, batch, hidden, other)
    np.testing.assert_allclose(ablated.model, packed, atol=1e-5)
    pairs = [
        objective.ablate_encoder(params, part(batch, [row, other[row]]), hidden[[row, other[row]]], np.array([1, 0]))
        for row in range(4)
    ]
    for method in ("model", "swapped", "removed"):
        alone = [getattr(pair, method)[0] for pair in pairs]
        np.testing.assert_allclose(getattr(ablated, method)[:4], alone, atol=1e-5)
    assert np.abs(ablated.swapped - ablated.model).max() > 1e-3


def test_sensor_text_embeddings_do_not_depend_on_the_neighbours_in_a_row(batch, tmp_path):
    language_dataset(tmp_path / "data", people=5)
    run = language_run(tmp_path / "data", "clip", "semantic")
    windows = {**part(batch, slice(5)), "window_id": np.arange(5, dtype=np.int32)}
    packed = run.objective.embed(run.params, windows)
    alone = one_by_one(windows, lambda rows: run.objective.embed(run.params, part(windows, rows)))
    np.testing.assert_allclose(packed, alone, atol=1e-5)


def test_rows_hold_every_token_once_and_few_shapes():
    rng = np.random.default_rng(4)
    selected = [rng.random((300, 900)) < rng.random((300, 1)) ** 2 for _ in range(2)]
    tokens = np.stack([each.sum(axis=1) for each in selected], axis=1)
    found = list(packed_rows(tokens, 900, rows=4, multiple=2))
    places = np.concatenate([packed.windows[packed.windows >= 0] for packed in found])
    assert sorted(places.tolist()) == list(range(300))
    for kind, mask in enumerate(selected):
        seen = np.zeros_like(mask)
        for packed in found:
            rows = packed.rows_of(mask, kind)
            row, slot = np.nonzero(rows.segment)
            window = packed.windows[row, rows.segment[row, slot] - 1]
            assert not seen[window, rows.token_index[row, slot] % 900].any()
            seen[window, rows.token_index[row, slot] % 900] = True
        np.testing.assert_array_equal(seen, mask)
    assert {len(packed.windows) for packed in found} <= {2, 4}
    slots = sum(len(packed.windows) * packed.lengths[0] for packed in packed_rows(tokens[:, :1], 900, 4, 1))
    assert tokens[:, 0].sum() / slots > 0.8  # few slots are padding
    alone = list(packed_rows(tokens, 900, rows=4, multiple=2, max_windows=1))
    assert {packed.windows.shape[1] for packed in alone} == {1}  # empty places would be computed, too
