"""AUROC and ranks: known answers, ties, order, scikit-learn's numbers, and people as the unit of chance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lsm_jax.evals.ranking import (
    auroc,
    numbered,
    partner_ranks,
    replicated,
    score_and_interval,
    weighted_median,
    weighted_ratio,
)
from lsm_jax.evals.retrieval import retrieval_rows


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
    likeness = np.array([[3.0, 2, 1], [1, 2, 3], [2, 2, 2], [1, 3, 2]])
    right = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 1]], bool)
    assert partner_ranks(likeness, right).tolist() == [1, 3, 2, 2]


def test_weighted_median_is_that_of_the_repeated():
    values, weights = np.array([5.0, 1, 3]), np.array([[1, 1, 1], [3, 0, 1], [0, 2, 1]])
    assert weighted_median(values, weights).tolist() == [3, 5, 1]


def test_intervals_are_over_people():
    person = numbered(["b", "a", "a", "b"])
    assert person.tolist() == [1, 0, 0, 1]
    one = replicated(weighted_ratio(np.array([1.0, 0, 0, 1]), np.ones(4)), person, 0)
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
