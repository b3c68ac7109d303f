"""Contrastive losses: chunked and sharded they equal the plain formula, gradients too."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.objectives import contrastive


def normalised(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)


def dense_softmax(sensor, text, valid, scale, bias):
    """Radford et al. 2021, figure 3, over the valid pairs alone."""
    scores = scale * normalised(sensor)[valid] @ normalised(text)[valid].T
    both = jnp.diag(jax.nn.log_softmax(scores, 1)) + jnp.diag(jax.nn.log_softmax(scores, 0))
    return -0.5 * both.mean()


def dense_sigmoid(sensor, text, valid, scale, bias):
    """Zhai et al. 2023, algorithm 1, over the valid pairs alone."""
    scores = scale * normalised(sensor)[valid] @ normalised(text)[valid].T + bias
    labels = 2 * jnp.eye(len(scores)) - 1
    return -jax.nn.log_sigmoid(labels * scores).sum() / len(scores)


def dense_same_person(vectors, person, valid, scale):
    """Khosla et al. 2020, equation 2, over the valid windows; and how often the best other window is a partner."""
    scores = scale * vectors[valid] @ vectors[valid].T
    others = ~jnp.eye(len(scores), dtype=bool)
    partners = (person[valid][:, None] == person[valid]) & others
    has_partner = partners.any(axis=1)
    log_shares = scores - jax.nn.logsumexp(jnp.where(others, scores, -jnp.inf), axis=1, keepdims=True)
    losses = -jnp.where(partners, log_shares, 0).sum(axis=1) / jnp.maximum(partners.sum(axis=1), 1)
    best = jnp.where(others, scores, -jnp.inf).argmax(axis=1)
    correct = partners[jnp.arange(len(scores)), best]
    return jnp.array([jnp.where(has_partner, each, 0).sum() for each in (losses, correct)]) / has_partner.sum()


def people_of(seed, batch, hidden):
    """Vectors of windows, their people, which of them count (two of one person at least), and scale."""
    sensor, _, valid, scale, _ = pairs_of(seed, batch, hidden)
    person = np.random.default_rng(seed).integers(0, 1 + batch // 2, batch)
    person[-2:], valid[-2:] = 0, True
    return normalised(sensor), person, valid, scale


def person_value_and_gradients(loss, vectors, person, valid, scale):
    """The loss, how often the best is right, and the gradients of the loss by vectors and scale."""

    def first(vectors, scale):
        both = jnp.stack([*loss(vectors, person, valid, scale)])
        return both[0], both

    gradients, both = jax.jit(jax.grad(first, (0, 1), has_aux=True))(vectors, scale)
    return [both, *gradients]


DENSE = {"softmax": dense_softmax, "sigmoid": dense_sigmoid}


def chunked(kind, axes):
    def loss(sensor, text, valid, scale, bias):
        pairs = normalised(sensor), normalised(text), valid
        if kind == "softmax":
            return contrastive.softmax_loss(*pairs, scale, axes)
        return contrastive.sigmoid_loss(*pairs, scale, bias, axes)

    return loss


def pairs_of(seed, batch, hidden):
    """Embeddings, which of them count (at least one), scale and bias."""
    keys = jax.random.split(jax.random.key(seed), 2)
    valid = np.arange(batch) % 7 >= hidden
    valid[-1] = True
    scalars = jnp.float32(8.0), jnp.float32(-4.0)
    return jax.random.normal(keys[0], (batch, 16)), jax.random.normal(keys[1], (batch, 16)), valid, *scalars


def worst(got, expected):
    """The largest difference of any leaf, relative to that leaf's largest entry."""
    differences = [
        jnp.abs(a - b).max() / jnp.maximum(jnp.abs(b).max(), 1e-3) for a, b in zip(got, expected, strict=True)
    ]
    return float(max(differences))


def value_and_gradients(loss, sensor, text, valid, scale, bias):
    step = jax.jit(jax.value_and_grad(lambda sensor, text, *scalars: loss(sensor, text, valid, *scalars), (0, 1, 2, 3)))
    value, gradients = step(sensor, text, scale, bias)
    return [value, *gradients]


