"""Static row lengths: from the data's missingness and the masks for training, by doubling for evaluation."""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from lsm_jax.config import Config, RowsConfig
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.policies import PolicyMixture

LEFT_OUT = 0.05  # share of all tokens that rows of a computed length may leave out
_MULTIPLE = 64  # row lengths are multiples of this, to fit attention blocks and tiles
_OBSERVED_SHARE_CONCENTRATION = 4.0  # alpha + beta of windows' observed shares, from the synthetic cohort (sd 0.23)
_SAMPLES = 4096

Shares = Float[np.ndarray, "n windows"]


def resolved_rows(config: Config, grid: TokenGrid, mixture: PolicyMixture, spec: DataSpec) -> RowsConfig:
    """The section `rows` of masked reconstruction, with row lengths of 0 replaced by computed ones.

    Raises:
      UserError: values that do not fit together.
    """
    rows = config.rows
    if rows.layout != "packed" and rows.windows_per_row != 1:
        raise UserError(f"rows.layout={rows.layout!r} holds one window to a row: set rows.windows_per_row=1.")
    if not 0 < rows.decoded_share <= 1:
        raise UserError(f"rows.decoded_share={rows.decoded_share}: give a share above 0 and at most 1.")
    if not 0 <= rows.dropped_share < 1:
        raise UserError(f"rows.dropped_share={rows.dropped_share}: give a share from 0 to below 1.")

    def length(configured: int, share: Callable[[Shares], Shares]) -> int:
        if configured:
            return rounded(configured, rows.windows_per_row * grid.size)
        kept = lambda random, shape: share(mixture.hidden_shares(random, shape, grid.patches))  # noqa: E731
        return row_length(config, grid, spec, kept)

    return dataclasses.replace(
        rows,
        encoder_length=length(rows.encoder_length, lambda hidden: 1 - hidden),
        decoder_length=length(rows.decoder_length, lambda hidden: rows.decoded_share * hidden),
    )


def row_length(
    config: Config,
    grid: TokenGrid,
    spec: DataSpec,
    kept: Callable[[np.random.Generator, tuple[int, ...]], Shares] | None = None,
) -> int:
    """The shortest row that holds an average row's tokens and leaves out no more than `LEFT_OUT` of all tokens.

    Windows differ in how much they recorded and how much of it is hidden. With few windows per row, a row must fit the
    fullest windows. The more windows share a row, and the more rows are balanced with each other, the fuller rows are.

    Args:
      kept: samples the share of a window's observed tokens that the row is for; None: all of them.
    """
    windows, balance = config.rows.windows_per_row, RowBalancer.from_config(config)
    random, mean = np.random.default_rng(0), min(_mean_observed_tokens(spec, grid) / grid.size, 1.0)
    if mean <= 0:
        return rounded(1, windows * grid.size)
    together = max(balance.group_size, windows)
    shape = (_SAMPLES * windows // together, together)
    concentration = _OBSERVED_SHARE_CONCENTRATION
    observed = random.beta(concentration * mean, concentration * (1 - mean), shape) if mean < 1 else np.ones(shape)
    if balance.group_size > 1:
        observed = np.take_along_axis(observed, balance.assign(observed), axis=1)[:, np.argsort(balance.window_ids)]
    shares = observed if kept is None else observed * kept(random, shape)
    tokens = grid.size * shares.reshape(-1, windows).sum(axis=1)
    limit, least = windows * grid.size, math.ceil(tokens.mean())
    lengths = sorted({rounded(length, limit) for length in range(least, limit + _MULTIPLE, _MULTIPLE)})
    left_out = lambda length: np.maximum(tokens - length, 0).mean()  # noqa: E731
    return lengths[bisect.bisect_left(lengths, -LEFT_OUT * tokens.mean(), key=lambda length: -left_out(length))]


def _mean_observed_tokens(spec: DataSpec, grid: TokenGrid) -> float:
    """Observed tokens of an average window of the training split."""
    share = np.pad(np.asarray(spec.observed_share), (0, grid.groups * grid.patch_channels - len(grid.channels)))
    return grid.patches * float(share.reshape(grid.groups, -1).max(axis=1).sum())


def rounded(tokens: int, limit: int) -> int:
    """A row length: the next multiple of 64, or of 128 for long rows, at most `limit`."""
    step = _MULTIPLE if tokens <= 8 * _MULTIPLE else 2 * _MULTIPLE
    return min(math.ceil(max(tokens, 1) / step) * step, limit)


def bucket_length(tokens: int) -> int:
    """160 doubled until it holds `tokens`. Few lengths, because each is compiled, which takes seconds.

    160 because one, two, four, ... channels recorded all day are 144, 288, 576, ... tokens of ten minutes.
    """
    return 160 << ((max(tokens, 1) - 1) // 160).bit_length()
