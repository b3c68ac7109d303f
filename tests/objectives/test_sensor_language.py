"""SensorLM: what each token attends to, what is ignored, and captions learned exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm_jax.captions.tokenizer import BEGIN, END, PAD, SPECIAL
from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import Config, load_config, with_changes
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.nn.generation import Decoding
from lsm_jax.objectives import build, check_new_run
from lsm_jax.objectives.sensor_language import VARIANTS, caption_loss
from lsm_jax.tokens import rows as rows_of

CHANNELS, MINUTES, WINDOWS, LENGTH, VOCABULARY = 4, 120, 4, 10, 300


def spec(channels=MINUTELY_26[:CHANNELS], minutes=MINUTES):
    moments = np.zeros(len(channels), np.float32)
    return DataSpec(tuple(channels), moments, moments + 1, minutes, moments + 0.5)


@functools.cache
def made(variant, queries=3, patch_input="values_and_mask", freeze=False):
    """A small objective of this variant, initial parameters, and its loss and gradient."""
    config = with_changes(
        Config(),
        {"objective.name": variant, "model.size": "2x32x2x64+2x32x2x64+2x32x2x64", "language.levels": "semantic",
         "language.vocab_size": VOCABULARY,
         "language.text_length": LENGTH,
         "language.embed_dim": 8, "language.caption_queries": queries, "tokens.patch_channels": 2,
         "model.patch_input": patch_input, "model.freeze_encoder": freeze, "model.encoder_from": "runs/lsm2"}
    )  # fmt: skip
    objective = build(config, spec())
    params = jax.jit(objective.init)(jax.random.key(0))
    return objective, params, jax.jit(jax.value_and_grad(objective.loss, has_aux=True))


def batch(seed=0, windows=WINDOWS):
    """Windows with gaps and texts of different lengths; the last one has none."""
    random = np.random.default_rng(seed)
    blocks = random.random((windows, MINUTES // 10, CHANNELS)) < 0.6
    observed = np.repeat(blocks, 10, axis=1)
    values = np.where(observed, random.normal(size=observed.shape), 0).astype(np.float32)
    text = np.full((windows, LENGTH), PAD, np.int32)
    for row in range(windows - 1):
        words = random.integers(len(SPECIAL), VOCABULARY, 2 + row % (LENGTH - 4))
        text[row, : len(words) + 2] = [BEGIN, *words, END]
    return {"values": values, "observed": observed, "window_id": np.arange(windows, dtype=np.int32), "text": text}


def restored(objective, params, data):
    """The model, its encoder's tokens and their rows, as `loss` has them."""
    cells, network = objective.tokens.tokenize(data), objective.restored(params)
    observed = objective.tokens.tokens_observed(cells.observed)
    rows = rows_of.pack(jax.random.split(jax.random.key(0), len(observed)), observed, 1, objective.tokens.size)
    return network, network.encode(cells, rows), rows


@pytest.mark.parametrize("queries", [3, 0])
def test_a_token_is_predicted_from_those_before_it_alone(queries):
    objective, params, _ = made("coca", queries)
    data = batch()
    model, encoded, rows = restored(objective, params, data)
    memory = model.memory(encoded, rows, WINDOWS)
    scores = jax.jit(lambda ids: model.caption_logits(model.text(ids), ids, memory))
    ids = data["text"][:3]
    before = scores(np.vstack([ids, ids[:1]]))
    for place in range(1, 4):
        changed = np.vstack([ids, ids[:1]])
        changed[:, place] = (changed[:, place] + 7) % VOCABULARY
        after = scores(changed)
        np.testing.assert_array_equal(before[:, :place], after[:, :place])
        assert np.abs(before[:, place] - after[:, place]).max() > 1e-3


def test_a_layout_without_packed_rows_is_refused():
    changes = {"objective.name": "clip", "language.levels": "semantic", "rows.layout": "dense"}
    with pytest.raises(UserError, match=r"rows\.layout='dense': clip has packed rows only"):
        check_new_run(with_changes(Config(), changes))