@settings(max_examples=5)
@given(st.integers(0, 99), st.integers(1, 24), st.integers(0, 6), st.integers(1, 30), st.sampled_from(sorted(DENSE)))
def test_chunks_equal_the_plain_formula(seed, batch, hidden, chunk, kind):
    # In float64, since a gradient of the bias may be the small difference of large sums.
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        pairs = [jnp.float64(part) if part.dtype == jnp.float32 else part for part in pairs_of(seed, batch, hidden)]
        patch.setattr(contrastive, "_CHUNK", chunk)
        got = value_and_gradients(chunked(kind, ()), *pairs)
        assert worst(got, value_and_gradients(DENSE[kind], *pairs)) < 1e-9


@settings(max_examples=5)
@given(st.integers(0, 99), st.integers(2, 24), st.integers(0, 6), st.integers(1, 30))
def test_windows_of_one_person_in_chunks_equal_the_plain_formula(seed, batch, hidden, chunk):
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        windows = [jnp.float64(part) if part.dtype == jnp.float32 else part for part in people_of(seed, batch, hidden)]
        patch.setattr(contrastive, "_CHUNK", chunk)
        got = person_value_and_gradients(contrastive.same_person_loss, *windows)
        assert worst(got, person_value_and_gradients(dense_same_person, *windows)) < 1e-9


def test_people_with_one_window_each_have_no_loss_and_no_gradient():
    vectors, _, valid, scale = people_of(0, 6, 0)
    value, *gradients = person_value_and_gradients(contrastive.same_person_loss, vectors, np.arange(6), valid, scale)
    assert value.tolist() == [0, 0]
    assert all(not np.any(gradient) for gradient in gradients)


def test_nothing_to_compare_is_finite_and_has_no_gradient():
    sensor, text, valid, scale, bias = pairs_of(0, 4, 0)
    for kind in DENSE:
        value, *gradients = value_and_gradients(chunked(kind, ()), sensor, text, np.zeros_like(valid), scale, bias)
        assert float(value) == 0.0
        assert all(not np.any(gradient) for gradient in gradients)


def test_in_batch_accuracy_counts_both_directions():
    sensor = normalised(jnp.eye(4))
    text = sensor[jnp.array([0, 1, 3, 2])]
    everyone = np.ones(4, bool)
    assert float(contrastive.in_batch_accuracy(sensor, sensor, everyone)) == 1.0
    assert float(contrastive.in_batch_accuracy(sensor, text, everyone)) == 0.5
    # Invalid windows are neither queries nor candidates.
    assert float(contrastive.in_batch_accuracy(sensor, text, np.array([True, True, False, False]))) == 1.0


SPREAD = """
import json, sys
sys.path.insert(0, "tests/objectives")
import jax, numpy as np
import test_contrastive as here
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from lsm_jax.objectives import contrastive

contrastive._CHUNK = 5
axes = ("data", "fsdp")
mesh = jax.make_mesh((2, 2, 2), (*axes, "tensor"), axis_types=(AxisType.Auto,) * 3)
spread = NamedSharding(mesh, PartitionSpec(axes))
found = {}
for kind, dense in here.DENSE.items():
    sensor, text, valid, *scalars = here.pairs_of(3, 32, 2)
    expected = here.value_and_gradients(dense, sensor, text, valid, *scalars)
    def sharded(*pairs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return here.value_and_gradients(here.chunked(kind, axes), *pairs)
    step = jax.jit(sharded, in_shardings=(spread, spread, spread, None, None))
    program = step.lower(sensor, text, valid, *scalars).compile()
    placed = jax.device_put((sensor, text, valid), spread)
    found[kind] = here.worst(program(*placed, *scalars), expected)
    # 32 pairs over 4 shards: neither the matrix of all pairs nor a device's rows of it may exist.
    found[kind + " matrix"] = any(f"f32[{rows},32]" in program.as_text() for rows in (8, 32))
windows = here.people_of(3, 32, 2)
expected = here.person_value_and_gradients(here.dense_same_person, *windows)
def sharded(vectors, person, valid, scale):
    loss = lambda *parts: contrastive.same_person_loss(*parts, axes)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return here.person_value_and_gradients(loss, vectors, person, valid, scale)
step = jax.jit(sharded, in_shardings=(spread, spread, spread, None))
found["person"] = here.worst(step(*jax.device_put(windows[:3], spread), windows[3]), expected)
print(json.dumps(found))
"""


def test_eight_devices_equal_one(run_with_devices):
    found = json.loads(run_with_devices(SPREAD).splitlines()[-1])
    for kind in DENSE:
        assert found[kind] < 1e-6
        assert found[f"{kind} matrix"] is False
    assert found["person"] < 1e-6
