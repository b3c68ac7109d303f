"""Logistic regressions on what days give: one class against the rest, several classes to a day."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression

from lsm_jax.evals.ranking import auroc

_STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # of scikit-learn's C, the larger the freer; of features of unit variance


def probe_scores(
    train: Float[np.ndarray, "n f"],
    validation: Float[np.ndarray, "v f"],
    test: Float[np.ndarray, "m f"],
    labels: Float[np.ndarray, "n c"],
    validation_labels: Float[np.ndarray, "v c"],
) -> Float[np.ndarray, "m c"]:
    """Scores of the test days by probes of all training days, regularised as the validation days score best by AUROC.

    Labels are 1, 0, or NaN where a day says nothing of a class.
    """
    train, validation, test = standardised(train, validation, test)
    best = max(_STRENGTHS, key=lambda c: _macro(fit_scores(train, labels, validation, c), validation_labels))
    return fit_scores(train, labels, test, best)


def fit_scores(
    train: Float[np.ndarray, "n f"], labels: Float[np.ndarray, "n c"], test: Float[np.ndarray, "m f"], strength: float
) -> Float[np.ndarray, "m c"]:
    """Log odds of every class; 0 for one whose labels are all alike, of which nothing can be learnt."""
    scores = np.zeros((len(test), labels.shape[1]))
    for column, label in enumerate(labels.T):
        known = ~np.isnan(label)
        if len({*label[known].tolist()}) == 2:
            probe = LogisticRegression(C=strength, max_iter=1000).fit(train[known], label[known])
            scores[:, column] = probe.decision_function(test)
    return scores


def standardised(
    train: Float[np.ndarray, "n f"], *others: Float[np.ndarray, "m f"]
) -> Sequence[Float[np.ndarray, "m f"]]:
    """Features in the training days' standard deviations from their mean; 0 where a day has none."""
    known = ~np.isnan(train)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, train, 0).sum(axis=0) / count
    sd = np.sqrt(np.where(known, (train - mean) ** 2, 0).sum(axis=0) / count)
    scale = np.where(sd > 1e-6, sd, 1)
    return [np.nan_to_num((part - mean) / scale, nan=0.0) for part in (train, *others)]


def _macro(scores: Float[np.ndarray, "v c"], labels: Float[np.ndarray, "v c"]) -> float:
    known = ~np.isnan(labels)
    each = [
        auroc(score[here], label[here] > 0, np.ones(int(here.sum())))
        for score, label, here in zip(scores.T, labels.T, known.T, strict=True)
        if here.any()
    ]
    return float(np.nanmean(each)) if not np.isnan(each).all() else 0.0
