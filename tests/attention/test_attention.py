"""Segment attention against plain softmax, window by window, and against hostile padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.attention import IMPLEMENTATIONS, attention
from lsm_jax.errors import UserError


def plain(query, key, value):
    scores = np.einsum("shd,thd->hst", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hst,thd->shd", weights / weights.sum(-1, keepdims=True), value)


def row(lengths, capacity):
    segments = np.concatenate(
        [np.full(length, place + 1) for place, length in enumerate(lengths)] + [np.zeros(capacity)]
    )
    return segments[:capacity].astype(np.int32)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@given(
    seed=st.integers(0, 2**31 - 1),
    queries=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    keys=st.lists(st.integers(0, 9), min_size=1, max_size=3),
)
def test_each_segment_is_plain_attention_over_its_own_keys(name, seed, queries, keys):
    generator = np.random.default_rng(seed)
    query = generator.normal(size=(1, 30, 2, 8)).astype(np.float32)
    key, value = generator.normal(size=(2, 1, 30, 2, 8)).astype(np.float32)
    query_segments, key_segments = row(queries, 30), row(keys, 30)
    result = np.asarray(attention(query, key, value, query_segments[None], key_segments[None], name))[0]
    assert (result[query_segments == 0] == 0).all()
    for segment in range(1, len(queries) + 1):
        asked, known = query_segments == segment, key_segments == segment
        if asked.any() and known.any():
            expected = plain(query[0][asked], key[0][known], value[0][known])
            np.testing.assert_allclose(result[asked], expected, rtol=1e-5, atol=1e-5)
        else:
            assert (result[asked] == 0).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_padding_reaches_neither_output_nor_gradient(name, garbage):
    generator = np.random.default_rng(0)
    clean = generator.normal(size=(3, 2, 12, 2, 4)).astype(np.float32)
    segments = jnp.asarray([row([5, 3], 12), row([0], 12)])
    padding = np.asarray(segments == 0)[None, :, :, None, None]

    def loss(tokens):
        return jnp.sum(jnp.sin(attention(*tokens, segments, segments, name)))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(np.where(padding, 0, clean)))
    dirty_value, dirty_gradient = jax.value_and_grad(loss)(jnp.asarray(np.where(padding, garbage, clean)))
    assert value == dirty_value
    np.testing.assert_array_equal(gradient, dirty_gradient)
    assert (np.asarray(gradient)[np.broadcast_to(padding, clean.shape)] == 0).all()


def test_an_unknown_implementation_is_named():
    with pytest.raises(UserError, match="reference"):
        attention(*(jnp.zeros((1, 1, 1, 1)),) * 3, *(jnp.ones((1, 1), jnp.int32),) * 2, "referense")
