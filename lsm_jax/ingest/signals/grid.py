"""Signals laid out by minutes of the clock, and statistics of them that skip missing samples."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from lsm_jax.errors import UserError

Features = dict[str, Float[np.ndarray, " m"]]

MIN_SHARE = 0.5  # of the samples of a minute, or of a block within it


def minute_grid(
    samples: Float[np.ndarray, "n ..."], start: float, rate: float
) -> tuple[int, Float[np.ndarray, "m s ..."]]:
    """Arranges an evenly sampled signal by minutes of the clock.

    Args:
      samples: NaN where missing.
      start: time of the first sample, seconds since the Unix epoch.
      rate: samples per second.

    Returns:
      The first minute (since the epoch) and the samples, padded with NaN before the start and after the end.

    Raises:
      UserError: the rate gives no whole number of samples per minute.
    """
    per_minute = round(rate * 60)
    if per_minute < 1 or abs(per_minute - rate * 60) > 1e-6:
        raise UserError(f"a sampling rate of {rate} Hz gives no whole number of samples per minute; resample first.")
    first = int(start // 60)
    padding = min(round((start - first * 60) * rate), per_minute - 1)
    minutes = -(-(padding + len(samples)) // per_minute)
    grid = np.full((minutes * per_minute, *samples.shape[1:]), np.nan)
    grid[padding : padding + len(samples)] = samples
    return first, grid.reshape(minutes, per_minute, *samples.shape[1:])


def quantile(values: Float[np.ndarray, "m ... n"], q: float) -> Float[np.ndarray, "m ..."]:
    """The q-quantile of each row (linear interpolation) without its NaN; NaN for an empty row."""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    ordered = np.sort(values, axis=-1)  # NaN goes last
    last = np.maximum((~np.isnan(values)).sum(-1) - 1, 0)
    position = q * last
    below = np.floor(position).astype(int)
    low = np.take_along_axis(ordered, below[..., None], -1)[..., 0]
    high = np.take_along_axis(ordered, np.minimum(below + 1, last)[..., None], -1)[..., 0]
    return low + (position - below) * (high - low)


def mean_level(grid: Float[np.ndarray, "m s"], low: float, high: float) -> Float[np.ndarray, " m"]:
    """Mean of the samples within [low, high]; NaN for a minute in which less than half are."""
    valid = (grid >= low) & (grid <= high)
    return np.where(enough_samples(valid), mean_of(np.where(valid, grid, 0), valid), np.nan)


def enough_samples(present: Bool[np.ndarray, "m s"]) -> Bool[np.ndarray, " m"]:
    """Minutes with at least half of their samples."""
    return present.mean(1) >= MIN_SHARE


def mean_of(values: Float[np.ndarray, "m s ..."], present: Bool[np.ndarray, "m s"]) -> Float[np.ndarray, "m ..."]:
    """Mean over the present samples; 0 for a minute without any."""
    total = np.einsum("ms...,ms->m...", values, present)
    return total / np.maximum(present.sum(1), 1).reshape(-1, *(1,) * (values.ndim - 2))
