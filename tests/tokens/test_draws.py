"""Draws by odds: chances that sum to what is drawn, exact counts, and frequencies that follow the chances."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.tokens import rows as rows_of
from lsm_jax.tokens.sampling import chances, draw

TOKENS = 40


def some_odds(seed, spread):
    generator = np.random.default_rng(seed)
    return (np.exp(spread * generator.normal(size=TOKENS)) + 0.1).astype(np.float32), generator.random(TOKENS) < 0.6


@given(seed=st.integers(0, 2**31 - 1), spread=st.sampled_from([0.0, 1.0, 3.0]), share=st.floats(0, 1))
def test_chances_sum_to_what_is_drawn_and_follow_the_odds(seed, spread, share):
    odds, chosen = some_odds(seed, spread)
    count = int(share * chosen.sum())
    chance = np.asarray(chances(jnp.asarray(odds), jnp.asarray(chosen), jnp.int32(count)))
    assert (chance[~chosen] == 0).all()
    assert (chance <= 1).all()
    np.testing.assert_allclose(chance.sum(), count, rtol=1e-4)
    below = chosen & (chance < 1)
    if count and below.any():
        ratio = chance[below] / odds[below]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
        assert (ratio[0] * odds[chosen & ~below] >= 1 - 1e-4).all()  # only whose share would be more are sure
    taken = np.asarray(draw(jax.random.key(seed), jnp.asarray(chance), jnp.int32(count)))
    assert taken.sum() == count
    assert not taken[~chosen].any()


def test_elements_are_drawn_as_often_as_their_chance_says():
    odds, chosen = some_odds(0, 1.0)
    chance = chances(jnp.asarray(odds), jnp.asarray(chosen), jnp.int32(8))
    keys = jax.random.split(jax.random.key(0), 20_000)
    often = np.asarray(jax.vmap(lambda key: draw(key, chance, jnp.int32(8)))(keys).mean(axis=0))
    # Four standard errors of a frequency, and what Pareto sampling is off by with so few drawn.
    np.testing.assert_allclose(often, chance, atol=4 * 0.5 / 20_000**0.5, rtol=0.02)


@given(
    seed=st.integers(0, 2**31 - 1),
    share=st.sampled_from([0.1, 0.25, 1.0]),
    windows_per_row=st.sampled_from([1, 2]),
    capacity=st.sampled_from([3, 16, 200]),
)
def test_drawn_rows_hold_a_share_and_count_what_does_not_fit(seed, share, windows_per_row, capacity):
    generator = np.random.default_rng(seed)
    chosen = generator.random((4, TOKENS)) < 0.7
    odds = (generator.random((4, TOKENS)) + 0.1).astype(np.float32)
    keys = jax.random.split(jax.random.key(seed), 4 // windows_per_row)
    rows, chance = rows_of.drawn(keys, jnp.asarray(chosen), jnp.asarray(odds), share, windows_per_row, capacity)
    wanted = np.ceil(np.float32(share) * chosen.reshape(len(keys), -1).sum(axis=1).astype(np.float32))
    held = (np.asarray(rows.segment) > 0).sum(axis=1)
    np.testing.assert_array_equal(held, np.minimum(wanted, min(capacity, windows_per_row * TOKENS)))
    np.testing.assert_array_equal(held + np.asarray(rows.left_out), wanted)
    np.testing.assert_array_equal(np.asarray(chance) > 0, chosen)
    assert (np.asarray(rows.take(chance))[np.asarray(rows.segment) > 0] > 0).all()
    if share == 1 and capacity >= windows_per_row * TOKENS:
        np.testing.assert_array_equal(np.asarray(chance), chosen)  # all of them, each for itself alone