@pytest.mark.parametrize(("variant", "queries"), [*((variant, 3) for variant in VARIANTS), ("coca", 0)])
def test_unrecorded_cells_and_padding_change_nothing(variant, queries):
    _, params, step = made(variant, queries)
    data = batch()
    (loss, _), gradient = step(params, data, jax.random.key(1))
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    dirty = data | {"values": np.where(data["observed"], data["values"], np.nan).astype(np.float32)}
    np.testing.assert_array_equal(loss, step(params, dirty, jax.random.key(1))[0][0])
    # Columns of padding cut off: the texts are the same.
    shorter = data | {"text": data["text"][:, :-2]}
    assert (data["text"][:, -2:] == PAD).all()
    np.testing.assert_allclose(loss, step(params, shorter, jax.random.key(1))[0][0], rtol=1e-6)
    # A window without a text contributes nothing, also not as a negative.
    said = {name: part[:-1] for name, part in data.items()}
    np.testing.assert_allclose(loss, step(params, said, jax.random.key(1))[0][0], rtol=1e-6)


def test_batches_without_texts_have_no_gradient():
    _, params, step = made("coca")
    silent = batch() | {"text": np.zeros((WINDOWS, LENGTH), np.int32)}
    (loss, _), gradient = step(params, silent, jax.random.key(1))
    assert float(loss) == 0.0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_scale_above_its_limit_comes_back():
    objective, params, step = made("clip")

    def scale(log_scale, sign):
        contrast = params["contrast"] | {"log_scale": log_scale}
        return sign * objective.restored(params | {"contrast": contrast}).contrast.scale()

    below, above = jnp.log(jnp.float32([50, 150]))
    for sign in (1.0, -1.0):
        np.testing.assert_array_equal(jax.grad(scale)(below, sign), sign * jnp.exp(below))
    assert float(scale(above, 1.0)) == float(jax.grad(scale)(above, 1.0)) == 100
    assert float(jax.grad(scale)(above, -1.0)) == 0  # where a larger one would help, it does not drift away
    # Scores of an untrained model are worse the larger the scale.
    stuck = params | {"contrast": params["contrast"] | {"log_scale": above}}
    (_, metrics), gradient = step(stuck, batch(), jax.random.key(1))
    assert float(metrics["scale"]) == 100 and float(gradient["contrast"]["log_scale"]) > 0


@pytest.mark.parametrize("scale", [-1.0, 101.0])
def test_an_impossible_initial_scale_is_refused(scale):
    changes = {"objective.name": "clip", "language.levels": "semantic", "language.init_logit_scale": scale}
    with pytest.raises(UserError, match=rf"language\.init_logit_scale={scale}: .* at most 100"):
        build(with_changes(Config(), changes), spec())


def test_windows_without_captions_teach_the_captioner_to_write_nothing():
    _, params, step = made("coca")
    data = batch()
    data["text"][:, 1:] = PAD
    data["text"][:, :2] = BEGIN, END
    (loss, metrics), gradient = step(params, data, jax.random.key(1))
    assert float(metrics["contrastive_loss"]) == 0.0 and float(metrics["text_share"]) == 0.0
    assert float(loss) == pytest.approx(2 * float(metrics["caption_loss"])) and float(loss) > 0
    assert not np.any(gradient["contrast"]["text_proj"]["kernel"]) and np.any(gradient["decoder"]["norm"]["scale"])


