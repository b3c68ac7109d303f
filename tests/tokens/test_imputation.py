"""Imputation against NumPy's interpolation, and its blindness to what was not recorded."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.tokens.imputation import filled, impute

fill = jax.jit(filled)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_gaps_are_filled_as_numpy_interpolates(seed, density):
    rng = np.random.default_rng(seed)
    observed = rng.random((2, 12, 3)) < density
    values = rng.normal(size=observed.shape).astype(np.float32)
    result = np.asarray(fill(values, observed))
    for window, channel in np.ndindex(2, 3):
        minutes = np.flatnonzero(observed[window, :, channel])
        expected = np.zeros(12)
        if len(minutes):
            expected = np.interp(np.arange(12), minutes, values[window, minutes, channel])
        np.testing.assert_allclose(result[window, :, channel], expected, atol=1e-5)
    np.testing.assert_array_equal(result[observed], values[observed])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_unobserved_values_are_not_read(garbage):
    rng = np.random.default_rng(0)
    observed = rng.random((2, 30, 3)) < 0.5
    values = rng.normal(size=observed.shape).astype(np.float32)
    dirty = np.where(observed, values, garbage).astype(np.float32)
    np.testing.assert_array_equal(fill(values, observed), fill(dirty, observed))


def test_a_window_without_a_recorded_cell_stays_unobserved():
    observed = np.zeros((2, 30, 3), bool)
    observed[0, 7, 1] = True
    batch = impute(
        {"values": np.full(observed.shape, 2.0, np.float32), "observed": observed, "window_id": np.arange(2)}
    )
    np.testing.assert_array_equal(np.asarray(batch["observed"]).all(axis=(1, 2)), [True, False])
    assert not np.asarray(batch["values"])[1].any()
    np.testing.assert_array_equal(batch["window_id"], np.arange(2))
