"""Statistics with weights, and their intervals by a bootstrap over people.

Windows of one person resemble each other, so whole people are drawn with replacement. A draw is a weight per person:
how often it was drawn. A statistic takes weights [..., n] of n items and returns one number per row of weights; 2,000
draws are then a few array operations. `scipy.stats.bootstrap` gives the same interval of a mean, but draws items, not
people, and returns NaN once a single draw has no value (an AUROC without a positive day).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

DRAWS = 2000
_PEOPLE_FOR_AN_INTERVAL = 2
_WEIGHTS_AT_ONCE = 10_000_000

Statistic = Callable[[Float[np.ndarray, "r n"]], Float[np.ndarray, "r *s"]]


def bootstrap(
    statistic: Statistic, person: Int[np.ndarray, " n"], seed: int, people: int | None = None
) -> Float[np.ndarray, 1 + r * s]:
    """A statistic of all items, then of each of `DRAWS` draws of people with replacement.

    Args:
      person: the person of each item, an index from 0.
      people: how many people to draw from; default: as many as `person` has. Statistics of different items that are
        averaged draw by draw need the same number, because it and the seed determine the draws.
    """
    count = int(person.max()) + 1 if people is None else people
    parts = np.array_split(_draws(count, seed), -(-DRAWS * len(person) // _WEIGHTS_AT_ONCE))
    return np.concatenate([statistic(np.ones((1, len(person)))), *(statistic(part[:, person]) for part in parts)])


@functools.lru_cache(maxsize=2)
def _draws(people: int, seed: int) -> Float[np.ndarray, "r p"]:
    """How often each person is drawn; rows sum to `people`."""
    draws = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=DRAWS)
    return draws.astype(np.float64)


def score_and_interval(replicates: Float[np.ndarray, " 1+r"], people: int) -> tuple[float | None, list[float] | None]:
    """The score of all items and its 95 % percentile interval over draws.

    Draws without a value are left out. None for an undefined score, and for the interval of fewer than two people.
    """
    score, drawn = replicates[0], replicates[1:][~np.isnan(replicates[1:])]
    if np.isnan(score) or people < _PEOPLE_FOR_AN_INTERVAL or not len(drawn):
        return (None if np.isnan(score) else float(score)), None
    return float(score), np.percentile(drawn, (2.5, 97.5)).tolist()


def weighted_ratio(above: Float[np.ndarray, n * a], below: Float[np.ndarray, n * b]) -> Statistic:
    """The statistic sum of `above` / sum of `below`; NaN where the latter is 0."""

    def ratio(weights: np.ndarray) -> np.ndarray:
        numerator, denominator = (np.tensordot(weights, part, axes=1) for part in (above, below))
        shape = np.broadcast_shapes(numerator.shape, denominator.shape)
        return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator > 0)

    return ratio


def weighted_median(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "*r n"]) -> Float[np.ndarray, "*r"]:
    """The smallest value at which the cumulative weight reaches half of the total."""
    order = np.argsort(values)
    reached = np.cumsum(weights[..., order], axis=-1)
    return values[order][(reached >= reached[..., -1:] / 2).argmax(axis=-1)]


def auroc(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], weights: Float[np.ndarray, "*r n"]
) -> Float[np.ndarray, "*r"]:
    """Probability that a positive scores above a negative, ties counting half; NaN where either has no weight.

    `sklearn.metrics.roc_auc_score` for all rows of weights at once: a class needs 2,000 of them.
    """
    order = np.argsort(scores, kind="stable")
    ranked, labels, weight = scores[order], positive[order], weights[..., order]
    ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    positives, negatives = (np.add.reduceat(weight * side, ties, axis=-1) for side in (labels, ~labels))
    below = np.cumsum(negatives, axis=-1) - negatives
    wins = (positives * (below + negatives / 2)).sum(axis=-1)
    pairs = positives.sum(axis=-1) * negatives.sum(axis=-1)
    return np.divide(wins, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0)


def average_precision(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], weights: Float[np.ndarray, "*r n"]
) -> Float[np.ndarray, "*r"]:
    """The mean precision over recalled positives, ties counted together; NaN where no positive has weight.

    `sklearn.metrics.average_precision_score` for all rows of weights at once.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, labels, weight = scores[order], positive[order], weights[..., order]
    ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    positives, everything = (np.add.reduceat(each, ties, axis=-1) for each in (weight * labels, weight))
    found, seen, total = np.cumsum(positives, axis=-1), np.cumsum(everything, axis=-1), positives.sum(axis=-1)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    return np.divide((positives * precision).sum(axis=-1), total, out=np.full(np.shape(total), np.nan), where=total > 0)


def match_ranks(similarity: Float[np.ndarray, "q c"], matches: Bool[np.ndarray, "q c"]) -> Float[np.ndarray, " q"]:
    """The rank, from 1, of each query's best match among the candidates that do not match; a tie costs half a rank.

    Args:
      matches: at least one candidate of each query.
    """
    best = np.where(matches, similarity, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((similarity > best) & ~matches).sum(axis=1) + 0.5 * ((similarity == best) & ~matches).sum(axis=1)


def index_of(names: Sequence[str]) -> Int[np.ndarray, " n"]:
    """An index for every distinct name, from 0 in sorted order."""
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1]
