"""Rows hold each selected token once, in contiguous segments, and count what they leave out."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.tokens import rows as rows_of

WINDOWS, TOKENS = 6, 20


@given(
    seed=st.integers(0, 2**31 - 1),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    windows_per_row=st.sampled_from([1, 2, 3]),
    capacity=st.sampled_from([1, 13, 70]),
)
def test_packed_rows_hold_each_selected_token_once(seed, density, windows_per_row, capacity):
    selected = np.random.default_rng(seed).random((WINDOWS, TOKENS)) < density
    keys = jax.random.split(jax.random.key(seed), WINDOWS // windows_per_row)
    rows = rows_of.pack(keys, jnp.asarray(selected), windows_per_row, capacity)
    index, segment = np.asarray(rows.token_index), np.asarray(rows.segment)
    by_row = selected.reshape(WINDOWS // windows_per_row, -1)
    for row, expected in enumerate(by_row):
        kept = index[row][segment[row] > 0]
        assert len(set(kept)) == len(kept)
        assert expected[kept].all()
        assert len(kept) == min(expected.sum(), index.shape[1])
        assert int(rows.left_out[row]) == expected.sum() - len(kept)
        np.testing.assert_array_equal(segment[row][segment[row] > 0], kept // TOKENS + 1)
        # Contiguous segments in order, padding at the end.
        assert (np.diff(np.where(segment[row] == 0, windows_per_row + 1, segment[row])) >= 0).all()


def fixed_drop_to(key, selected, windows_per_row, length):
    return rows_of.fixed_drop(key, selected, selected.shape[1] - length)


@given(seed=st.integers(0, 2**31 - 1), layout=st.sampled_from([rows_of.pack, fixed_drop_to]))
def test_tokens_that_do_not_fit_depend_on_the_key(seed, layout):
    selected = jnp.ones((1, 200), bool)
    first, second = (layout(jax.random.key(key)[None], selected, 1, 100) for key in (seed, seed + 1))
    assert not np.array_equal(first.token_index, second.token_index)
    assert int(first.left_out[0]) == 100


@given(seed=st.integers(0, 2**31 - 1), windows_per_row=st.sampled_from([1, 2]))
def test_take_and_slots_agree(seed, windows_per_row):
    generator = np.random.default_rng(seed)
    selected = jnp.asarray(generator.random((4, TOKENS)) < 0.5)
    other = jnp.asarray(generator.random((4, TOKENS)) < 0.5)
    values = jnp.asarray(generator.normal(size=(4, TOKENS, 3)))
    keys = jax.random.split(jax.random.key(0), 4 // windows_per_row)
    rows = rows_of.pack(keys, selected, windows_per_row, windows_per_row * TOKENS)
    target_rows = rows_of.pack(keys, other, windows_per_row, windows_per_row * TOKENS)
    slots = np.asarray(rows.slots_of(target_rows))
    kept, real = np.asarray(rows.take(values)), np.asarray(target_rows.segment) > 0
    expected, present = np.asarray(target_rows.take(values)), np.asarray(target_rows.take(selected)) & real
    for row, place in zip(*np.nonzero(present), strict=True):
        np.testing.assert_array_equal(kept[row, slots[row, place]], expected[row, place])
    assert (slots[real & ~present] == rows.segment.shape[1]).all()


@given(seed=st.integers(0, 2**31 - 1), dropped=st.sampled_from([0, 7, TOKENS - 1]))
def test_fixed_drop_keeps_selected_tokens_first(seed, dropped):
    selected = np.random.default_rng(seed).random((3, TOKENS)) < 0.4
    rows = rows_of.fixed_drop(jax.random.split(jax.random.key(seed), 3), jnp.asarray(selected), dropped)
    assert rows.token_index.shape == (3, TOKENS - dropped)
    for row in range(3):
        kept = np.asarray(rows.token_index[row])[np.asarray(rows.segment[row]) > 0]
        assert selected[row, kept].all()
        assert len(kept) + int(rows.left_out[row]) == selected[row].sum()
        assert len(kept) == min(selected[row].sum(), TOKENS - dropped)
