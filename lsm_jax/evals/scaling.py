"""Scaling laws: L = a C^b + c, with b below 0, after LSM-1 (arXiv 2410.13638).

C is data, parameters or compute, and c the loss that more of it cannot remove. The fit minimises squared relative
errors. For a given b the best a and c have a closed form, so the best of many b is found at once and then refined
(`scipy.optimize.least_squares`). Intervals are percentiles over refits: to losses of people drawn with replacement
where the losses of people are known, otherwise to the fit with errors drawn from Student's t distribution, of the
residuals' size and with as many degrees of freedom as points beyond the three parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import scipy.optimize
from jaxtyping import Float

MIN_POINTS = 4  # three parameters, and one point to be wrong about
DRAWS = 200
FLATTEST, STEEPEST = 0.01, 5.0  # exponents that are tried
_EXPONENTS = np.geomspace(FLATTEST, STEEPEST, 1000)

Points = Float[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """L = a C^b + c."""

    a: float
    b: float
    c: float

    def __call__(self, amount: Points) -> Points:
        """The losses at these amounts."""
        return self.a * np.asarray(amount, np.float64) ** self.b + self.c


def fit_power_law(amount: Points, loss: Points) -> PowerLaw:
    """The law of least relative squared error, with a >= 0, -5 <= b <= 0 and c >= 0.

    Raises:
      ValueError: fewer than four different amounts, or a value that is not above 0.
    """
    amount, loss = np.asarray(amount, np.float64), np.asarray(loss, np.float64)
    if len(np.unique(amount)) < MIN_POINTS or (amount <= 0).any() or (loss <= 0).any():
        raise ValueError(f"a power law needs {MIN_POINTS} different amounts above 0, and losses above 0")
    unit, start = _unit(amount), _on_grid(amount, loss[None])[0]

    def residuals(values: Points) -> Points:
        scale, exponent, floor = values
        return (scale * (amount / unit) ** -exponent + floor) / loss - 1

    bounds = [0, 0, 0], [np.inf, STEEPEST, np.inf]
    scale, exponent, floor = scipy.optimize.least_squares(residuals, start, bounds=bounds).x
    return PowerLaw(float(scale * unit**exponent), float(-exponent), float(floor))


def _unit(amount: Points) -> float:
    """The geometric mean. In this unit all parameters are of the size of the loss or of 1."""
    return float(np.exp(np.log(amount).mean()))


def _on_grid(amount: Points, losses: Float[np.ndarray, "r n"]) -> Float[np.ndarray, "r 3"]:
    """The best scale (at the geometric mean of the amounts), -b of `_EXPONENTS`, and c for each row of losses."""
    basis, weight = (amount / _unit(amount)) ** -_EXPONENTS[:, None], 1 / losses
    # Normal equations of weight * (scale * basis + floor) = 1, for each row and exponent.
    squares, mixed, ones = weight**2 @ (basis**2).T, weight**2 @ basis.T, (weight**2).sum(axis=1, keepdims=True)
    right, right_ones = weight @ basis.T, weight.sum(axis=1, keepdims=True)
    determinant = np.maximum(squares * ones - mixed**2, 1e-300)
    scale, floor = (
        (right * ones - right_ones * mixed) / determinant,
        (right_ones * squares - right * mixed) / determinant,
    )
    scale, floor = np.where(floor < 0, right / squares, scale), np.maximum(floor, 0)
    scale, floor = np.maximum(scale, 0), np.where(scale < 0, right_ones / ones, floor)
    cost = scale**2 * squares + 2 * scale * floor * mixed + floor**2 * ones - 2 * (scale * right + floor * right_ones)
    row, best = np.arange(len(losses)), cost.argmin(axis=1)
    return np.stack([scale[row, best], _EXPONENTS[best], floor[row, best]], axis=1)


def law_with_intervals(
    amount: Points, loss: Points, drawn: Float[np.ndarray, "r n"] | None = None, seed: int = 0
) -> dict[str, Any]:
    """The fit as a dictionary: a, b, c, and `ci95` of each.

    Args:
      drawn: the losses of `DRAWS` draws of people; None: errors of the size of the residuals are drawn.
    """
    amount, loss = np.asarray(amount, np.float64), np.asarray(loss, np.float64)
    law = fit_power_law(amount, loss)
    if drawn is None:
        fitted, freedom = law(amount), max(len(loss) - 3, 1)
        spread = np.sqrt(np.square(loss / fitted - 1).sum() / freedom)
        errors = spread * np.random.default_rng(seed).standard_t(freedom, (DRAWS, len(loss)))
        drawn = fitted * (1 + np.clip(errors, -0.9, 9))
    scale, exponent, floor = _on_grid(amount, drawn).T
    values = np.stack([scale * _unit(amount) ** exponent, -exponent, floor], axis=1)
    low, high = np.percentile(values, (2.5, 97.5), axis=0).tolist()
    ci95 = {name: [low[column], high[column]] for column, name in enumerate("abc")}
    return {**dataclasses.asdict(law), "ci95": ci95}


def frontier(amount: Points, loss: Points) -> np.ndarray:
    """Indices of the points with a lower loss than any point of as little or less, in order of amount."""
    order = np.lexsort((loss, amount))
    best = np.minimum.accumulate(np.asarray(loss)[order])
    return order[np.r_[True, best[1:] < best[:-1]]]
