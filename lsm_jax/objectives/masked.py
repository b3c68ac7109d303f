"""Masked reconstruction: the objective of LSM-2 (arXiv 2506.05321). LSM-1 fills gaps first (`imputed`).

The model sees neither missing tokens (the inherited mask) nor tokens hidden for training (the artificial mask). The
loss is taken per observed cell of artificially hidden tokens. With `objective.person_weight` the person loss is
added, a contrastive loss over people.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
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
from lsm_jax.nn.masked_autoencoder import MaskedAutoencoder
from lsm_jax.nn.representation import representation_health
from lsm_jax.nn.sizes import model_size
from lsm_jax.objectives import contrastive
from lsm_jax.objectives.base import (
    AnyBatch,
    Batch,
    EncoderAblation,
    MaskedObjective,
    Metrics,
    NetworkObjective,
    Params,
    implementations,
    sensor_part,
    with_compute_dtype,
)
from lsm_jax.objectives.inference import by_window, on_packed_rows, padded, tokens_by_window
from lsm_jax.tokens.grid import TokenCells, TokenGrid
from lsm_jax.tokens.inference_rows import MAX_WINDOWS
from lsm_jax.tokens.masking import MaskedBatch, mask_and_pack, pack_decoder, training_masks, window_keys
from lsm_jax.tokens.policies import PolicyMixture
from lsm_jax.tokens.row_lengths import resolved_rows
from lsm_jax.tokens.rows import Rows, pack


class MaskedReconstruction(NetworkObjective, MaskedObjective):
    """Masked reconstruction of z-scored cells.

    Attributes:
      rows: the section `rows` with resolved lengths.
      size, model: size and section `model` of the network, with a resolved `dtype`.
    """

    def __init__(self, config: Config, spec: DataSpec) -> None:
        self.tokens = TokenGrid.from_config(config, spec)
        self.mixture = PolicyMixture(config.masking)
        self.rows = resolved_rows(config, self.tokens, self.mixture, spec)
        self.objective = config.objective
        if self.objective.temperature <= 0:
            raise UserError(f"objective.temperature={self.objective.temperature} must be above 0.")
        if self.objective.person_weight < 0:
            raise UserError(f"objective.person_weight={self.objective.person_weight} must be at least 0.")
        self.compares_windows = self.compares_windows or self.objective.person_weight > 0
        self.size = model_size(config.model.size)
        self.model = with_compute_dtype(config.model)
        self.implementations = implementations(self.model, self._attention(), self.model.decoder)
        self._shapes = self.trace_network()

    def network(self, rng: PRNGKeyArray) -> MaskedAutoencoder:
        """The network with initial parameters."""
        compares_people = self.objective.person_weight > 0
        return MaskedAutoencoder(self.tokens, self.size, self.model, compares_people, rngs=nnx.Rngs(rng))

    def loss(self, params: Params, batch: Batch, rng: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        """Mean squared error (z-scored) over observed cells of artificially hidden tokens, plus the person loss.

        If only a sample of them is decoded, each is weighted by the inverse of its inclusion probability. Finite for
        any bytes in unobserved cells. Zero, with a zero gradient, if there is nothing to predict.

        The person loss has the weight `objective.person_weight`; with it, metrics have both losses.
        """
        cells = self.tokens.tokenize(batch)
        masked = self._mask_and_pack(cells, batch, rng)
        targets, probability = masked.target_rows, masked.inclusion_probability
        network = self.restored(params)
        predicted, encoded = network(cells, masked)
        predicted = predicted.astype(jnp.float32)
        scored = targets.take(cells.observed) & (targets.segment > 0)[:, :, None]
        errors = jnp.square(predicted - targets.take(cells.values))
        total = jnp.where(
            scored, errors / targets.take(jnp.where(probability > 0, probability, 1))[:, :, None], 0
        ).sum()
        hidden_cells = (cells.observed & (probability > 0)[:, :, None]).sum().astype(jnp.float32)
        # Micro-batches and validation batches are averaged with this weight.
        metrics = self._metrics(self.tokens.tokens_observed(cells.observed), masked) | {"loss_weight": hidden_cells}
        loss = total / jnp.maximum(hidden_cells, 1.0)
        if not self.objective.person_weight:
            return loss, metrics
        person_loss, accuracy = self._person_loss(network, encoded, masked.encoder_rows, batch)
        metrics |= {"reconstruction_loss": loss, "person_loss": person_loss, "person_accuracy": accuracy}
        return loss + self.objective.person_weight * person_loss, metrics

    def _person_loss(
        self, network: MaskedAutoencoder, encoded: Float[Array, "r s d"], rows: Rows, batch: Batch
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`contrastive.same_person_loss` of the windows' visible tokens."""
        windows = len(batch["observed"])
        vectors = network.person_vectors(encoded, rows, windows)
        has_tokens = rows.contains(windows).any(axis=1)
        axes, scale = contrastive.batch_mesh_axes(windows), jnp.float32(1 / self.objective.temperature)
        return contrastive.same_person_loss(vectors, batch["person"], has_tokens, scale, axes)

    def attention_shapes(self, batch: Batch, rng: PRNGKeyArray) -> list[AttentionShape]:
        """The encoder, then the decoder."""
        return self._attention_shapes(self._mask_and_pack(self.tokens.tokenize(batch), batch, rng))

    def representation(self, params: Params, batch: Batch) -> Metrics:
        """See `Objective.representation`. The encoder reads at most as many tokens of a window as in training."""
        cells, length = self.tokens.tokenize(batch), max(self.rows.encoder_length // self.rows.windows_per_row, 1)
        keys = window_keys(jax.random.key(0), batch["window_id"])
        rows = pack(keys, self.tokens.tokens_observed(cells.observed), 1, length)
        encoded, entropy = self.restored(params).encoder.with_attention_entropy(cells, rows)
        return representation_health(encoded, rows.segment > 0) | {"attention_entropy": entropy}

    def hidden(self, batch: Batch, rng: PRNGKeyArray) -> Bool[Array, "b n"]:
        """The artificial masks of `loss` with this `rng`."""
        return training_masks(rng, self.observed(batch), batch["window_id"], self.tokens, self.mixture)

    def reconstruct(self, params: Params, batch: AnyBatch, hidden: Bool[Any, "b n"]) -> Float[np.ndarray, "b t c"]:
        """Predictions (z-scored) at every cell of `hidden` tokens, the input elsewhere.

        The encoder reads the observed tokens that are not hidden: all of them, or `rows.eval_max_tokens` random ones
        (the same ones every time). Rows follow the batch, so this cannot be traced.
        """
        (predicted,) = self._decoded(params, batch, np.asarray(hidden), [np.arange(len(hidden))])
        return predicted

    def ablate_encoder(
        self, params: Params, batch: AnyBatch, hidden: Bool[Any, "b n"], other: Int[np.ndarray, " b"]
    ) -> EncoderAblation:
        """See `MaskedObjective.ablate_encoder`. Another window's tokens keep their own positions."""
        own = np.arange(len(hidden))
        sources = [own, np.asarray(other), np.full_like(own, -1)]
        return EncoderAblation(*self._decoded(params, batch, np.asarray(hidden), sources))

    def _attention(self) -> str:
        """The attention implementations of encoder and decoder."""
        rows, row_tokens = self.rows, self.rows.windows_per_row * self.tokens.size
        packed, dropped = min(rows.encoder_length, row_tokens), int(rows.dropped_share * self.tokens.size)
        visible = {"packed": packed, "fixed_drop": row_tokens - dropped, "dense": row_tokens}[rows.layout]
        targets = min(rows.decoder_length, row_tokens)
        together = min(visible + targets, row_tokens)
        lengths = {"cross": (targets, visible), "observed": (together, together), "all": (row_tokens, row_tokens)}
        encoder = resolve_implementation(self.model.attention, visible, visible)
        decoder = resolve_implementation(self.model.attention, *lengths[self.model.decoder])
        return encoder if encoder == decoder else f"{encoder} (encoder), {decoder} (decoder)"

    def _mask_and_pack(self, cells: TokenCells, batch: Batch, rng: PRNGKeyArray) -> MaskedBatch:
        return mask_and_pack(rng, cells, batch["window_id"], self.tokens, self.mixture, self.rows, self.model.decoder)

    def _attention_shapes(self, masked: MaskedBatch) -> list[AttentionShape]:
        windows, encoder, decoder = self.rows.windows_per_row, self.size.encoder, self.size.decoder
        visible, targets = masked.encoder_rows.segment, masked.target_rows.segment
        shapes = [AttentionShape(visible, visible, encoder, windows)]
        if masked.decoder_rows is None:
            return [*shapes, AttentionShape(targets, visible, decoder, windows, memory_width=encoder.width)]
        # The last block of a self-attending decoder computes only target tokens.
        rows, last = masked.decoder_rows.segment, dataclasses.replace(decoder, depth=1)
        return [
            *shapes,
            AttentionShape(rows, rows, dataclasses.replace(decoder, depth=decoder.depth - 1), windows),
            AttentionShape(targets, rows, last, windows, memory_width=decoder.width),
        ]

    def _metrics(self, observed: Bool[Array, "b n"], masked: MaskedBatch) -> Metrics:
        total = lambda tokens: tokens.sum().astype(jnp.float32)  # noqa: E731
        visible, targets = masked.encoder_rows, masked.target_rows
        layers = {name: self._shapes[name] for name in ("encoder", "decoder")}  # the projection head is small
        return {
            "tokens_observed": total(observed),
            "tokens_visible": total(visible.segment > 0),
            "tokens_visible_left_out": total(visible.left_out),
            "tokens_targets": total(targets.segment > 0),
            "tokens_targets_left_out": total(targets.left_out),
            "row_fill": total(visible.segment > 0) / visible.segment.size,
            "useful_flops": useful_flops(self._attention_shapes(masked), layers, self.tokens),
        }

    def _decoded(
        self, params: Params, batch: AnyBatch, hidden: Bool[Any, "b n"], sources: Sequence[Int[np.ndarray, " b"]]
    ) -> list[Float[np.ndarray, "b t c"]]:
        """Reconstructions, for each of `sources` with the encoder's output of these windows; -1 is none."""
        arrays = sensor_part(batch)
        visible = self.read_tokens(batch) & ~hidden
        read = visible
        most = self.rows.eval_max_tokens or self.tokens.size
        if visible.sum(axis=1).max(initial=0) > most:
            read = _sampled(np.asarray(arrays["window_id"]), visible, most)
        encoded = tokens_by_window(on_packed_rows(self.encode_rows, (), params, arrays, [read]), read).vectors
        parts = {**arrays, "visible": visible, "hidden": hidden}
        # A decoder over every position has rows of whole windows.
        windows = 1 if self.model.decoder == "all" else MAX_WINDOWS
        reconstructions = []
        for source in sources:
            selected = [read[source] & (source >= 0)[:, None], hidden]
            calls = on_packed_rows(self._decode_rows, (), params, parts, selected, windows, carried=encoded[source])
            reconstructions.append(by_window(calls, len(hidden)))
        return reconstructions

    def _decode_rows(
        self, params: Params, batch: Batch, encoder_rows: Rows, targets: Rows, encoded: Float[Array, "r s d"]
    ) -> Float[Array, "w t c"]:
        """Predicted cells at hidden tokens, the input elsewhere, from the encoder's output for `encoder_rows`."""
        cells, hidden = self.tokens.tokenize(batch), batch["hidden"]
        decoder_rows = pack_decoder(encoder_rows, targets, len(hidden), self.model.decoder)
        masked = MaskedBatch(batch["visible"], encoder_rows, decoder_rows, targets, hidden.astype(jnp.float32))
        predicted = self.restored(params).decoder(encoded.astype(self.model.dtype), cells, masked)
        by_token = targets.scatter(predicted).reshape(*hidden.shape, -1)
        return self.tokens.windows(jnp.where(hidden[:, :, None], by_token, cells.values))


def _sampled(window_id: Int[np.ndarray, " b"], visible: Bool[np.ndarray, "b n"], most: int) -> Bool[np.ndarray, "b n"]:
    """At most so many of each window's visible tokens, drawn at random, the same ones every time."""
    arrays = padded({"window_id": window_id, "visible": visible})
    return np.asarray(_sample(arrays["window_id"], arrays["visible"], most))[: len(visible)]


@functools.partial(jax.jit, static_argnums=2)
def _sample(window_id: Int[Array, " b"], visible: Bool[Array, "b n"], most: int) -> Bool[Array, "b n"]:
    return pack(window_keys(jax.random.key(0), window_id), visible, 1, most).contains(len(visible))
