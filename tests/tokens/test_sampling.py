"""Unequal-probability sampling: probabilities sum to k, counts are exact, frequencies follow the probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.tokens import rows as rows_of
from lsm_jax.tokens.sampling import inclusion_probabilities, pareto_sample

TOKENS = 40


def random_weights(seed, spread):
    generator = np.random.default_rng(seed)
    return (np.exp(spread * generator.normal(size=TOKENS)) + 0.1).astype(np.float32), generator.random(TOKENS) < 0.6


@given(seed=st.integers(0, 2**31 - 1), spread=st.sampled_from([0.0, 1.0, 3.0]), share=st.floats(0, 1))
def test_probabilities_sum_to_k_and_are_proportional_to_the_weights(seed, spread, share):
    weights, eligible = random_weights(seed, spread)
    count = int(share * eligible.sum())
    probability = np.asarray(inclusion_probabilities(jnp.asarray(weights), jnp.asarray(eligible), jnp.int32(count)))
    assert (probability[~eligible] == 0).all()
    assert (probability <= 1).all()
    np.testing.assert_allclose(probability.sum(), count, rtol=1e-4)
    below = eligible & (probability < 1)
    if count and below.any():
        ratio = probability[below] / weights[below]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
        assert (ratio[0] * weights[eligible & ~below] >= 1 - 1e-4).all()  # certain only if it would exceed 1
    sample = np.asarray(pareto_sample(jax.random.key(seed), jnp.asarray(probability), jnp.int32(count)))
    assert sample.sum() == count
    assert not sample[~eligible].any()


def test_elements_are_sampled_as_often_as_their_probability():
    weights, eligible = random_weights(0, 1.0)
    probability = inclusion_probabilities(jnp.asarray(weights), jnp.asarray(eligible), jnp.int32(8))
    keys = jax.random.split(jax.random.key(0), 20_000)
    frequency = np.asarray(jax.vmap(lambda key: pareto_sample(key, probability, jnp.int32(8)))(keys).mean(axis=0))
    # Four standard errors of a frequency, and the bias of Pareto sampling for so few.
    np.testing.assert_allclose(frequency, probability, atol=4 * 0.5 / 20_000**0.5, rtol=0.02)


@given(
    seed=st.integers(0, 2**31 - 1),
    share=st.sampled_from([0.1, 0.25, 1.0]),
    windows_per_row=st.sampled_from([1, 2]),
    capacity=st.sampled_from([3, 16, 200]),
)
def test_sampled_rows_hold_a_share_and_count_what_does_not_fit(seed, share, windows_per_row, capacity):
    generator = np.random.default_rng(seed)
    eligible = generator.random((4, TOKENS)) < 0.7
    weights = (generator.random((4, TOKENS)) + 0.1).astype(np.float32)
    keys = jax.random.split(jax.random.key(seed), 4 // windows_per_row)
    rows, probability = rows_of.pack_sampled(
        keys, jnp.asarray(eligible), jnp.asarray(weights), share, windows_per_row, capacity
    )
    expected = np.ceil(np.float32(share) * eligible.reshape(len(keys), -1).sum(axis=1).astype(np.float32))
    kept = (np.asarray(rows.segment) > 0).sum(axis=1)
    np.testing.assert_array_equal(kept, np.minimum(expected, min(capacity, windows_per_row * TOKENS)))
    np.testing.assert_array_equal(kept + np.asarray(rows.left_out), expected)
    np.testing.assert_array_equal(np.asarray(probability) > 0, eligible)
    assert (np.asarray(rows.take(probability))[np.asarray(rows.segment) > 0] > 0).all()
    if share == 1 and capacity >= windows_per_row * TOKENS:
        np.testing.assert_array_equal(np.asarray(probability), eligible)  # all of them, with certainty
