import numpy as np

from lsm_jax.evals.statistics import person_draws, pooled_mean_interval, relative_improvement_interval


def test_everybody_can_be_drawn_and_totals_hold():
    draws = person_draws(7, seed=1)
    assert (draws.sum(axis=1) == 7).all()
    assert (draws.max(axis=0) >= 2).all()
    assert (person_draws(7, seed=1) == draws).all()
    assert (person_draws(7, seed=2) != draws).any()


def test_identical_people_have_an_interval_of_a_point():
    low, high = pooled_mean_interval(np.full(20, 6.0), np.full(20, 3.0), person_draws(20, 0))
    assert low == high == 2.0


def test_the_interval_matches_the_normal_one_where_that_holds():
    rng = np.random.default_rng(3)
    values = rng.normal(10, 2, size=400)
    low, high = pooled_mean_interval(values, np.ones(400), person_draws(400, 0))
    half = 1.96 * values.std() / 20
    assert abs(low - (values.mean() - half)) < 0.2 * half
    assert abs(high - (values.mean() + half)) < 0.2 * half


def test_pairing_cancels_what_people_share():
    rng = np.random.default_rng(4)
    hardness = rng.lognormal(0, 2, size=50)
    draws, counts = person_draws(50, 0), np.ones(50)
    low, high = relative_improvement_interval(0.9 * hardness, hardness, counts, draws)
    np.testing.assert_allclose([low, high], 0.1)
    apart = pooled_mean_interval(hardness, counts, draws)
    assert apart[1] / apart[0] > 2


def test_one_person_gives_no_interval():
    counts = np.array([[5.0, 5.0], [0.0, 5.0]])
    interval = pooled_mean_interval(2 * counts, counts, person_draws(2, 0))
    assert np.isnan(interval[:, 0]).all()
    assert (interval[:, 1] == 2).all()
