"""Scores of probes with person-level intervals: of each method, and of one method against another."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int

from lsm_jax.evals.statistics import auroc, average_precision, bootstrap

CLASS_METRICS = ("auroc", "average_precision", "f1", "balanced_accuracy")
NUMBER_METRICS = ("pearson_r", "mae")
HEADLINES = (CLASS_METRICS[0], NUMBER_METRICS[0])
LOWER_IS_BETTER = ("mae",)


def replicates(
    scores: Float[np.ndarray, "n k"],
    target: Float[np.ndarray, " n"],
    classes: int,
    person: Int[np.ndarray, " n"],
    seed: int,
    *,
    headline_only: bool = False,
) -> dict[str, Float[np.ndarray, " r"]]:
    """Each metric of all examples, then of each bootstrap draw of people.

    AUROC, F1 and balanced accuracy are means over the classes that a draw has; AUROC and average precision of two
    classes are those of the second one.

    Args:
      scores: probabilities of the classes, or predicted numbers.
      classes: their number; 0 for regression.
    """
    metrics: tuple[str, ...] = CLASS_METRICS if classes else NUMBER_METRICS
    if headline_only:
        metrics = metrics[:1]
    if classes:
        statistic = functools.partial(_class_metrics, scores, target.astype(int), len(metrics))
    else:
        statistic = functools.partial(_number_metrics, scores[:, 0], target, len(metrics))
    return dict(zip(metrics, bootstrap(statistic, person, seed).T, strict=True))


def difference(metric: str, ours: Float[np.ndarray, " r"], other: Float[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
    """How much better ours is, draw by draw."""
    return other - ours if metric in LOWER_IS_BETTER else ours - other


def _class_metrics(
    scores: Float[np.ndarray, "n k"], target: Int[np.ndarray, " n"], count: int, weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, "r s"]:
    numbers = range(1, 2) if scores.shape[1] == 2 else np.unique(target).tolist()
    found = [_mean(np.stack([auroc(scores[:, k], target == k, weights) for k in numbers]))]
    if count > 1:
        found.append(_mean(np.stack([average_precision(scores[:, k], target == k, weights) for k in numbers])))
        of_class, chosen = np.eye(scores.shape[1])[target], np.eye(scores.shape[1])[scores.argmax(axis=1)]
        right, held, said = weights @ (of_class * chosen), weights @ of_class, weights @ chosen
        found.append(_mean(_ratio(2 * right, np.where(held > 0, held + said, 0)).T))
        found.append(_mean(_ratio(right, held).T))
    return np.stack(found, axis=1)


def _number_metrics(
    predicted: Float[np.ndarray, " n"], target: Float[np.ndarray, " n"], count: int, weights: Float[np.ndarray, "r n"]
) -> Float[np.ndarray, "r s"]:
    total = weights.sum(axis=1)
    x, y = predicted - predicted.mean(), target - target.mean()
    mean_x, mean_y = weights @ x / total, weights @ y / total
    variance_x, variance_y = weights @ x**2 / total - mean_x**2, weights @ y**2 / total - mean_y**2
    spread = np.sqrt(np.maximum(variance_x, 0) * np.maximum(variance_y, 0))
    spread[spread < 1e-9 * max(np.abs(x).max() * np.abs(y).max(), 1e-30)] = 0  # a constant has rounding noise only
    found = [_ratio(weights @ (x * y) / total - mean_x * mean_y, spread), weights @ np.abs(predicted - target) / total]
    return np.stack(found[:count], axis=1)


def _ratio(above: Float[np.ndarray, "*r"], below: Float[np.ndarray, "*r"]) -> Float[np.ndarray, "*r"]:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def _mean(by_class: Float[np.ndarray, "k r"]) -> Float[np.ndarray, " r"]:
    """The mean over the classes that a draw has; NaN where it has none."""
    defined = ~np.isnan(by_class)
    return _ratio(np.where(defined, by_class, 0).sum(axis=0), defined.sum(axis=0))
