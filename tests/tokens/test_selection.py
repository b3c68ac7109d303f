"""Selection without sorting agrees with sorting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.tokens.selection import indices_where, order_keys, smallest_k_mask

seeds = st.integers(0, 2**31 - 1)
smallest_k_mask = jax.jit(smallest_k_mask)
indices_where = functools.partial(jax.jit, static_argnums=1)(indices_where)


@given(seeds, st.sampled_from([1, 300]), st.sampled_from([2, 1000]), st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_the_k_smallest_are_those_of_a_stable_sort(seed, total, different, share):
    random = np.random.default_rng(seed)
    scores = random.integers(0, different, total).astype(np.float32) / different
    scores[random.random(total) < 0.3] = np.inf
    count = round(share * total)
    mask = np.asarray(smallest_k_mask(order_keys(jnp.asarray(scores)), count))
    ranked = np.argsort(scores, kind="stable")
    assert sorted(ranked[:count]) == np.flatnonzero(mask).tolist()


@given(seeds, st.sampled_from([127, 128, 400]), st.sampled_from([100]), st.sampled_from([0, 0.02, 0.5, 1]))
@settings(max_examples=15, deadline=None)
def test_indices_are_listed_in_order_then_the_length(seed, total, length, density):
    mask = np.random.default_rng(seed).random(total) < density
    expected = np.full(length, total)
    found = np.flatnonzero(mask)[:length]
    expected[: len(found)] = found
    np.testing.assert_array_equal(indices_where(jnp.asarray(mask), length), expected)
