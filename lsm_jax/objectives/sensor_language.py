"""Sensor-text objectives: CLIP, SigLIP, Cap and CoCa with the encoder and rows of LSM-2 (arXiv 2506.09108).

A window without a caption (begin and end only) is left out of the contrastive loss, and teaches the captioner to write
nothing. A window whose text is all padding takes part in no loss. Contrastive losses are exact over the global batch
(`contrastive`); the captioning loss is a mean over tokens.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.captions.tokenizer import END, PAD
from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.nn.flops import AttentionShape, useful_flops
from lsm_jax.nn.generation import Decoding, write_captions
from lsm_jax.nn.sensor_language import CAPTIONING, CONTRASTIVE, SensorLanguageModel, attention_shapes
from lsm_jax.nn.sizes import language_size
from lsm_jax.nn.text import has_caption
from lsm_jax.objectives import contrastive
from lsm_jax.objectives.base import (
    AnyBatch,
    Batch,
    Metrics,
    NetworkObjective,
    Params,
    implementations,
    sensor_part,
    with_compute_dtype,
)
from lsm_jax.objectives.inference import by_window, on_packed_rows
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.inference_rows import MAX_WINDOWS
from lsm_jax.tokens.masking import check_rows
from lsm_jax.tokens.row_lengths import row_length
from lsm_jax.tokens.rows import Rows

VARIANTS = ("clip", "siglip", "cap", "coca")
TEXT_SPACE = "text"  # the pooling that gives embeddings in the space shared with texts


class SensorLanguage(NetworkObjective):
    """A sensor-text model: embeddings of windows and texts, and captions.

    Attributes:
      size, model, language: size and sections of the network; `model` has a resolved `dtype`.
      variant: `clip`, `siglip`, `cap` or `coca`.
    """

    def __init__(self, config: Config, spec: DataSpec) -> None:
        self.variant, self.language = config.objective.name, config.language
        if not self.language.levels:
            raise UserError(
                f"objective.name={self.variant!r} learns from captions, and language.levels is empty: set "
                "--config.language.levels=semantic, or all."
            )
        self.tokens, self.size = TokenGrid.from_config(config, spec), language_size(config.model.size)
        length = config.rows.encoder_length or row_length(config, self.tokens, spec)
        self.rows = dataclasses.replace(config.rows, encoder_length=length)
        self.model = with_compute_dtype(config.model)
        self.compares_windows, self.captions = self.variant in CONTRASTIVE, self.variant in CAPTIONING
        self.frozen = ("encoder",) if self.model.freeze_encoder else ()
        self.implementations = implementations(self.model, self.model.attention, "text" if self.captions else "none")
        self._encoder_shapes = self.trace_network()["encoder"]

    def network(self, rng: PRNGKeyArray) -> SensorLanguageModel:
        """The network with initial parameters."""
        return SensorLanguageModel(self.tokens, self.size, self.variant, self.model, self.language, rngs=nnx.Rngs(rng))

    def loss(self, params: Params, batch: Batch, rng: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        """The variant's loss over the global batch; zero, and finite, if no window has a text."""
        windows, ids = len(batch["observed"]), batch["text"]
        check_rows(windows, self.rows)
        params = self.without_frozen_gradients(params)
        cells, network = self.tokens.tokenize(batch), self.restored(params)
        observed = self.tokens.tokens_observed(cells.observed)
        rows = self.training_rows(batch, observed, rng)
        encoded, vectors = network.encode(cells, rows), network.text(ids)
        losses, metrics = {}, self._metrics(observed, rows, ids)
        if self.compares_windows:
            pair = network.sensor_embedding(encoded, rows, windows), network.text_embedding(vectors, ids)
            losses["contrastive"], more = self._contrastive(network, pair, ids)
            metrics |= more
        if self.captions:
            logits = network.caption_logits(vectors, ids, network.memory(encoded, rows, windows))
            losses["caption"], tokens = caption_loss(logits, ids)
            # A batch of Cap is a mean over tokens; the others' are means over pairs.
            metrics["loss_weight"] = metrics["loss_weight"] if self.compares_windows else tokens
        metrics |= {f"{name}_loss": value for name, value in losses.items()}
        if self.variant == "coca":
            weights = {"contrastive": self.language.contrastive_weight, "caption": self.language.caption_weight}
            losses = {name: weights[name] * value for name, value in losses.items()}
        return sum(losses.values(), jnp.zeros(())), metrics

    def attention_shapes(self, batch: Batch, rng: PRNGKeyArray) -> list[AttentionShape]:
        """The encoder, pools, the text tower and the caption decoder."""
        return self._attention_shapes(self.training_rows(batch, self.observed(batch), rng), batch["text"])

    def embed(self, params: Params, batch: AnyBatch, pooling: str = "") -> Float[np.ndarray, "b e"]:
        """Embeddings of windows, from all their observed tokens.

        Args:
          pooling: `text`: L2-normalised, in the space shared with texts, the default of a contrastive variant; or how
            the encoder's output is pooled (`pooling.POOLINGS`, default mean).
        """
        pooling = pooling or (TEXT_SPACE if self.compares_windows else "mean")
        if pooling != TEXT_SPACE:
            return super().embed(params, batch, pooling)
        self._check_supports(CONTRASTIVE, "compares windows with texts")
        selected = self.read_tokens(batch)
        return by_window(on_packed_rows(self._embed_rows, (), params, sensor_part(batch), [selected]), len(selected))

    def embed_text(self, params: Params, ids: Int[Array, "t l"]) -> Float[Array, "t e"]:
        """L2-normalised embeddings of texts, in the space shared with windows."""
        self._check_supports(CONTRASTIVE, "compares windows with texts")
        return self._embed_text(params, jnp.asarray(ids))

    def generate(
        self, params: Params, batch: AnyBatch, vocabulary: int, decoding: Decoding | None = None, seed: int = 0
    ) -> Int[np.ndarray, "b l"]:
        """Captions of windows as tokens, greedy by default (`nn.generation`).

        Args:
          vocabulary: ids of the run's tokenizer.
          seed: of sampling.
        """
        self._check_supports(CAPTIONING, "writes captions")
        static, selected = (vocabulary, decoding or Decoding()), self.read_tokens(batch)
        # The seed is data, so that another one compiles nothing.
        parts = sensor_part(batch) | {"seed": np.full(len(selected), seed, np.uint32)}
        # Without queries that pool them, a caption is written from the tokens of a row, which may be one window's only.
        most = MAX_WINDOWS if self.language.caption_queries else 1
        calls = on_packed_rows(self._caption_rows, static, params, parts, [selected], most)
        return by_window(calls, len(selected))

    def _check_supports(self, variants: tuple[str, ...], ability: str) -> None:
        if self.variant not in variants:
            able = ", ".join(variants)
            raise UserError(f"no part of a run of objective {self.variant!r} {ability}; use one of {able}.")

    def _embed_rows(self, params: Params, batch: Batch, rows: Rows) -> Float[Array, "w e"]:
        network = self.restored(params)
        return network.sensor_embedding(network.encode(self.tokens.tokenize(batch), rows), rows, len(batch["observed"]))

    @functools.partial(jax.jit, static_argnums=0)
    def _embed_text(self, params: Params, ids: Int[Array, "t l"]) -> Float[Array, "t e"]:
        network = self.restored(params)
        return network.text_embedding(network.text(ids), ids)

    def _caption_rows(
        self, vocabulary: int, decoding: Decoding, params: Params, batch: Batch, rows: Rows
    ) -> Int[Array, "w l"]:
        network = self.restored(params)
        encoded = network.encode(self.tokens.tokenize(batch), rows)
        memory = network.memory(encoded, rows, len(batch["observed"]))
        # A key for each window: what it samples does not depend on the windows beside it.
        keys = jax.vmap(lambda seed, window: jax.random.fold_in(jax.random.key(seed), window))(
            batch["seed"], batch["window_id"]
        )
        return write_captions(network, memory, vocabulary, decoding, keys)

    def _contrastive(
        self, network: SensorLanguageModel, pair: contrastive.Embeddings, ids: Int[Array, "b l"]
    ) -> tuple[Float[Array, ""], Metrics]:
        valid, axes, scale = has_caption(ids), contrastive.batch_mesh_axes(len(ids)), network.contrast.scale()
        if self.variant == "siglip":
            loss = contrastive.sigmoid_loss(*pair, valid, scale, network.contrast.bias[...], axes)
        else:
            loss = contrastive.softmax_loss(*pair, valid, scale, axes)
        return loss, {"retrieval_accuracy": contrastive.in_batch_accuracy(*pair, valid, axes), "scale": scale}

    def _attention_shapes(self, rows: Rows, ids: Int[Array, "b l"]) -> list[AttentionShape]:
        passes = 1 if self.frozen else 3
        return attention_shapes(self.size, self.variant, self.language.caption_queries, rows, ids, passes)

    def _metrics(self, observed: Bool[Array, "b n"], rows: Rows, ids: Int[Array, "b l"]) -> Metrics:
        total = lambda tokens: tokens.sum().astype(jnp.float32)  # noqa: E731
        flops = useful_flops(self._attention_shapes(rows, ids), {"encoder": self._encoder_shapes}, self.tokens)
        if self.captions:  # the logits: forward and backward, two FLOPs a multiply-add
            flops += 6.0 * self.language.vocab_size * self.size.text.width * total(ids != PAD)
        return {
            "tokens_observed": total(observed),
            "tokens_left_out": total(rows.left_out),
            "tokens_text": total(ids != PAD),
            "text_truncated": ((ids[:, -1] != PAD) & (ids[:, -1] != END)).mean(),
            "text_share": has_caption(ids).mean(),
            "row_fill": total(rows.segment > 0) / rows.segment.size,
            "useful_flops": flops,
            "loss_weight": total(has_caption(ids)),
        }


def caption_loss(logits: Float[Array, "b l v"], ids: Int[Array, "b l"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross entropy of the tokens after the first, without padding, and their number."""
    targets = jnp.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=PAD)
    weight = (targets != PAD).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    # `where`, not a product: values at padding reach neither the loss nor its gradient.
    total = jnp.where(weight > 0, losses, 0).sum()
    return total / jnp.maximum(weight.sum(), 1), weight.sum()
