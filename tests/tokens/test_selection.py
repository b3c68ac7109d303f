"""Choosing without sorting agrees with sorting."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.tokens.selection import lowest, order_keys, places_of

seeds = st.integers(0, 2**31 - 1)
lowest = jax.jit(lowest)
places_of = functools.partial(jax.jit, static_argnums=1)(places_of)


@given(seeds, st.sampled_from([1, 300]), st.sampled_from([2, 1000]), st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_the_lowest_are_those_of_lowest_rank_ties_by_place(seed, total, different, share):
    random = np.random.default_rng(seed)
    scores = random.integers(0, different, total).astype(np.float32) / different
    scores[random.random(total) < 0.3] = np.inf
    count = round(share * total)
    chosen = np.asarray(lowest(order_keys(jnp.asarray(scores)), count))
    ranked = np.argsort(scores, kind="stable")
    assert sorted(ranked[:count]) == np.flatnonzero(chosen).tolist()


@given(seeds, st.sampled_from([127, 128, 400]), st.sampled_from([100]), st.sampled_from([0, 0.02, 0.5, 1]))
@settings(max_examples=15, deadline=None)
def test_places_are_listed_in_order_then_the_end(seed, total, capacity, density):
    chosen = np.random.default_rng(seed).random(total) < density
    expected = np.full(capacity, total)
    found = np.flatnonzero(chosen)[:capacity]
    expected[: len(found)] = found
    np.testing.assert_array_equal(places_of(jnp.asarray(chosen), capacity), expected)
