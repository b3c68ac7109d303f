"""How good rankings are, with weights that say how often each person was drawn: AUROC, and ranks within a pool.

A statistic here takes weights [..., n] of n items and gives one number for each row of weights, so that 2,000 draws of
people are a few array operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.evals.statistics import person_draws

Statistic = Callable[[np.ndarray], np.ndarray]
_WEIGHTS_AT_ONCE = 10_000_000


def auroc(
    scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"], weights: Float[np.ndarray, "*r n"]
) -> Float[np.ndarray, "*r"]:
    """The chance that a positive scores above a negative, ties counting half; NaN where either has no weight."""
    order = np.argsort(scores, kind="stable")
    ranked, right, drawn = scores[order], positive[order], weights[..., order].astype(np.float64)
    ties = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    for_, against = (np.add.reduceat(drawn * side, ties, axis=-1) for side in (right, ~right))
    below = np.cumsum(against, axis=-1) - against
    wins, pairs = (for_ * (below + against / 2)).sum(axis=-1), for_.sum(axis=-1) * against.sum(axis=-1)
    return np.divide(wins, pairs, out=np.full(np.shape(pairs), np.nan), where=pairs > 0)


def partner_ranks(likeness: Float[np.ndarray, "q c"], right: Bool[np.ndarray, "q c"]) -> Float[np.ndarray, " q"]:
    """The rank, from 1, of each query's best right candidate among the wrong ones; a tie costs half a rank.

    Args:
      right: at least one candidate of each query.
    """
    best = np.where(right, likeness, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((likeness > best) & ~right).sum(axis=1) + 0.5 * ((likeness == best) & ~right).sum(axis=1)


def weighted_median(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "*r n"]) -> Float[np.ndarray, "*r"]:
    """The smallest value that at least half of the weight does not exceed."""
    order = np.argsort(values)
    reached = np.cumsum(weights[..., order], axis=-1)
    return values[order][(reached >= reached[..., -1:] / 2).argmax(axis=-1)]


def weighted_ratio(above: Float[np.ndarray, " n"], below: Float[np.ndarray, " n"]) -> Statistic:
    """The statistic sum of `above` over sum of `below`; NaN where that is 0."""

    def ratio(weights: np.ndarray) -> np.ndarray:
        total = weights @ below.astype(np.float64)
        return np.divide(weights @ above.astype(np.float64), total, out=np.full(total.shape, np.nan), where=total > 0)

    return ratio


def replicated(
    statistic: Statistic, person: Int[np.ndarray, " n"], seed: int, people: int | None = None
) -> Float[np.ndarray, " r"]:
    """A statistic of everyone as it is, then of each draw of people with replacement.

    Args:
      person: whose each item is, numbered from 0.
      people: how many are drawn from, whether or not they have an item: statistics to be averaged draw by draw must
        name the same number, since the draws follow from it and the seed. None: as many as `person` numbers.
    """
    draws = person_draws(int(person.max()) + 1 if people is None else people, seed)
    parts = np.array_split(draws, -(-draws.shape[0] * len(person) // _WEIGHTS_AT_ONCE))
    return np.concatenate([statistic(np.ones((1, len(person)))), *(statistic(part[:, person]) for part in parts)])


def score_and_interval(replicates: Float[np.ndarray, " r"], people: int) -> tuple[float | None, list[float] | None]:
    """The score and its 95 % percentile interval over people; None for what is not known, as of fewer than two."""
    score = None if np.isnan(replicates[0]) else float(replicates[0])
    drawn = replicates[1:][~np.isnan(replicates[1:])]
    if score is None or people < 2 or not len(drawn):
        return score, None
    return score, [float(bound) for bound in np.percentile(drawn, (2.5, 97.5))]


def numbered(names: Sequence[str]) -> Int[np.ndarray, " n"]:
    """A number for every name, from 0 on."""
    return np.unique(np.asarray(names, dtype=str), return_inverse=True)[1]
