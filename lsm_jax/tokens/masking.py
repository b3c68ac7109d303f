"""One step's masks and rows: which tokens the encoder reads, and which the decoder predicts."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.config import RowsConfig
from lsm_jax.errors import UserError
from lsm_jax.tokens.grid import TokenCells, TokenGrid
from lsm_jax.tokens.policies import PolicyMixture, artificial_mask, policy_draws
from lsm_jax.tokens.rows import Rows, dense, fixed_drop, pack, pack_sampled

_WEIGHT_FLOOR = 0.3  # sampling weight of a token of zeros; one standard deviation from the mean is 1.3
_POLICY_KEY = 2**31  # folded into the step's key; no window id is this large, so the streams do not collide


class MaskedBatch(NamedTuple):
    """The encoder, decoder and target rows of one step.

    Attributes:
      visible: tokens that are observed and not hidden.
      encoder_rows: the visible tokens.
      decoder_rows: tokens of a self-attending decoder; None for cross-attention.
      target_rows: the hidden tokens to predict.
      inclusion_probability: probability that a hidden token is sampled into `target_rows`; 0 for all other tokens.
    """

    visible: Bool[Array, "b n"]
    encoder_rows: Rows
    decoder_rows: Rows | None
    target_rows: Rows
    inclusion_probability: Float[Array, "b n"]


def window_keys(key: PRNGKeyArray, window_id: Int[Array, " b"]) -> PRNGKeyArray:
    """A key per window, independent of the batch, host and mesh."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(window_id)


def training_masks(
    rng: PRNGKeyArray,
    observed: Bool[Array, "b n"],
    window_id: Int[Array, " b"],
    grid: TokenGrid,
    mixture: PolicyMixture,
) -> Bool[Array, "b n"]:
    """The artificial mask of each window of a step: True where a token is hidden."""
    draws = policy_draws(jax.random.fold_in(rng, _POLICY_KEY), window_id)
    mask = lambda key, draw, observed: artificial_mask(key, draw, observed, grid, mixture)  # noqa: E731
    return jax.vmap(mask)(_step_keys(rng, window_id)[:, 0], draws, observed)


def mask_and_pack(
    rng: PRNGKeyArray,
    cells: TokenCells,
    window_id: Int[Array, " b"],
    grid: TokenGrid,
    mixture: PolicyMixture,
    rows: RowsConfig,
    decoder: str,
) -> MaskedBatch:
    """Masks a batch and packs its tokens into rows.

    Args:
      cells: of the batch.
      rows: with resolved lengths (`row_lengths.resolved_rows`).
      decoder: see `ModelConfig.decoder`.
    """
    observed = grid.tokens_observed(cells.observed)
    check_rows(len(observed), rows)
    hidden = training_masks(rng, observed, window_id, grid, mixture)
    keys = _step_keys(rng, window_id)[:: rows.windows_per_row]  # a row uses the keys of its first window
    visible = observed & ~hidden
    if rows.layout == "dense":
        encoder_rows = dense(visible)
    elif rows.layout == "fixed_drop":
        encoder_rows = fixed_drop(keys[:, 1], visible, int(rows.dropped_share * grid.size))
    else:
        encoder_rows = pack(keys[:, 1], visible, rows.windows_per_row, rows.encoder_length)
    target_rows, probability = pack_sampled(
        keys[:, 2], observed & hidden, _target_weights(cells), rows.decoded_share, rows.windows_per_row,
        rows.decoder_length,
    )  # fmt: skip
    decoder_rows = pack_decoder(encoder_rows, target_rows, len(observed), decoder)
    return MaskedBatch(visible, encoder_rows, decoder_rows, target_rows, probability)


def pack_decoder(encoder_rows: Rows, target_rows: Rows, windows: int, decoder: str) -> Rows | None:
    """Rows of a self-attending decoder: every position, or visible and target tokens; None for cross-attention."""
    if decoder == "cross":
        return None
    rows, length = len(encoder_rows.segment), encoder_rows.row_tokens
    if decoder == "all":
        selected = jnp.ones((windows, length * rows // windows), bool)
    else:
        selected = encoder_rows.contains(windows) | target_rows.contains(windows)
        length = encoder_rows.length + target_rows.length
    # Every token fits, so the keys are not used.
    return pack(jax.random.split(jax.random.key(0), rows), selected, windows // rows, length)


def check_rows(windows: int, rows: RowsConfig) -> None:
    """UserError for a batch that does not fill whole rows."""
    if windows % rows.windows_per_row:
        raise UserError(
            f"{windows} windows do not fill rows of rows.windows_per_row={rows.windows_per_row}: make "
            "train.batch_size / train.grad_accum_steps a multiple of it."
        )


def _target_weights(cells: TokenCells) -> Float[Array, "b n"]:
    """Sampling weight of each token as a target: root mean square of its z-scored values, plus a floor.

    The gradient of a squared error grows with the error. Large errors are rare and come in bursts, so uniform sampling
    would have a high variance. The weights use hidden values, which the model does not see.
    """
    return jnp.sqrt(jnp.square(cells.values).mean(axis=-1)) + _WEIGHT_FLOOR


def _step_keys(rng: PRNGKeyArray, window_id: Int[Array, " b"]) -> PRNGKeyArray:
    """Three keys per window: for its mask, its visible tokens and its targets."""
    return jax.vmap(lambda key: jax.random.split(key, 3))(window_keys(rng, window_id))