@pytest.mark.parametrize("variant", ["clip", "siglip"])
def test_the_pooled_token_sees_every_real_token_and_no_padding(variant):
    objective, params, _ = made(variant)
    ids = batch()["text"][:3]
    embedded = objective.embed_text(params, ids)
    np.testing.assert_allclose(jnp.square(embedded).sum(axis=1), 1.0, rtol=1e-5)
    for row, place in np.argwhere(ids != PAD):
        changed = ids.copy()
        changed[row, place] = (changed[row, place] + 11) % VOCABULARY
        apart = np.abs(objective.embed_text(params, changed) - embedded).max(axis=1)
        assert apart[row] > 1e-5
        assert np.delete(apart, row).max() == 0.0
    np.testing.assert_allclose(objective.embed_text(params, ids[:, :-2]), embedded, atol=1e-6)


def test_a_window_is_embedded_from_its_own_recorded_cells_alone():
    objective, params, _ = made("siglip")
    data = batch()
    together = objective.embed(params, data)
    alone = objective.embed(params, {name: part[1:2] for name, part in data.items()})
    np.testing.assert_allclose(together[1:2], alone, atol=1e-5)
    changed = data["values"] + np.where(data["observed"], 0.5, np.inf).astype(np.float32)
    moved = np.abs(objective.embed(params, data | {"values": changed}) - together).max(axis=1)
    assert np.isfinite(moved).all() and moved.min() > 1e-4


def test_the_captioning_loss_ignores_exactly_the_padding():
    ids = jnp.asarray(batch()["text"])
    scores = jax.random.normal(jax.random.key(0), (*ids.shape, VOCABULARY))
    following = np.pad(ids[:, 1:], ((0, 0), (0, 1)))
    loss, weight = caption_loss(scores, ids)
    assert float(weight) == (following != PAD).sum()
    spoiled = jnp.where((following != PAD)[:, :, None], scores, jnp.nan)
    np.testing.assert_array_equal(loss, caption_loss(spoiled, ids)[0])
    gradient = jax.grad(lambda scores: caption_loss(scores, ids)[0])(scores)
    np.testing.assert_array_equal(np.abs(gradient).max(axis=2) > 0, following != PAD)
    # By hand, over the real tokens that follow another.
    expected = [-jax.nn.log_softmax(scores[r, p])[following[r, p]] for r, p in np.argwhere(following != PAD)]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


def test_eight_captions_are_learned_exactly():
    objective, params, _ = made("cap")
    data = batch(seed=3, windows=9)
    optimizer = optax.adam(5e-3)

    @jax.jit
    def learn(params):
        def step(carry, _):
            params, state = carry
            (loss, _), gradient = jax.value_and_grad(objective.loss, has_aux=True)(params, data, jax.random.key(0))
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), length=500)

    (params, _), losses = learn(params)
    assert float(losses[-1]) < 0.05
    for decoding in (Decoding(), Decoding(beams=3), Decoding(temperature=1.0, nucleus=0.5)):
        written = objective.generate(params, data, VOCABULARY, decoding)
        np.testing.assert_array_equal(written[:8], data["text"][:8])


@pytest.mark.parametrize("queries", [3, 0])
def test_cached_generation_equals_the_whole_text(queries):
    objective, params, _ = made("coca", queries)
    data = batch(seed=5)
    written = np.asarray(objective.generate(params, data, VOCABULARY))
    model, encoded, rows = restored(objective, params, data)
    memory = model.memory(encoded, rows, WINDOWS)
    speakable = np.zeros(VOCABULARY, bool)
    speakable[[END, *range(len(SPECIAL), VOCABULARY)]] = True
    scores = jax.jit(lambda ids: model.caption_logits(model.text(ids), ids, memory))
    step = jax.jit(lambda ids, caches, place: model.caption_step(ids, caches, place, memory))
    whole, caches = np.asarray(scores(written)), model.empty_caches(WINDOWS)
    for place in range(LENGTH - 1):
        cached, caches = step(written[:, place], caches, jnp.int32(place))
        going_on = written[:, place + 1] != PAD
        np.testing.assert_allclose(cached[going_on], whole[going_on, place], atol=1e-5)
        best = np.where(speakable, whole[:, place], -np.inf).argmax(axis=1)
        np.testing.assert_array_equal(written[going_on, place + 1], best[going_on])


