"""Sensor-text objectives: CLIP, SigLIP, Cap and CoCa on the encoder and rows of LSM-2 (SPEC section 4).

A window with nothing to say is nobody's partner, and teaches the captioner silence; one whose row of text is empty
takes part in no loss. Contrastive losses are exact over the global batch however it is spread (`contrastive`); the
captioning loss is a mean over real tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.captions.tokenizer import END, PAD
from lsm_jax.config import Config
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.nn.generation import Decoding, write_captions
from lsm_jax.nn.masked_autoencoder import ModelSettings
from lsm_jax.nn.sensor_language import LanguageSettings, SensorLanguageModel
from lsm_jax.nn.sizes import StackSize, language_size
from lsm_jax.nn.text import asking_segments, real
from lsm_jax.objectives import contrastive
from lsm_jax.objectives.shared import (
    AttentionShape,
    bucket_length,
    compute_dtype,
    expected_tokens,
    matrix_flops,
    observed_cells,
    row_length,
    segment_counts,
    stack_flops,
    window_keys,
)
from lsm_jax.sharding import BATCH_AXES
from lsm_jax.tokens import rows as rows_of
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.rows import Rows

VARIANTS = ("clip", "siglip", "cap", "coca")

Params = Mapping[str, Any]
Batch = Mapping[str, Array]


class SensorLanguage:
    """See `objectives.base.Objective`; adds embeddings of both sides and captions.

    Attributes:
      tokens: the token grid.
      compares_windows: whether the loss depends on the windows of a batch together.
      frozen: names of the parameters at the top that are not trained.
    """

    def __init__(
        self,
        tokens: TokenGrid,
        settings: ModelSettings,
        language: LanguageSettings,
        *,
        windows_per_row: int,
        capacity: int,
        weights: tuple[float, float],
        freeze_encoder: bool,
    ) -> None:
        self.tokens, self.settings, self.language = tokens, settings, language
        self.windows_per_row, self.capacity = windows_per_row, capacity
        self.contrastive_weight, self.caption_weight = weights
        self.compares_windows = language.contrasts
        self.frozen = ("encoder",) if freeze_encoder else ()
        self.implementations = {**settings.implementations, "decoder": "text" if language.captions else "none"}
        model = nnx.eval_shape(functools.partial(self._model, jax.random.key(0)))
        self._graph = nnx.graphdef(model)
        self._patches = nnx.to_pure_dict(nnx.state(model.encoder.patches, nnx.Param))["projection"]["kernel"]

    @classmethod
    def from_config(cls, config: Config, spec: DataSpec) -> SensorLanguage:
        """Builds the objective from the sections `tokens`, `rows`, `model`, `language`, `objective` and `train`."""
        if not config.language.levels:
            raise UserError(
                f"objective.name={config.objective.name!r} learns from captions, and language.levels is empty: set "
                "--config.language.levels=semantic, or all."
            )
        grid = TokenGrid(
            channels=tuple(spec.channels), window_minutes=spec.window_minutes, **dataclasses.asdict(config.tokens)
        )
        size, model, language = language_size(config.model.size), config.model, config.language
        windows = config.rows.windows_per_row
        settings = ModelSettings(
            size, patch_input=model.patch_input, asinh_inputs=model.asinh_inputs, num_neighbors=0,
            positions=model.positions, attention=model.attention, remat=model.remat, dtype=compute_dtype(model.dtype),
        )  # fmt: skip
        return cls(
            grid,
            settings,
            LanguageSettings(
                size, config.objective.name, language.vocab_size, language.text_length, language.caption_queries,
                language.embed_dim, language.init_logit_scale, language.init_logit_bias,
            ),
            windows_per_row=windows,
            capacity=config.rows.encoder_length or row_length(
                expected_tokens(spec, grid), windows, RowBalancer.from_config(config), grid, None
            ),
            weights=(language.contrastive_weight, language.caption_weight),
            freeze_encoder=language.freeze_encoder,
        )  # fmt: skip

    def init(self, rng: PRNGKeyArray) -> Params:
        """Initial parameters, float32."""
        return nnx.to_pure_dict(nnx.state(self._model(rng), nnx.Param))

    def loss(
        self, params: Params, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The variant's loss over the global batch; zero, and finite, where no window has a text."""
        windows, ids = batch["observed"].shape[0], batch["text"]
        if windows % self.windows_per_row:
            raise UserError(
                f"{windows} windows do not fill rows of rows.windows_per_row={self.windows_per_row}: make "
                "train.batch_size a multiple of it."
            )
        params = {name: jax.lax.stop_gradient(part) if name in self.frozen else part for name, part in params.items()}
        cells, observed = observed_cells(batch, self.tokens)
        rows = self._rows(batch, observed, rng)
        model = self._restored(params)
        encoded, vectors = model.encode(cells, rows), model.text(ids)
        losses, metrics = {}, self._metrics(observed, rows, ids)
        if self.language.contrasts:
            pair = model.sensor_embedding(encoded, rows, windows), model.text_embedding(vectors, ids)
            losses["contrastive"], more = self._contrastive(model, *pair, ids)
            metrics |= more
        if self.language.captions:
            scores = model.caption_scores(vectors, ids, model.memory(encoded, rows, windows))
            losses["caption"], weight = caption_loss(scores, ids)
            # A batch of Cap is a mean over tokens; the others' are means over pairs.
            metrics["loss_weight"] = weight if not self.language.contrasts else metrics["loss_weight"]
        metrics |= {f"{name}_loss": value for name, value in losses.items()}
        if self.language.variant == "coca":
            weighed = {"contrastive": self.contrastive_weight, "caption": self.caption_weight}
            losses = {name: weighed[name] * value for name, value in losses.items()}
        return sum(losses.values(), jnp.zeros(())), metrics

    def attention_shapes(self, batch: Batch, rng: PRNGKeyArray) -> list[AttentionShape]:
        """What is attended to in `loss` with this `rng`, but for texts to themselves: that computes every pair."""
        segment = self._rows(batch, observed_cells(batch, self.tokens)[1], rng).segment
        attended = [AttentionShape(segment, segment, self.language.size.encoder)]
        if self.language.captions and not self.language.caption_queries:
            asking = asking_segments(real(batch["text"]), len(segment))
            attended.append(AttentionShape(asking, segment, self.language.size.decoder))
        return attended

    def embed(self, params: Params, batch: Batch) -> Float[Array, "b e"]:
        """Embeddings of windows, of length one, in the space of texts, from all their observed tokens."""
        self._require("contrasts", "compares windows with texts")
        return self._embed_sensor(self.observed_capacity(batch), params, _sensor_part(batch))

    def embed_text(self, params: Params, ids: Int[Array, "t l"]) -> Float[Array, "t e"]:
        """Embeddings of texts, of length one, in the space of windows."""
        self._require("contrasts", "compares windows with texts")
        return self._embed_text(params, jnp.asarray(ids))

    def generate(
        self, params: Params, batch: Batch, vocabulary: int, decoding: Decoding | None = None, seed: int = 0
    ) -> Int[Array, "b l"]:
        """Captions of windows as tokens, the likeliest token by token by default (`models.generation`).

        Args:
          vocabulary: ids of the run's tokenizer.
          seed: of draws.
        """
        self._require("captions", "writes captions")
        settings = self.observed_capacity(batch), vocabulary, decoding or Decoding()
        return self._generate(*settings, params, _sensor_part(batch), jax.random.key(seed))

    def observed_capacity(self, batch: Batch) -> int:
        """A row length that holds every observed token of each window: 160 doubled, so that few are compiled."""
        return bucket_length(observed_cells(_sensor_part(batch), self.tokens)[1])

    def _rows(self, batch: Batch, observed: Bool[Array, "b n"], rng: PRNGKeyArray) -> Rows:
        keys = window_keys(rng, batch["window_id"])[:: self.windows_per_row]
        return rows_of.packed(keys, observed, self.windows_per_row, self.capacity)

    def _require(self, part: str, what: str) -> None:
        if not getattr(self.language, part):
            able = [name for name in VARIANTS if (name != "cap" if part == "contrasts" else name in {"cap", "coca"})]
            raise UserError(
                f"no part of a run of objective {self.language.variant!r} {what}; use one of {', '.join(able)}."
            )

    def _model(self, rng: PRNGKeyArray) -> SensorLanguageModel:
        return SensorLanguageModel(self.tokens, self.settings, self.language, rngs=nnx.Rngs(rng))

    def _restored(self, params: Params) -> SensorLanguageModel:
        return nnx.merge(self._graph, nnx.State(params))

    def _encoded(
        self, capacity: int, params: Params, batch: Batch
    ) -> tuple[SensorLanguageModel, Float[Array, "b s d"], Rows]:
        """One window to a row of `capacity` slots, which leaves nothing out."""
        cells, observed = observed_cells(batch, self.tokens)
        rows = rows_of.packed(window_keys(jax.random.key(0), batch["window_id"]), observed, 1, capacity)
        model = self._restored(params)
        return model, model.encode(cells, rows), rows

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _embed_sensor(self, capacity: int, params: Params, batch: Batch) -> Float[Array, "b e"]:
        model, encoded, rows = self._encoded(capacity, params, batch)
        return model.sensor_embedding(encoded, rows, len(encoded))

    @functools.partial(jax.jit, static_argnums=0)
    def _embed_text(self, params: Params, ids: Int[Array, "t l"]) -> Float[Array, "t e"]:
        model = self._restored(params)
        return model.text_embedding(model.text(ids), ids)

    @functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
    def _generate(
        self, capacity: int, vocabulary: int, decoding: Decoding, params: Params, batch: Batch, key: PRNGKeyArray
    ) -> Int[Array, "b l"]:
        model, encoded, rows = self._encoded(capacity, params, batch)
        return write_captions(model, model.memory(encoded, rows, len(encoded)), vocabulary, decoding, key)

    def _contrastive(
        self,
        model: SensorLanguageModel,
        sensor: Float[Array, "b e"],
        text: Float[Array, "b e"],
        ids: Int[Array, "b l"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The contrastive loss, and how it stands with it."""
        valid, axes, scale = _said(ids), _spread(len(ids)), model.contrast.scale()
        if self.language.variant == "siglip":
            loss = contrastive.sigmoid_loss(sensor, text, valid, scale, model.contrast.bias[...], axes)
        else:
            loss = contrastive.softmax_loss(sensor, text, valid, scale, axes)
        found = contrastive.in_batch_accuracy(sensor, text, valid, axes)
        return loss, {"retrieval_accuracy": found, "scale": scale}

    def _metrics(self, observed: Bool[Array, "b n"], rows: Rows, ids: Int[Array, "b l"]) -> dict[str, Float[Array, ""]]:
        said = _said(ids)
        cut = (ids[:, -1] != PAD) & (ids[:, -1] != END)
        total = lambda what: what.sum().astype(jnp.float32)  # noqa: E731
        return {
            "tokens_observed": total(observed),
            "tokens_left_out": total(rows.left_out),
            "tokens_text": total(ids != PAD),
            "text_truncated": cut.mean(),
            "text_share": said.mean(),
            "row_fill": total(rows.segment > 0) / rows.segment.size,
            "useful_flops": self._useful_flops(rows, ids),
            "loss_weight": total(said),
        }

    def _useful_flops(self, rows: Rows, ids: Int[Array, "b l"]) -> Float[Array, ""]:
        """Forward and backward FLOPs of real tokens of both kinds; a frozen encoder has no backward pass."""
        size, language = self.language.size, self.language
        seen, words = segment_counts(rows, self.windows_per_row), real(ids).sum(axis=1, keepdims=True).astype(float)
        width = size.encoder.width
        encoder, patches = stack_flops(size.encoder, seen, seen), matrix_flops(self._patches, seen.sum())
        text = stack_flops(size.text, words, words)
        if language.variant != "siglip":
            text -= _unseen_flops(size.text, words)
        queries = language.caption_queries if language.captions else 0
        pool = dataclasses.replace(size.encoder, depth=1)
        for number in filter(None, (int(language.contrasts), queries)):
            text += stack_flops(pool, number * jnp.ones_like(seen), seen, width)
        if language.captions:
            decoder = size.decoder
            memory = jnp.full_like(words, queries) if queries else seen.reshape(words.shape)
            text += stack_flops(decoder, words, words) - _unseen_flops(decoder, words)
            text += stack_flops(dataclasses.replace(decoder, hidden=0), words, memory, width)
            text += 2.0 * language.vocab_size * size.text.width * words.sum()
        # Data need no gradient.
        return (encoder + patches if self.frozen else 3.0 * encoder + 2.0 * patches) + 3.0 * text


def caption_loss(scores: Float[Array, "b l v"], ids: Int[Array, "b l"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross entropy of each real token after the first, and how many those are; padding counts for nothing."""
    following = jnp.pad(ids[:, 1:], ((0, 0), (0, 1)), constant_values=PAD)
    weight = (following != PAD).astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, following)
    # Chosen, not multiplied: what stands at padding reaches neither the loss nor its gradient.
    total = jnp.where(weight > 0, losses, 0).sum()
    return total / jnp.maximum(weight.sum(), 1), weight.sum()


def _unseen_flops(size: StackSize, words: Float[Array, "b 1"]) -> Float[Array, ""]:
    """What `stack_flops` counts of pairs whose later token the earlier does not see: half of them."""
    return size.depth * 2.0 * size.width * jnp.square(words).sum()


def _said(ids: Int[Array, "b l"]) -> Bool[Array, " b"]:
    """Which windows have a text; to begin and end is to say nothing."""
    return (ids[:, 0] != PAD) & (ids[:, 1] != END)


def _sensor_part(batch: Batch) -> dict[str, Array]:
    return {name: jnp.asarray(batch[name]) for name in ("values", "observed", "window_id")}


def _spread(windows: int) -> tuple[str, ...]:
    """The axes of the mesh entered that the batch is spread over; none on a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AxisType.Manual in mesh.axis_types:
        return ()
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    return axes if windows % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()
