"""Person-level bootstrap: people are drawn with replacement, all their cells with them.

Cells of one person resemble each other; drawing cells or windows would call noise a difference.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

REPLICATES = 2000
_PEOPLE_FOR_AN_INTERVAL = 2


def person_draws(people: int, seed: int, replicates: int = REPLICATES) -> Int[np.ndarray, "r p"]:
    """How often each person is drawn in each replicate; rows sum to `people`."""
    if people == 0:
        return np.zeros((replicates, 0), np.int64)
    return np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=replicates)


def pooled_mean_interval(
    sums: Float[np.ndarray, "p ..."], counts: Float[np.ndarray, "p ..."], draws: Int[np.ndarray, "r p"]
) -> Float[np.ndarray, "2 ..."]:
    """The 95 % percentile interval of sum / count over people; NaN where fewer than two people have cells."""
    means = _ratios(sums, counts, draws)
    return _interval(means, counts)


def relative_improvement_interval(
    model: Float[np.ndarray, "p ..."],
    baseline: Float[np.ndarray, "p ..."],
    counts: Float[np.ndarray, "p ..."],
    draws: Int[np.ndarray, "r p"],
) -> Float[np.ndarray, "2 ..."]:
    """The 95 % interval of 1 - model error / baseline error, the same people drawn for both (paired)."""
    return _interval(1 - _ratios(model, baseline, draws), counts)


def _ratios(numerator: np.ndarray, denominator: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """[r, ...]: ratio of the drawn people's totals, NaN where the drawn people have nothing."""
    above = np.tensordot(draws.astype(np.float64), numerator, axes=1)
    below = np.tensordot(draws.astype(np.float64), denominator, axes=1)
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)


def _interval(replicates: np.ndarray, counts: np.ndarray) -> np.ndarray:
    enough = (counts > 0).sum(axis=0) >= _PEOPLE_FOR_AN_INTERVAL
    known = np.where(enough, replicates, np.nan)
    # A column without a single number stays NaN; numpy would warn about it.
    filled = np.where(np.isnan(known).all(axis=0), 0.0, known)
    return np.where(enough, np.nanpercentile(filled, [2.5, 97.5], axis=0), np.nan)
