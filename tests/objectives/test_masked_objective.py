"""AIM in three layouts, invariance to what was not recorded, and finite gradients everywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import Config, with_changes
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.objectives import build
from lsm_jax.tokens.policies import POLICIES

CHANNELS, MINUTES, WINDOWS = 4, 120, 4
SIZE = "2x16x2x32+1x16x2x32"
ROOMY = {"rows.encoder_length": 64, "rows.decoder_length": 64}


def objective(**changes):
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    config = with_changes(Config(), {"model.size": SIZE, "model.context_width": 16} | ROOMY | changes)
    spec = DataSpec(
        channels=MINUTELY_26[:CHANNELS],
        mean=np.zeros(CHANNELS, np.float32),
        sd=np.ones(CHANNELS, np.float32),
        window_minutes=MINUTES,
        observed_share=np.full(CHANNELS, 0.5, np.float32),
    )
    return build(config, spec)


def batch(seed=0, density=0.5):
    generator = np.random.default_rng(seed)
    blocks = generator.random((WINDOWS, MINUTES // 10, CHANNELS)) < density
    observed = np.repeat(blocks, 10, axis=1) & (generator.random((WINDOWS, MINUTES, CHANNELS)) < 0.9)
    values = np.where(observed, generator.normal(size=observed.shape), 0).astype(np.float32)
    return {"values": values, "observed": observed, "window_id": np.arange(WINDOWS, dtype=np.int32)}


@functools.cache
def learner(**changes):
    made = objective(**changes)
    return made, jax.jit(jax.value_and_grad(made.loss, has_aux=True))


def perturbed_params(made):
    """Initial parameters plus noise, so that no path is multiplied by zero."""
    params = jax.jit(made.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten(
        [leaf + 0.05 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


def close(first, second):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), first, second)


PACKED = ("packed", 1)
# Compiled programs are what these tests cost, so each combination is chosen to hold something of its own.
LAYOUTS = {
    "cross": (PACKED, ("packed", 2), ("dense", 1), ("fixed_drop", 1)),
    "observed": (PACKED, ("dense", 1)),
    "all": (PACKED, ("fixed_drop", 1)),
}


def learner_of(decoder, layout=PACKED):
    # The share over the whole grid masks at least half of the tokens, as the fixed D = 50 % needs.
    return learner(
        model__decoder=decoder, masking__share_of="grid", rows__layout=layout[0], rows__windows_per_row=layout[1]
    )


@pytest.mark.parametrize("decoder", LAYOUTS)
def test_rows_equal_dense_aim_equal_fixed_drop(decoder):
    """SPEC section 3: leaving masked tokens out changes neither outputs, loss nor gradients."""
    results = []
    for layout in LAYOUTS[decoder]:
        made, step = learner_of(decoder, layout)
        (loss, metrics), gradient = step(perturbed_params(made), batch(), jax.random.key(5))
        assert float(metrics["tokens_visible_left_out"]) == float(metrics["tokens_targets_left_out"]) == 0
        results.append((loss, gradient))
    for other in results[1:]:
        close(results[0], other)


@pytest.mark.parametrize("changes", [{}, {"model__decoder": "all", "model__num_neighbors": 0}])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_unobserved_cells_change_nothing(changes, garbage):
    made, step = learner(**changes)
    params, clean = perturbed_params(made), batch()
    dirty = clean | {"values": np.where(clean["observed"], clean["values"], garbage).astype(np.float32)}
    for first, second in zip(
        jax.tree.leaves(step(params, clean, jax.random.key(0))),
        jax.tree.leaves(step(params, dirty, jax.random.key(0))),
        strict=True,
    ):
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(made.embed(params, clean), made.embed(params, dirty))


def test_hidden_tokens_change_nothing():
    """Predictions, fills included, depend on visible tokens alone."""
    made, _ = learner()
    params, data = perturbed_params(made), batch()
    hidden = np.random.default_rng(4).random((WINDOWS, made.tokens.size)) < 0.5
    covered = (
        np.asarray(made.tokens.windows(jnp.repeat(jnp.asarray(hidden)[:, :, None], 10, 2).astype(jnp.float32))) > 0
    )
    other = data | {"values": np.where(covered, data["values"] + 7, data["values"])}
    first, second = (np.asarray(made.reconstruct(params, each, hidden)) for each in (data, other))
    np.testing.assert_array_equal(first[covered], second[covered])
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first[~covered], np.where(data["observed"], data["values"], 0)[~covered])


@pytest.mark.parametrize("decoder", ["all", "observed", "cross"])
def test_windows_without_a_recorded_cell_give_a_finite_loss_and_no_gradient(decoder):
    made, step = learner_of(decoder)
    (loss, _), gradient = step(perturbed_params(made), batch(density=0.0), jax.random.key(0))
    assert float(loss) == 0.0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


def test_gradients_are_finite_under_every_policy():
    made, step = learner(masking__policies=tuple((policy, 0.5, 1.0) for policy in POLICIES))
    params = perturbed_params(made)
    for density in (0.02, 0.5, 1.0):
        for seed in range(5):
            (loss, _), gradient = step(params, batch(density=density), jax.random.key(seed))
            assert np.isfinite(loss)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_masks_depend_on_the_window_not_its_index_in_the_batch():
    made, step = learner()
    params, data = perturbed_params(made), batch()
    order = np.array([2, 0, 3, 1])
    moved = {key: value[order] for key, value in data.items()}
    (first, _), _ = step(params, data, jax.random.key(0))
    (second, _), _ = step(params, moved, jax.random.key(0))
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_left_out_tokens_are_counted():
    made = objective(rows__encoder_length=64, rows__decoder_length=64, rows__windows_per_row=4)
    _, metrics = jax.jit(made.loss)(perturbed_params(made), batch(density=1.0), jax.random.key(0))
    observed = 4 * CHANNELS * MINUTES / 10
    seen = metrics["tokens_visible"] + metrics["tokens_visible_left_out"]
    targets = metrics["tokens_targets"] + metrics["tokens_targets_left_out"]
    assert float(metrics["tokens_visible_left_out"] + metrics["tokens_targets_left_out"]) > 0
    assert float(seen + targets) == float(metrics["tokens_observed"]) == observed


def test_a_sample_of_the_hidden_tokens_gives_an_unbiased_loss_and_gradient():
    """Averaged over samples, loss and gradient are those of all hidden tokens under the same masks."""
    everything, some = objective(), objective(rows__decoded_share=0.25, rows__windows_per_row=4)
    params, data = perturbed_params(everything), batch()
    data["values"][:, 40:45] *= 6  # a burst, sampled most often
    direction = jax.grad(lambda params: everything.loss(params, data, jax.random.key(1))[0])(params)

    def over_draws(made):
        def one(rng):
            (loss, metrics), gradient = jax.value_and_grad(made.loss, has_aux=True)(params, data, rng)
            along = jax.tree.map(jnp.vdot, gradient, direction)
            return loss, sum(jax.tree.leaves(along)), metrics

        return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 1000))

    (loss, slope, metrics), (few_loss, few_slope, few) = over_draws(everything), over_draws(some)
    for name in ("tokens_visible", "loss_weight"):
        np.testing.assert_array_equal(metrics[name], few[name])
    np.testing.assert_array_equal(few["tokens_targets"], np.ceil(metrics["tokens_targets"] / 4))
    assert not few["tokens_targets_left_out"].any()
    assert few["useful_flops"].mean() < metrics["useful_flops"].mean()
    for whole, drawn in ((loss, few_loss), (slope, few_slope)):
        off = np.asarray(drawn - whole)
        assert abs(off.mean()) < 4 * off.std() / 1000**0.5 < 0.1 * abs(float(whole.mean()))
    assert np.unique(few_loss).size > 950  # every sample differs


def test_decoder_rows_are_as_long_as_their_tokens():
    sizes = {"rows__decoder_length": 0, "rows__windows_per_row": 16, "train__batch_size": 16}
    long, short = (objective(**sizes, rows__decoded_share=share).rows.decoder_length for share in (1.0, 0.25))
    assert 0.2 * long < short < 0.5 * long
    for share in (0.0, 1.1):
        with pytest.raises(UserError, match=r"rows\.decoded_share"):
            objective(rows__decoded_share=share)


def test_an_untrained_model_with_context_interpolates():
    """The blend starts from the line between neighbours: better than the mean on a slow signal."""
    made = objective()
    minute = np.arange(MINUTES, dtype=np.float32)
    values = np.tile(np.sin(minute / 40)[None, :, None], (WINDOWS, 1, CHANNELS)).astype(np.float32)
    data = batch() | {"values": values, "observed": np.ones_like(values, bool)}
    hidden = np.zeros((WINDOWS, made.tokens.patches, CHANNELS), bool)
    hidden[:, 5] = True
    predicted = np.asarray(made.reconstruct(made.init(jax.random.key(0)), data, hidden.reshape(WINDOWS, -1)))
    error = np.square(predicted - values)[:, 50:60].mean()
    assert error < np.square(values)[:, 50:60].mean()


def test_an_encoder_ablation_changes_the_encoders_output_only():
    made, _ = learner()
    params, data = perturbed_params(made), batch()
    hidden = np.random.default_rng(4).random((WINDOWS, made.tokens.size)) < 0.5
    own, other = np.arange(WINDOWS), np.array([1, 2, 3, 0])
    unchanged, changed = (made.ablate_encoder(params, data, hidden, each) for each in (own, other))
    close(unchanged.model, made.reconstruct(params, data, hidden))
    close(unchanged.swapped, unchanged.model)
    close(changed.model, unchanged.model)
    close(changed.removed, unchanged.removed)
    assert np.abs(changed.swapped - changed.model).max() > 1e-3
    # Without its output nothing in the encoder matters.
    without = params | {"encoder": jax.tree.map(jnp.ones_like, params["encoder"])}
    close(made.ablate_encoder(without, data, hidden, own).removed, unchanged.removed)


@pytest.mark.parametrize("changes", [{}, {"model__num_neighbors": 0, "model__decoder": "all"}])
def test_a_trained_encoder_carries_the_model(changes):
    """After short training the error is at least a tenth lower than with another window's encoder output or none.

    Every window is a sine of its own phase and period, which hidden cells follow.
    """
    made = objective(model__size="2x32x4x64+1x32x4x64", masking__policies=(("random", 0.6, 1.0),), **changes)
    params, data = trained(made, steps=300)
    hidden = np.random.default_rng(1).random((8, made.tokens.size)) < 0.6
    covered = np.repeat(hidden[:, :, None], 10, axis=2)
    truth = np.asarray(made.tokens.cells(jnp.asarray(data["values"])))[covered]
    predictions = made.ablate_encoder(params, data, hidden, np.roll(np.arange(8), 1))
    model, swapped, removed = (
        np.square(np.asarray(made.tokens.cells(each))[covered] - truth).mean() for each in predictions
    )
    assert model < 0.9 * min(swapped, removed)
    health = made.representation(params, data)
    assert health["window_cosine"] < 0.98  # training warns above
    assert 0 < health["attention_entropy"] <= 1


def test_embeddings_are_means_over_observed_tokens_of_each_window_alone():
    made, _ = learner()
    params, data = perturbed_params(made), batch()
    together = np.asarray(made.embed(params, data))
    alone = np.asarray(made.embed(params, {key: value[1:2] for key, value in data.items()}))
    np.testing.assert_allclose(together[1:2], alone, rtol=1e-5, atol=1e-5)
    empty = data | {"observed": np.zeros_like(data["observed"])}
    assert (np.asarray(made.embed(params, empty)) == 0).all()


def test_poolings_are_statistics_of_the_token_embeddings():
    made, _ = learner()
    params, data = perturbed_params(made), batch()
    tokens = made.embed_tokens(params, data)
    vectors, index, real = (np.asarray(part) for part in tokens)
    np.testing.assert_array_equal(
        np.sort(np.where(real, index, -1)[0])[-real[0].sum() :], np.flatnonzero(made.observed(data)[0])
    )
    grid, own = made.tokens, vectors[0][real[0]]
    close(made.embed(params, data)[0], own.mean(axis=0))
    close(made.embed(params, data, "mean_sd")[0], np.concatenate([own.mean(axis=0), own.std(axis=0)]))
    channel = index[0][real[0]] % grid.groups
    hour = index[0][real[0]] // grid.groups * grid.patch_minutes // 60
    hours = -(-grid.window_minutes // 60)
    for pooling, part, parts in (("channel", channel, grid.groups), ("hour", hour, hours)):
        each = [own[part == i].mean(axis=0) if (part == i).any() else np.zeros(own.shape[1]) for i in range(parts)]
        close(made.embed(params, data, pooling)[0], np.concatenate(each))
    both = [
        np.concatenate([own[channel == i].mean(axis=0), own[channel == i].std(axis=0)])
        if (channel == i).any()
        else np.zeros(2 * own.shape[1])
        for i in range(grid.groups)
    ]
    close(made.embed(params, data, "channel_mean_sd")[0], np.concatenate(both))
    with pytest.raises(UserError, match=r"no pooling 'means'\. Did you mean 'mean'"):
        made.embed(params, data, "means")


def test_embeddings_read_every_token_however_few_reconstructions_do():
    made, few = learner()[0], objective(rows__eval_max_tokens=8)
    params, data = perturbed_params(made), batch()
    hidden = np.zeros((WINDOWS, made.tokens.size), bool)
    hidden[:, ::7] = True
    assert np.asarray(few.reconstruct(params, data, hidden) != made.reconstruct(params, data, hidden)).any()
    np.testing.assert_array_equal(few.embed(params, data), made.embed(params, data))
    elsewhere = data | {"window_id": data["window_id"] + 100}
    close(few.embed(params, elsewhere), few.embed(params, data))


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("model__decoder", "al", "all"),
        ("model__size", "bsae", "base"),
        ("model__positions", "sincoss", "sincos"),
        ("model__remat", "ful", "full"),
        ("rows__layout", "pakced", "packed"),
        ("objective__name", "masked", "masked_reconstruction"),
    ],
)
def test_names_that_do_not_exist_are_refused_with_the_nearest(key, value, word):
    with pytest.raises(UserError, match=word):
        objective(**{key: value})


def test_layouts_of_the_paper_hold_one_window_to_a_row():
    with pytest.raises(UserError, match="windows_per_row"):
        objective(rows__layout="dense", rows__windows_per_row=2)


@pytest.mark.parametrize("share", [-0.5, 1.0, 1.5])
def test_a_share_to_drop_is_below_one(share):
    with pytest.raises(UserError, match=rf"rows\.dropped_share={share}: give a share from 0 to below 1"):
        objective(rows__layout="fixed_drop", rows__windows_per_row=1, rows__dropped_share=share)


def trained(made, steps):
    """Parameters after training on eight windows with one mask, and the windows."""
    minute, random = np.arange(MINUTES)[None, :, None], np.random.default_rng(0)
    phase, period = random.uniform(0, 6, (8, 1, CHANNELS)), random.uniform(10, 30, (8, 1, CHANNELS))
    values = np.sin(minute / period + phase).astype(np.float32)
    data = {"values": values, "observed": np.ones_like(values, bool), "window_id": np.arange(8, dtype=np.int32)}
    optimizer = optax.adam(3e-3)

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda params: made.loss(params, data, jax.random.key(0))[0])(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    def learn(rng):
        params = made.init(rng)
        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]

    return jax.jit(learn)(jax.random.key(0)), data


def test_eight_windows_are_overfitted():
    """One mask: the loss falls to a small share of the loss of predicting the mean."""
    made = objective(model__size="2x64x4x128+1x64x4x128", model__num_neighbors=0)
    params, data = trained(made, steps=400)
    before, after = (made.loss(each, data, jax.random.key(0))[0] for each in (made.init(jax.random.key(0)), params))
    assert before > 0.4
    assert after < 0.02


def test_the_person_loss_is_added_and_pulls_windows_of_one_person_together():
    made, step = learner(objective__person_weight=0.5, rows__windows_per_row=2)
    params = perturbed_params(made)
    data = batch() | {"person": np.array([0, 0, 1, 1], np.int32)}
    (loss, metrics), gradients = step(params, data, jax.random.key(0))
    assert float(metrics["person_loss"]) > 0
    np.testing.assert_allclose(loss, metrics["reconstruction_loss"] + 0.5 * metrics["person_loss"], rtol=1e-6)
    assert np.any(gradients["person_head"]["head_output"]["kernel"])
    _, plain_step = learner(rows__windows_per_row=2)
    own = {name: params[name] for name in ("encoder", "decoder")}
    (reconstruction, _), _ = plain_step(own, data, jax.random.key(0))
    np.testing.assert_allclose(metrics["reconstruction_loss"], reconstruction, rtol=1e-6)
    for _ in range(30):
        (_, last), gradients = step(params, data, jax.random.key(0))
        params = jax.tree.map(lambda leaf, gradient: leaf - 0.05 * gradient, params, gradients)
    assert float(last["person_loss"]) < 0.8 * float(metrics["person_loss"])


def test_windows_without_a_partner_or_tokens_leave_the_loss_finite():
    made, step = learner(objective__person_weight=0.5, rows__windows_per_row=2)
    params = perturbed_params(made)
    for observed, people in ((batch()["observed"], np.arange(WINDOWS)), (np.zeros_like(batch()["observed"]), [0] * 4)):
        data = batch() | {"observed": observed, "person": np.array(people, np.int32)}
        (loss, metrics), gradients = step(params, data, jax.random.key(0))
        assert float(metrics["person_loss"]) == 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, gradients)))


@pytest.mark.parametrize(("key", "value"), [("person_weight", -1.0), ("temperature", 0.0)])
def test_settings_of_the_person_loss_are_checked(key, value):
    with pytest.raises(UserError, match=f"objective.{key}={value}"):
        objective(**{f"objective__{key}": value})
