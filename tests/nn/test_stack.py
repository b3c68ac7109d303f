"""A stack: some output tokens equal those of all, and rotary embeddings see distances only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.nn.layers import OutputTokens, Stack
from lsm_jax.nn.positions import rotation
from lsm_jax.nn.sizes import StackSize

SLOTS, ROWS, WIDTH = 24, 2, 16


def make_stack(depth, remat):
    size = StackSize(depth, WIDTH, 2, 32)
    return Stack(size, implementation="reference", remat=remat, dtype="float32", rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("depth", "remat"), [(1, "none"), (3, "none"), (3, "full")])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), count=st.integers(1, SLOTS))
def test_outputs_and_gradients_are_those_of_all_tokens(depth, remat, seed, count):
    stack, random = make_stack(depth, remat), np.random.default_rng(seed)
    segments = np.sort(random.integers(0, 4, (ROWS, SLOTS)), axis=1)[:, ::-1].copy()
    slots = np.stack([np.sort(random.choice(SLOTS, count, replace=False)) for _ in range(ROWS)])
    slots[:, -1] = np.where(random.random(ROWS) < 0.5, SLOTS, slots[:, -1])  # padding points past the end
    inside = slots < SLOTS
    query_segments = np.where(inside, np.take_along_axis(segments, np.minimum(slots, SLOTS - 1), axis=1), 0)
    real = jnp.asarray(query_segments > 0)[:, :, None]
    outputs = OutputTokens(jnp.asarray(slots), jnp.asarray(query_segments))
    tokens = jnp.asarray(random.normal(size=(ROWS, SLOTS, WIDTH)), jnp.float32)
    direction = jnp.asarray(random.normal(size=(ROWS, count, WIDTH)), jnp.float32)

    def some(stack, tokens):
        return jnp.where(real, stack(tokens, jnp.asarray(segments), outputs=outputs), 0)

    def every(stack, tokens):
        return jnp.where(real, outputs.take(stack(tokens, jnp.asarray(segments))), 0)

    np.testing.assert_allclose(some(stack, tokens), every(stack, tokens), rtol=1e-5, atol=1e-5)
    ours, theirs = (
        nnx.grad(lambda stack, tokens, of=of: (of(stack, tokens) * direction).sum(), argnums=(0, 1))(stack, tokens)
        for of in (some, every)
    )
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16), shift=st.integers(1, 100))
def test_rotary_embeddings_see_how_far_apart_tokens_are_and_nothing_else(seed, shift):
    stack, random = make_stack(2, "none"), np.random.default_rng(seed)
    segments = jnp.ones((ROWS, SLOTS), jnp.int32)
    tokens = jnp.asarray(random.normal(size=(ROWS, SLOTS, WIDTH)), jnp.float32)
    patch = np.sort(random.integers(0, 144, (ROWS, SLOTS)), axis=1)

    def encoded(patch):
        own = rotation(jnp.asarray(patch), stack.head_size)
        return np.asarray(stack(tokens, segments, rotations=(own, own)))

    np.testing.assert_allclose(encoded(patch + shift), encoded(patch), atol=1e-5)
    assert np.abs(encoded(patch * 2) - encoded(patch)).max() > 1e-3
    np.testing.assert_allclose(encoded(patch * 0), np.asarray(stack(tokens, segments)), atol=1e-6)
