"""Minute features of skin conductance and skin temperature."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from lsm_jax.ingest.signals.grid import MIN_SHARE, Features, enough_samples, quantile

MIN_CONDUCTANCE, MAX_CONDUCTANCE = 0.01, 100.0  # uS; an open E4 electrode reads about 0
CONTACT_COUNTS = 240  # samples a minute at the E4's 4 Hz
MIN_TEMPERATURE, MAX_TEMPERATURE = 10.0, 45.0  # deg C; the E4 reports above 200 when its thermometer fails
BLOCK_SECONDS = 5


def skin_conductance_features(grid: Float[np.ndarray, "m s"]) -> Features:
    """Level at the middle of the minute (uS), slope (uS/min) and contact counts of each minute.

    Args:
      grid: conductance in uS by minutes of the clock. Below 0.01 uS the electrodes have no contact.
    """
    recorded = ~np.isnan(grid)
    contact = (grid >= MIN_CONDUCTANCE) & (grid <= MAX_CONDUCTANCE)
    level, slope = robust_line(np.where(contact, grid, np.nan))
    counts = CONTACT_COUNTS * contact.sum(1) / np.maximum(recorded.sum(1), 1)
    return {
        # A line through noise near 0 can be negative.
        "skin_conductance_level": np.maximum(level, 0),
        "skin_conductance_slope": slope,
        "eda_lead_contact": np.where(enough_samples(recorded), counts, np.nan),
    }


def skin_temperature_features(grid: Float[np.ndarray, "m s"]) -> Features:
    """Level at the middle of the minute (deg C) and slope (deg C/min); impossible values are missing."""
    plausible = (grid >= MIN_TEMPERATURE) & (grid <= MAX_TEMPERATURE)
    level, slope = robust_line(np.where(plausible, grid, np.nan))
    return {"skin_temperature": level, "skin_temperature_slope": slope}


def robust_line(grid: Float[np.ndarray, "m s"]) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Level at the middle of each minute and slope per minute, robust against spikes.

    Takes medians of blocks of five seconds and fits the Theil-Sen line: the median of the slopes of all pairs, and the
    median of the residuals. NaN with less than half of the blocks.
    """
    minutes, samples = grid.shape
    blocks = min(60 // BLOCK_SECONDS, samples)
    edges = np.arange(blocks + 1) * samples // blocks
    width = int(np.diff(edges).max())
    rows = np.full((minutes, blocks, width), np.nan)
    for block in range(blocks):
        rows[:, block, : edges[block + 1] - edges[block]] = grid[:, edges[block] : edges[block + 1]]
    filled = (~np.isnan(rows)).sum(-1) >= MIN_SHARE * np.diff(edges)
    medians = np.where(filled, quantile(rows, 0.5), np.nan)
    time = (np.arange(blocks) + 0.5) / blocks - 0.5
    early, late = np.triu_indices(blocks, 1)
    slope = quantile((medians[:, late] - medians[:, early]) / (time[late] - time[early]), 0.5)
    level = quantile(medians - slope[:, None] * time, 0.5)
    enough = enough_samples(filled)
    return np.where(enough, level, np.nan), np.where(enough, slope, np.nan)
