"""AUROC, ranks and medians with weights, against known answers and scikit-learn, and the bootstrap over people."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lsm_jax.evals.retrieval import retrieval_rows
from lsm_jax.evals.statistics import (
    auroc,
    bootstrap,
    index_of,
    match_ranks,
    score_and_interval,
    weighted_median,
    weighted_ratio,
)


def draws(people, seed=0):
    """How often each person is drawn, [draws, people]."""
    return bootstrap(lambda weights: weights, np.arange(people), seed)[1:]


def mean_interval(above, below):
    """The interval of sum(above) / sum(below), one item a person."""
    return score_and_interval(bootstrap(weighted_ratio(above, below), np.arange(len(above)), 0), len(above))[1]


def test_everybody_can_be_drawn_and_totals_hold():
    assert (draws(7, 1).sum(axis=1) == 7).all()
    assert (draws(7, 1).max(axis=0) >= 2).all()
    assert (draws(7, 1) == draws(7, 1)).all()
    assert (draws(7, 2) != draws(7, 1)).any()


def test_identical_people_have_an_interval_of_a_point():
    assert mean_interval(np.full(20, 6.0), np.full(20, 3.0)) == [2, 2]


def test_the_interval_matches_the_normal_one_where_that_holds():
    values = np.random.default_rng(3).normal(10, 2, size=400)
    low, high = mean_interval(values, np.ones(400))
    half = 1.96 * values.std() / 20
    assert abs(low - (values.mean() - half)) < 0.2 * half
    assert abs(high - (values.mean() + half)) < 0.2 * half


def test_pairing_cancels_what_people_share():
    hardness = np.random.default_rng(4).lognormal(0, 2, size=50)
    np.testing.assert_allclose(mean_interval(0.9 * hardness, hardness), 0.9)
    low, high = mean_interval(hardness, np.ones(50))
    assert high / low > 2


def test_ratios_of_several_columns_are_those_of_each():
    rng = np.random.default_rng(5)
    above, below = rng.random((9, 4, 2)), rng.random((9, 2))
    together = weighted_ratio(above, below[:, None])(draws(9))
    for row in range(4):
        for column in range(2):
            alone = weighted_ratio(above[:, row, column], below[:, column])(draws(9))
            np.testing.assert_allclose(together[:, row, column], alone)
    assert np.isnan(weighted_ratio(above[..., 0], np.zeros((9, 1)))(draws(9))).all()


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_auroc_is_scikit_learns_whatever_the_order_and_the_weights(seed):
    random = np.random.default_rng(seed)
    scores, positive = random.integers(0, 6, 30).astype(float), random.random(30) < 0.4
    positive[:2] = True, False
    weights = random.integers(0, 4, (3, 30))
    weights[:, :2] = 1
    expected = [roc_auc_score(positive, scores, sample_weight=each) for each in weights]
    np.testing.assert_allclose(auroc(scores, positive, weights), expected, rtol=1e-12)
    order = random.permutation(30)
    np.testing.assert_allclose(auroc(scores[order], positive[order], weights[:, order]), expected, rtol=1e-12)


def test_auroc_of_the_perfect_the_reversed_and_the_undecided():
    positive, ones = np.array([0, 0, 1, 1, 1], bool), np.ones(5)
    assert auroc(positive.astype(float), positive, ones) == 1
    assert auroc(-positive.astype(float), positive, ones) == 0
    assert auroc(np.zeros(5), positive, ones) == 0.5
    assert np.isnan(auroc(np.arange(5.0), positive, positive.astype(float)))


def test_ranks_with_ties_and_several_right_answers():
    similarity = np.array([[3.0, 2, 1], [1, 2, 3], [2, 2, 2], [1, 3, 2]])
    matches = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1]], bool)
    assert match_ranks(similarity, matches).tolist() == [1, 3, 2, 2]


def test_weighted_median_is_that_of_the_repeated():
    values, weights = np.array([5.0, 1, 3]), np.array([[1, 1, 1], [3, 0, 1], [0, 2, 1]])
    assert weighted_median(values, weights).tolist() == [3, 5, 1]


def test_intervals_are_over_people():
    person = index_of(["b", "a", "a", "b"])
    assert person.tolist() == [1, 0, 0, 1]
    one = bootstrap(weighted_ratio(np.array([1.0, 0, 0, 1]), np.ones(4)), person, 0)
    assert one[0] == 0.5 and {*one[1:].tolist()} == {0.0, 0.5, 1.0}
    assert score_and_interval(one, 2) == (0.5, [0.0, 1.0])
    assert score_and_interval(one, 1) == (0.5, None)
    assert score_and_interval(np.full(5, np.nan), 9) == (None, None)


def test_retrieval_of_the_perfect_the_alike_and_the_same_words():
    vectors, person = np.eye(300), np.arange(300) // 3
    rows, pool = retrieval_rows(vectors, vectors, [str(i) for i in range(300)], person, 0)
    model = {(row["task"], row["class"]): row for row in rows if row["method"] == "model"}
    assert pool == 256 and len(model) == 8
    assert all(row["score"] == 1 and row["ci95"] == [1, 1] and row["people"] == 100 for row in model.values())
    chance = {row["class"]: row["score"] for row in rows if row["method"] == "chance"}
    assert chance == {"R@1": 1 / 256, "R@5": 5 / 256, "R@10": 10 / 256, "median rank": 128.5}
    same = np.ones((20, 3))
    rows, pool = retrieval_rows(same, same, [str(i) for i in range(20)], np.arange(20), 0)
    assert pool == 20
    assert [row["score"] for row in rows if row["method"] == "model"] == [0, 0, 0, 10.5] * 2
    rows, _ = retrieval_rows(same, same, ["the same words"] * 20, np.arange(20), 0)
    assert [row["score"] for row in rows if row["method"] == "model"] == pytest.approx([1] * 8)
