"""What a hidden token is shown, against a slow and obvious reading of the same window."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.channels import MINUTELY_26
from lsm_jax.nn.neighbours import Cells, feature_count, surroundings
from lsm_jax.tokens import rows as rows_of
from lsm_jax.tokens.grid import TokenGrid

GRID = TokenGrid(MINUTELY_26[:2], window_minutes=80)
REACH = 2


@jax.jit
def anchors_and_features(values, observed, shown):
    cells = Cells(GRID.cells(values), GRID.cells(observed))
    targets = rows_of.dense(jnp.ones_like(shown))
    around = surroundings(cells, shown, targets, GRID, REACH)
    return around.anchors, around.features


def window(seed, density):
    generator = np.random.default_rng(seed)
    observed = generator.random((1, 80, 2)) < density
    values = np.where(observed, generator.normal(size=observed.shape), 0).astype(np.float32)
    recorded = np.asarray(GRID.cells(jnp.asarray(observed))).any(-1)
    return values, observed, recorded & (generator.random(recorded.shape) < 0.6)


def of_token(token):
    patch, channel = divmod(token, GRID.groups)
    return slice(10 * patch, 10 * patch + 10), channel


@given(seed=st.integers(0, 2**31 - 1), density=st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_anchors_are_the_line_the_side_means_and_the_window_mean(seed, density):
    values, observed, shown = window(seed, density)
    anchors, features = (np.asarray(array)[0] for array in anchors_and_features(values, observed, jnp.asarray(shown)))
    assert features.shape[-1] == feature_count(GRID, REACH)
    assert np.isfinite(features).all()
    visible = np.zeros((80, 2), bool)
    for token in np.flatnonzero(shown[0]):
        minutes, channel = of_token(token)
        visible[minutes, channel] = observed[0, minutes, channel]
    for token in range(GRID.size):
        minutes, channel = of_token(token)
        # A token that is shown looks at its neighbours all the same, never at itself.
        others = visible[:, channel].copy()
        others[minutes] = False
        known = np.flatnonzero(others)
        everything = np.flatnonzero(visible[:, channel])
        line, mean = np.zeros(10), 0.0
        if known.size:
            line = np.interp(np.arange(80)[minutes], known, values[0, known, channel])
        if everything.size:
            mean = values[0, everything, channel].mean()
        np.testing.assert_allclose(anchors[token, 0], line, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(anchors[token, 3], mean, rtol=1e-5, atol=1e-5)
        before, after = known[known < minutes.start], known[known >= minutes.stop]
        left = before[before // 10 == before[-1] // 10] if before.size else after[after // 10 == after[:1] // 10]
        right = after[after // 10 == after[0] // 10] if after.size else before[before // 10 == before[-1:] // 10]
        for place, side in ((1, left), (2, right)):
            expected = values[0, side, channel].mean() if side.size else 0.0
            np.testing.assert_allclose(anchors[token, place], expected, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 2**31 - 1))
def test_hidden_cells_leave_no_trace(seed):
    values, observed, shown = window(seed, 0.5)
    covered = np.asarray(GRID.windows(jnp.repeat(jnp.asarray(~shown)[:, :, None], 10, axis=2)))
    first = anchors_and_features(values, observed, jnp.asarray(shown))
    second = anchors_and_features(np.where(covered, 9.0, values).astype(np.float32), observed, jnp.asarray(shown))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
