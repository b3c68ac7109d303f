"""Batches of noise with realistic gaps, for benchmarks and planning.

Speed depends on which cells are missing, not on their values, so no dataset is needed.
"""

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

_MEAN_GAP_MINUTES = 180.0
# alpha + beta of the Beta distribution of a window's missing share. Its sd is 0.23 at a mean of 0.49, as in the
# synthetic cohort.
_CONCENTRATION = 4.0


def random_batches_with_gaps(
    channels: Sequence[str],
    minutes: int,
    missing: float,
    batch_size: int,
    count: int,
    seed: int,
    balance: RowBalancer | None = None,
) -> tuple[DataSpec, list[Batch]]:
    """`count` batches of z-scored noise with block gaps, and a matching `DataSpec`.

    Windows differ in their missing share, as real days do; its mean over all windows is `missing`.

    Args:
      missing: share of cells, 0 <= missing < 1.
      balance: assigns windows to rows as the loader does; None keeps them in random order.

    Raises:
      UserError: `missing` is out of range, or a channel is unknown.
    """
    if not 0 <= missing < 1:
        raise UserError(f"--missing {missing:g}: give shares of cells from 0 to below 1.")
    random = np.random.default_rng(seed)
    quantiles = (np.arange(batch_size * count) + 0.5) / (batch_size * count)
    alpha, beta = _CONCENTRATION * missing, _CONCENTRATION * (1 - missing)
    shares = random.permutation(scipy.stats.beta.ppf(quantiles, alpha, beta)) if missing else np.zeros(len(quantiles))
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
    """A mask of observed cells of which exactly the share `missing` is False.

    Gaps are stretches without the watch (all channels) or without one of its sensors, of exponential length.
    """
    sensors = np.array([channel.sensor for channel in registered(channels)])
    groups = [np.ones(len(sensors), bool), *(sensors == sensor for sensor in np.unique(sensors))]
    observed = np.ones((minutes, len(sensors)), bool)
    remaining = round(missing * observed.size)
    while remaining:
        start, length = random.integers(minutes), 1 + int(random.exponential(_MEAN_GAP_MINUTES))
        gap = np.zeros_like(observed)
        gap[start : start + length] = groups[random.integers(len(groups))]
        lost = np.flatnonzero(gap & observed)[:remaining]
        observed.flat[lost] = False
        remaining -= len(lost)
    return observed
