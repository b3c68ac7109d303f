"""Fills of target tokens, against a slow and obvious computation."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.channels import MINUTELY_26
from lsm_jax.nn.fills import fills
from lsm_jax.tokens import rows as rows_of
from lsm_jax.tokens.grid import TokenCells, TokenGrid

GRID = TokenGrid(MINUTELY_26[:2], window_minutes=80)


@jax.jit
def fills_of_all(values, observed, visible):
    cells = TokenCells(GRID.cells(values), GRID.cells(observed))
    return fills(cells, visible, rows_of.dense(jnp.ones_like(visible)), GRID)


def window(seed, density):
    generator = np.random.default_rng(seed)
    observed = generator.random((1, 80, 2)) < density
    values = np.where(observed, generator.normal(size=observed.shape), 0).astype(np.float32)
    recorded = np.asarray(GRID.cells(jnp.asarray(observed))).any(-1)
    return values, observed, recorded & (generator.random(recorded.shape) < 0.6)


def cells_of(token):
    patch, channel = divmod(token, GRID.groups)
    return slice(10 * patch, 10 * patch + 10), channel


@given(seed=st.integers(0, 2**31 - 1), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_fills_are_the_line_the_side_means_and_the_window_mean(seed, density):
    values, observed, visible = window(seed, density)
    filled = np.asarray(fills_of_all(values, observed, jnp.asarray(visible)))[0]
    visible_cells = np.zeros((80, 2), bool)
    for token in np.flatnonzero(visible[0]):
        minutes, channel = cells_of(token)
        visible_cells[minutes, channel] = observed[0, minutes, channel]
    for token in range(GRID.size):
        minutes, channel = cells_of(token)
        # The fills of a visible token are of its neighbours, too, never of itself.
        others = visible_cells[:, channel].copy()
        others[minutes] = False
        neighbours = np.flatnonzero(others)
        everything = np.flatnonzero(visible_cells[:, channel])
        line, mean = np.zeros(10), 0.0
        if neighbours.size:
            line = np.interp(np.arange(80)[minutes], neighbours, values[0, neighbours, channel])
        if everything.size:
            mean = values[0, everything, channel].mean()
        np.testing.assert_allclose(filled[token, 0], line, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(filled[token, 3], mean, rtol=1e-5, atol=1e-5)
        before, after = neighbours[neighbours < minutes.start], neighbours[neighbours >= minutes.stop]
        left = before[before // 10 == before[-1] // 10] if before.size else after[after // 10 == after[:1] // 10]
        right = after[after // 10 == after[0] // 10] if after.size else before[before // 10 == before[-1:] // 10]
        for fill, cells in ((1, left), (2, right)):
            expected = values[0, cells, channel].mean() if cells.size else 0.0
            np.testing.assert_allclose(filled[token, fill], expected, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 2**31 - 1))
def test_hidden_cells_change_nothing(seed):
    values, observed, visible = window(seed, 0.5)
    covered = np.asarray(GRID.windows(jnp.repeat(jnp.asarray(~visible)[:, :, None], 10, axis=2)))
    first = fills_of_all(values, observed, jnp.asarray(visible))
    second = fills_of_all(np.where(covered, 9.0, values).astype(np.float32), observed, jnp.asarray(visible))
    np.testing.assert_array_equal(first, second)
