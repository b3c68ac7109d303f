"""Batches with gaps of a given share, without a dataset: speed depends on what is missing, not on what is recorded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Bool

from lsm_jax.channels import channels as registered
from lsm_jax.data.loader import Batch, empty_batch
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError

_MEAN_SPELL = 180.0  # minutes
_CONCENTRATION = 4.0  # of the share missing among windows: as days of the synthetic cohort differ (sd 0.23 at 0.49)


def random_batches_with_gaps(
    channels: Sequence[str],
    minutes: int,
    missing: float,
    batch_size: int,
    count: int,
    seed: int,
    balance: RowBalancer | None = None,
) -> tuple[DataSpec, list[Batch]]:
    """`count` batches of z-scored noise with block gaps, and the specification a data card would give of them.

    Windows differ in how much they lack, as days do; over all of them it is `missing`.

    Args:
      missing: share of cells, 0 <= missing < 1.
      balance: how windows are dealt to rows, as the loader deals them; None leaves them as drawn.

    Raises:
      UserError: `missing` is out of range, or a channel unknown.
    """
    if not 0 <= missing < 1:
        raise UserError(f"--missing {missing:g}: give shares of cells from 0 to below 1.")
    random = np.random.default_rng(seed)
    spread = (np.arange(batch_size * count) + 0.5) / (batch_size * count)
    given = _CONCENTRATION * missing, _CONCENTRATION * (1 - missing)
    shares = random.permutation(scipy.stats.beta.ppf(spread, *given)) if missing else np.zeros(batch_size * count)
    observed = np.stack([block_gaps(random, channels, minutes, share) for share in shares])
    window_id = np.arange(len(observed))
    if balance:
        groups = window_id.reshape(-1, balance.group_size)
        order = balance.assign(observed.mean(axis=(1, 2)).reshape(groups.shape))
        observed = observed[(groups[:, :1] + order).reshape(-1)]
        window_id = (groups[:, :1] + balance.window_ids).reshape(-1)
    spec = DataSpec(
        channels=tuple(channels),
        mean=np.zeros(len(channels), np.float32),
        sd=np.ones(len(channels), np.float32),
        window_minutes=minutes,
        observed_share=observed.mean(axis=(0, 1)).astype(np.float32),
    )
    batches = []
    for first in range(0, len(observed), batch_size):
        batch = empty_batch(batch_size, spec, window_id[first : first + batch_size])
        batch["observed"][:] = observed[first : first + batch_size]
        batch["values"][:] = random.standard_normal(batch["values"].shape, np.float32) * batch["observed"]
        batches.append(batch)
    return spec, batches


def block_gaps(
    random: np.random.Generator, channels: Sequence[str], minutes: int, missing: float
) -> Bool[np.ndarray, "t c"]:
    """Recorded cells of a window: spells without the watch, or without one of its sensors, until `missing` are gone."""
    sensors = np.array([channel.sensor for channel in registered(channels)])
    lost_together = [np.ones(len(sensors), bool), *(sensors == sensor for sensor in np.unique(sensors))]
    observed = np.ones((minutes, len(sensors)), bool)
    to_lose = round(missing * observed.size)
    while to_lose:
        start, length = random.integers(minutes), 1 + int(random.exponential(_MEAN_SPELL))
        spell = np.zeros_like(observed)
        spell[start : start + length] = lost_together[random.integers(len(lost_together))]
        lost = np.flatnonzero(spell & observed)[:to_lose]
        observed.flat[lost] = False
        to_lose -= len(lost)
    return observed
