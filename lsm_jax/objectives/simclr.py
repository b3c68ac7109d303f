"""SimCLR: two views of a window are recognised among those of other windows (Chen et al. 2020, arXiv 2002.05709).

A view is what an artificial mask leaves of a window (`masking.policies`: part of its tokens, hours or channels), with
noise on its cells. Each view is to score highest with the other view of its window. The loss is CLIP's, between first
and second views; SimCLR's own also counts views of the same side as negatives.

It is the contrastive baseline of the papers' encoders: it embeds windows, and cannot reconstruct them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.nn.attention import resolve_implementation
from lsm_jax.nn.flops import AttentionShape, useful_flops
from lsm_jax.nn.simclr import ContrastiveEncoder
from lsm_jax.objectives import contrastive
from lsm_jax.objectives.base import AnyBatch, Batch, EncoderAblation, Metrics, Params, check_packed, implementations
from lsm_jax.objectives.masked import MaskedReconstruction
from lsm_jax.tokens.masking import check_rows, training_masks, window_keys
from lsm_jax.tokens.rows import Rows, pack

_VIEW_KEYS = (2**31 + 1, 2**31 + 2)  # folded into the step's key; no window id is this large


class SimCLR(MaskedReconstruction):
    """Contrast of two masked views. Encoder, masks and embeddings are those of masked reconstruction."""

    compares_windows = True
    reconstructs = False

    def __init__(self, config: Config, spec: DataSpec) -> None:
        if config.objective.jitter < 0:
            raise UserError(f"objective.jitter={config.objective.jitter} must be at least 0.")
        check_packed(config)
        super().__init__(config, spec)
        length = min(self.rows.encoder_length, self.rows.windows_per_row * self.tokens.size)
        attention = resolve_implementation(self.model.attention, length, length)
        self.implementations = implementations(self.model, attention, "none")

    def network(self, rng: PRNGKeyArray) -> ContrastiveEncoder:  # type: ignore[override]  # it has the same encoder
        """The network with initial parameters."""
        return ContrastiveEncoder(self.tokens, self.size.encoder, self.model, rngs=nnx.Rngs(rng))

    def loss(self, params: Params, batch: Batch, rng: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        """Cross entropy (nats) of each view's partner among the partners of all windows, averaged over both sides.

        A window without a visible token in one of its views takes no part.
        """
        windows, network = len(batch["observed"]), self.restored(params)
        cells = self.tokens.tokenize(batch)
        observed = self.tokens.tokens_observed(cells.observed)
        vectors, rows, has_tokens = [], [], jnp.ones(windows, bool)
        for number in _VIEW_KEYS:
            key = jax.random.fold_in(rng, number)
            visible, packed = self._view(key, observed, batch)
            noise = jax.vmap(lambda key: jax.random.normal(key, cells.values.shape[1:]))(
                window_keys(jax.random.fold_in(key, 1), batch["window_id"])
            )
            values = jnp.where(cells.observed, cells.values + self.objective.jitter * noise, 0)
            vectors.append(network(cells._replace(values=values), packed, windows))
            rows.append(packed)
            has_tokens &= visible.any(axis=1)
        axes, scale = contrastive.batch_mesh_axes(windows), jnp.float32(1 / self.objective.temperature)
        loss = contrastive.softmax_loss(vectors[0], vectors[1], has_tokens, scale, axes)
        accuracy = contrastive.in_batch_accuracy(vectors[0], vectors[1], has_tokens, axes)
        total = lambda tokens: tokens.sum().astype(jnp.float32)  # noqa: E731
        return loss, {
            "tokens_observed": total(observed),
            "tokens_visible": sum(total(each.segment > 0) for each in rows),
            "tokens_visible_left_out": sum(total(each.left_out) for each in rows),
            "row_fill": sum(total(each.segment > 0) / each.segment.size for each in rows) / len(rows),
            "useful_flops": sum(
                useful_flops([shape], {"encoder": self._shapes["encoder"]}, self.tokens)
                for shape in self._encoder_shapes(rows)
            ),
            "retrieval_accuracy": accuracy,
            "loss_weight": total(has_tokens),
        }

    def attention_shapes(self, batch: Batch, rng: PRNGKeyArray) -> list[AttentionShape]:
        """The encoder of either view."""
        observed = self.observed(batch)
        views = [self._view(jax.random.fold_in(rng, number), observed, batch) for number in _VIEW_KEYS]
        return self._encoder_shapes([rows for _, rows in views])

    def reconstruct(self, params: Params, batch: AnyBatch, hidden: Bool[Any, "b n"]) -> Float[np.ndarray, "b t c"]:
        """Raises UserError: there is no decoder."""
        del params, batch, hidden
        raise _no_decoder()

    def ablate_encoder(
        self, params: Params, batch: AnyBatch, hidden: Bool[Any, "b n"], other: Int[np.ndarray, " b"]
    ) -> EncoderAblation:
        """Raises UserError: there is no decoder."""
        del params, batch, hidden, other
        raise _no_decoder()

    def _view(self, key: PRNGKeyArray, observed: Bool[Array, "b n"], batch: Batch) -> tuple[Bool[Array, "b n"], Rows]:
        """The visible tokens of one view of each window, and the rows they are packed into."""
        check_rows(len(observed), self.rows)
        hidden = training_masks(key, observed, batch["window_id"], self.tokens, self.mixture)
        visible, keys = observed & ~hidden, window_keys(key, batch["window_id"])[:: self.rows.windows_per_row]
        return visible, pack(keys, visible, self.rows.windows_per_row, self.rows.encoder_length)

    def _encoder_shapes(self, rows: list[Rows]) -> list[AttentionShape]:
        windows = self.rows.windows_per_row
        return [AttentionShape(each.segment, each.segment, self.size.encoder, windows) for each in rows]


def _no_decoder() -> UserError:
    return UserError("a run of simclr embeds windows and cannot reconstruct them; use a run of LSM-1 or LSM-2.")