def test_one_beam_and_a_nucleus_of_one_token_are_the_likeliest_text():
    objective, params, _ = made("coca")
    data = batch(seed=6)
    greedy = objective.generate(params, data, VOCABULARY)
    drawn = objective.generate(params, data, VOCABULARY, Decoding(temperature=1.0, nucleus=1e-6), seed=4)
    np.testing.assert_array_equal(greedy, drawn)
    few = np.asarray(objective.generate(params, data, len(SPECIAL) + 3, Decoding(temperature=5.0), seed=4))
    assert few.max() < len(SPECIAL) + 3  # nothing the tokenizer has no text for
    assert not {PAD, BEGIN} & {*few[:, 1]}


def test_what_a_variant_cannot_do_is_refused():
    with pytest.raises(UserError, match="use one of clip, siglip, coca"):
        made("cap")[0].embed_text(made("cap")[1], batch()["text"])
    with pytest.raises(UserError, match="use one of cap, coca"):
        made("clip")[0].generate(made("clip")[1], batch(), VOCABULARY)
    with pytest.raises(UserError, match=r"language\.levels"):
        build(with_changes(Config(), {"objective.name": "clip"}), spec())
    with pytest.raises(UserError, match="beams"):
        Decoding(beams=2, temperature=1.0)


@pytest.mark.parametrize(("variant", "millions"), [("small", 1.55), ("base", 204), ("coca", 268), ("xl", 1270)])
def test_sizes_have_the_parameters_they_are_named_for(variant, millions):
    objective = build(load_config(f"configs/sensorlm.py:{variant}"), spec(MINUTELY_26, 1440))
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    print(f"{variant}: {count:.2f}M parameters")
    assert count == pytest.approx(millions, rel=0.02)


def test_rows_may_hold_several_windows():
    objective, params, _ = made("siglip")
    data = batch()
    model, encoded, rows = restored(objective, params, data)
    cells = objective.tokens.tokenize(data)
    observed = objective.tokens.tokens_observed(cells.observed)
    pairs = rows_of.pack(jax.random.split(jax.random.key(0), 2), observed, 2, 2 * objective.tokens.size)
    np.testing.assert_allclose(
        model.sensor_embedding(encoded, rows, WINDOWS),
        model.sensor_embedding(model.encode(cells, pairs), pairs, WINDOWS),
        atol=1e-5,
    )


@pytest.mark.parametrize("queries", [3, 0])
def test_captions_are_written_from_their_own_window_of_a_row(queries):
    objective, params, _ = made("cap", queries)
    data = batch()
    model, encoded, rows = restored(objective, params, data)
    cells = objective.tokens.tokenize(data)
    observed = objective.tokens.tokens_observed(cells.observed)
    pairs = rows_of.pack(jax.random.split(jax.random.key(0), 2), observed, 2, 2 * objective.tokens.size)
    ids = jnp.asarray(data["text"])
    alone = model.caption_logits(model.text(ids), ids, model.memory(encoded, rows, WINDOWS))
    memory = model.memory(model.encode(cells, pairs), pairs, WINDOWS)
    together = model.caption_logits(model.text(ids), ids, memory)
    real = np.asarray(ids != PAD)
    np.testing.assert_allclose(np.asarray(together)[real], np.asarray(alone)[real], atol=1e-5)


@pytest.mark.parametrize("variant", ["siglip", "coca"])
def test_a_frozen_encoder_costs_no_backward_pass(variant):
    flops = []
    for freeze in (False, True):
        _, params, step = made(variant, freeze=freeze)
        (_, metrics), _ = step(params, batch(), jax.random.key(0))
        flops.append(float(metrics["useful_flops"]))
    assert 0.4 * flops[0] < flops[1] < 0.9 * flops[0]
