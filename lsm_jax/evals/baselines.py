"""What a model must beat: fills that need no training, given the visible cells only.

All of them predict z-scored values (the training mean is 0) at the hidden, recorded cells of a batch of
windows at once. A channel with no visible cell in its window falls back to the training mean in the four
fills from the window, and to the cohort's time-of-day mean in the two from the time of day.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

BASELINES: tuple[str, ...] = ("mean", "nearest", "last", "linear", "person_time_of_day", "cohort_time_of_day")


class Cells(NamedTuple):
    """Coordinates of n cells in a batch of windows: window, time step, channel."""

    window: Int[np.ndarray, " n"]
    step: Int[np.ndarray, " n"]
    channel: Int[np.ndarray, " n"]


def predict_baselines(
    values: Float[np.ndarray, "b t c"],
    visible: Bool[np.ndarray, "b t c"],
    cells: Cells,
    person_profile: Float[np.ndarray, "b t c"],
    cohort_profile: Float[np.ndarray, "b t c"],
) -> Mapping[str, Float[np.ndarray, " n"]]:
    """Every baseline's z-scored prediction at `cells`.

    Args:
      values: z-scored; read only where `visible`, whatever else is in it.
      visible: recorded and not hidden.
      cells: where to predict; hidden cells.
      person_profile: the person's time-of-day mean at each cell (`profiles.person_profiles`).
      cohort_profile: the training cohort's.
    """
    shown = np.where(visible, values, 0).astype(np.float32)
    count = visible.sum(axis=1)
    mean = np.divide(shown.sum(axis=1), count, out=np.zeros(count.shape, np.float32), where=count > 0)
    window, step, channel = cells
    mean_here = mean[window, channel]
    before, after = _neighbours(visible, cells)
    has_before, has_after = before >= 0, after < values.shape[1]
    value_before = shown[window, np.where(has_before, before, 0), channel]
    value_after = shown[window, np.where(has_after, after, 0), channel]
    # Steps to each visible neighbour; a missing neighbour is infinitely far.
    gap_before = np.where(has_before, step - before, np.inf).astype(np.float32)
    gap_after = np.where(has_after, after - step, np.inf).astype(np.float32)
    nearest = np.where(gap_before <= gap_after, value_before, value_after)
    between = has_before & has_after
    weight_after = np.divide(gap_before, gap_before + gap_after, out=np.zeros_like(gap_before), where=between)
    line = value_before + weight_after * (value_after - value_before)
    return {
        "mean": mean_here,
        "nearest": np.where(has_before | has_after, nearest, mean_here),
        "last": np.where(has_before, value_before, mean_here),
        "linear": np.where(between, line, np.where(has_before | has_after, nearest, mean_here)),
        "person_time_of_day": person_profile[window, step, channel],
        "cohort_time_of_day": cohort_profile[window, step, channel],
    }


def _neighbours(visible: np.ndarray, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
    """The visible steps before and after each cell in its channel; -1 and T where there is none."""
    by_channel = np.ascontiguousarray(visible.transpose(0, 2, 1))
    steps = np.arange(visible.shape[1], dtype=np.int32)
    here = (cells.window, cells.channel, cells.step)
    before = np.maximum.accumulate(np.where(by_channel, steps, np.int32(-1)), axis=2)[here]
    beyond = np.int32(visible.shape[1])
    backwards = np.where(by_channel, steps, beyond)[:, :, ::-1]
    after = np.minimum.accumulate(backwards, axis=2)[:, :, ::-1][here]
    return before, after
