"""Masked reconstruction of imputed windows: the objective of LSM-1 (arXiv 2410.13638).

Gaps are filled first (`tokens.imputation`), so every token is an input or a target, and the loss counts imputed cells
like recorded ones, as published. Evaluation scores recorded cells only.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec
from lsm_jax.nn.flops import AttentionShape
from lsm_jax.objectives.base import AnyBatch, Batch, EncoderAblation, Metrics, Params
from lsm_jax.objectives.inference import padded
from lsm_jax.objectives.masked import MaskedReconstruction
from lsm_jax.objectives.pooling import TokenEmbeddings
from lsm_jax.tokens.imputation import impute
from lsm_jax.tokens.rows import Rows

_impute = jax.jit(impute)


class ImputedReconstruction(MaskedReconstruction):
    """Masked reconstruction in which every cell of a window is observed, recorded or imputed."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, dataclasses.replace(spec, observed_share=np.ones_like(spec.observed_share)))

    def loss(self, params: Params, batch: Batch, rng: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        """Mean squared error (z-scored) over all cells of hidden tokens, imputed ones included."""
        return super().loss(params, impute(batch), rng)

    def attention_shapes(self, batch: Batch, rng: PRNGKeyArray) -> list[AttentionShape]:
        """See `Objective.attention_shapes`."""
        return super().attention_shapes(impute(batch), rng)

    def representation(self, params: Params, batch: Batch) -> Metrics:
        """See `Objective.representation`."""
        return super().representation(params, impute(batch))

    def hidden(self, batch: Batch, rng: PRNGKeyArray) -> Bool[Array, "b n"]:
        """See `MaskedReconstruction.hidden`."""
        return super().hidden(impute(batch), rng)

    def reconstruct(self, params: Params, batch: AnyBatch, hidden: Bool[Any, "b n"]) -> Float[np.ndarray, "b t c"]:
        """Predictions (z-scored) at every cell of `hidden` tokens, the input elsewhere, 0 where nothing was recorded.

        Cells of hidden tokens are removed before gaps are filled, so that no line is drawn to a hidden value.
        """
        imputed, scored = self._imputed(batch, hidden)
        return np.where(scored, super().reconstruct(params, imputed, hidden), 0)

    def ablate_encoder(
        self, params: Params, batch: AnyBatch, hidden: Bool[Any, "b n"], other: Int[np.ndarray, " b"]
    ) -> EncoderAblation:
        """See `MaskedObjective.ablate_encoder` and `reconstruct`."""
        imputed, scored = self._imputed(batch, hidden)
        predictions = super().ablate_encoder(params, imputed, hidden, other)
        return EncoderAblation(*(np.where(scored, predicted, 0) for predicted in predictions))

    def _imputed(self, batch: AnyBatch, hidden: Bool[Any, "b n"]) -> tuple[AnyBatch, Bool[np.ndarray, "b t c"]]:
        """The batch with hidden and missing cells filled, and the cells that are hidden or recorded; on the host."""
        cells = np.repeat(np.asarray(hidden)[:, :, None], self.tokens.cells_per_token, axis=2)
        hidden_cells, observed = self.tokens.windows(cells), np.asarray(batch["observed"])
        arrays = {name: np.asarray(values) for name, values in batch.items()} | {"observed": observed & ~hidden_cells}
        imputed = jax.device_get(_impute(padded(arrays)))
        return {name: values[: len(observed)] for name, values in imputed.items()}, observed | hidden_cells

    def encode_rows(self, params: Params, batch: Batch, rows: Rows) -> Float[Array, "r s d"]:
        """See `NetworkObjective.encode_rows`."""
        return super().encode_rows(params, impute(batch), rows)

    def encode_tokens(self, length: int, params: Params, batch: Batch) -> TokenEmbeddings:
        """The encoder's output for all tokens of windows with a recorded cell. Pure: it can be traced."""
        return super().encode_tokens(length, params, impute(batch))

    def read_tokens(self, batch: AnyBatch) -> Bool[np.ndarray, "b n"]:
        """All tokens of windows with a recorded cell."""
        recorded = np.any(batch["observed"], axis=(1, 2), keepdims=True)[:, :, 0]
        return np.repeat(recorded, self.tokens.size, axis=1)

    def embed_length(self, batch: AnyBatch) -> int:
        """See `NetworkObjective.embed_length`."""
        return super().embed_length(_impute(dict(batch)))
