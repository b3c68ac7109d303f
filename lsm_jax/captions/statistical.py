"""The statistical level: mean, maximum, minimum and standard deviation of channels over their observed cells."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from lsm_jax.captions.channel_choice import choose_channels
from lsm_jax.captions.facts import STATISTICS, Fact
from lsm_jax.captions.grammar import Statement
from lsm_jax.captions.phrases import rounded
from lsm_jax.windows import Window

MINUTES_FOR_STATISTICS = 30  # observed minutes a channel needs; ours, since SensorLM publishes no threshold


def statistical_statements(window: Window, random: np.random.Generator) -> list[Statement]:
    """One statement for each chosen channel, group by group, if it was observed for at least half an hour."""
    minutes = np.count_nonzero(window.observed, axis=0) * window.minutes_per_step
    chosen = choose_channels(window.channels, minutes >= MINUTES_FOR_STATISTICS, random)
    columns = [column for group in chosen for column in group]
    numbers = statistics(window.values.T[columns], window.observed.T[columns])
    return [_statement(window.channels[column], row) for column, row in zip(columns, numbers.tolist(), strict=True)]


def _statement(channel: str, numbers: list[float]) -> Statement:
    mean, maximum, minimum, deviation = (rounded(channel, number) for number in numbers)
    form = "constant" if mean == maximum == minimum and deviation == 0 else "statistics"
    values = (mean, maximum, minimum, deviation)
    return Statement(form, tuple(Fact(kind, channel, value) for kind, value in zip(STATISTICS, values, strict=True)))


def statistics(values: Float[np.ndarray, "c t"], observed: Bool[np.ndarray, "c t"]) -> Float[np.ndarray, "c 4"]:
    """Mean, maximum, minimum and population sd of each channel over its observed cells; NaN if there are none."""
    count = np.count_nonzero(observed, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = values.sum(axis=1, where=observed, dtype=np.float64) / count
        deviations = np.where(observed, values - mean[:, None], 0)
        deviation = np.sqrt(np.einsum("ct,ct->c", deviations, deviations) / count)
    maximum = values.max(axis=1, where=observed, initial=-np.inf)
    minimum = values.min(axis=1, where=observed, initial=np.inf)
    return np.where(count[:, None] > 0, np.stack([mean, maximum, minimum, deviation], axis=1), np.nan)
