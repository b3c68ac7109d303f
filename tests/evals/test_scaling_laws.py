"""Power laws are recovered, with intervals that hold the truth; the frontier is the lower envelope."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.evals.scaling import PowerLaw, fit_power_law, frontier, law_with_intervals


@given(st.floats(0.1, 1.5), st.floats(0, 0.9), st.sampled_from([1.0, 1e6, 1e18]))
def test_an_exact_law_is_recovered_in_any_unit(exponent, floor, unit):
    amount = unit * np.array([1.0, 4.0, 16.0, 64.0, 256.0])
    truth = PowerLaw(unit**exponent, -exponent, floor)
    found = fit_power_law(amount, truth(amount))
    np.testing.assert_allclose(found(amount), truth(amount), rtol=1e-3)
    np.testing.assert_allclose([found.b, found.c], [truth.b, truth.c], atol=0.02)


def test_intervals_hold_the_truth_and_widen_with_noise():
    amount, truth = np.geomspace(1, 1000, 8), PowerLaw(1.0, -0.4, 0.3)
    widths, held = {0.002: [], 0.02: []}, []
    for noise, seed in itertools.product(widths, range(20)):
        loss = truth(amount) * (1 + noise * np.random.default_rng(seed).normal(size=8))
        low, high = law_with_intervals(amount, loss)["ci95"]["b"]
        held.append(low < truth.b < high)
        widths[noise].append(high - low)
    assert np.mean(held) > 0.85
    assert np.mean(widths[0.002]) < np.mean(widths[0.02]) / 3
    assert law_with_intervals(amount, loss) == law_with_intervals(amount, loss)


def test_a_loss_that_rises_has_no_exponent():
    law = fit_power_law(np.arange(1.0, 6.0), np.linspace(1, 2, 5))
    np.testing.assert_allclose(law(np.arange(1.0, 6.0)), law(np.ones(1))[0], rtol=1e-3)


def test_too_few_amounts_are_refused():
    with pytest.raises(ValueError, match="4 different amounts"):
        fit_power_law(np.array([1.0, 1.0, 2.0, 3.0]), np.ones(4))


def test_the_frontier_is_the_lower_envelope():
    amount, loss = np.array([3.0, 1.0, 2.0, 2.0, 4.0]), np.array([0.5, 1.0, 0.7, 0.6, 0.5])
    assert frontier(amount, loss).tolist() == [1, 3, 0]
