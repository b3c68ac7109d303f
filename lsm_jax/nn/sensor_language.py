"""SensorLM: the encoder of LSM-2, a text tower and a multimodal decoder (arXiv 2506.09108; CoCa, arXiv 2205.01917).

The variants CLIP, SigLIP, Cap and CoCa have the parts that their losses need. The encoder reads observed tokens only,
so it can start from a checkpoint of LSM-2.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lsm_jax.config import LanguageConfig, ModelConfig
from lsm_jax.errors import UserError
from lsm_jax.nn.flops import AttentionShape
from lsm_jax.nn.layers import Stack
from lsm_jax.nn.masked_autoencoder import Encoder
from lsm_jax.nn.positions import Positions
from lsm_jax.nn.sizes import LanguageSize, StackSize
from lsm_jax.nn.text import Cache, Memory, TextStack, TextTower, last_token, query_segment_ids, text_segments
from lsm_jax.tokens.grid import TokenCells, TokenGrid
from lsm_jax.tokens.rows import Rows

CONTRASTIVE = ("clip", "siglip", "coca")  # variants with a contrastive loss
CAPTIONING = ("cap", "coca")  # variants with a captioning loss
_MAX_SCALE = 100.0  # as in CLIP


class Pool(nnx.Module):
    """Learned queries that attend to the tokens of each window (multi-head attention pooling)."""

    def __init__(self, queries: int, encoder: StackSize, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        width = encoder.width
        self.queries = nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (queries, width)))
        self.stack = Stack(
            pool_size(encoder), memory_width=width, implementation=config.attention, remat="none", dtype=config.dtype,
            rngs=rngs,
        )  # fmt: skip
        self.dtype = config.dtype

    def __call__(self, encoded: Float[Array, "r s d"], rows: Rows, windows: int) -> Float[Array, "b q d"]:
        """The queries' outputs for each window, also for a window without tokens."""
        queries = self.queries[...].astype(self.dtype)
        number, rows_count = len(queries), encoded.shape[0]
        per_row = windows // rows_count
        segments = pool_segments(number, rows_count, per_row)
        tokens = jnp.broadcast_to(jnp.tile(queries, (per_row, 1)), (*segments.shape, queries.shape[1]))
        pooled = self.stack(tokens, segments, (encoded, rows.segment))
        return pooled.reshape(windows, number, -1)


def pool_size(encoder: StackSize) -> StackSize:
    """The size of a pool's stack: one block."""
    return dataclasses.replace(encoder, depth=1)


def pool_segments(queries: int, rows: int, windows_per_row: int) -> Int[Array, "r n*q"]:
    """Segments of the queries of all windows of each row."""
    segments = jnp.repeat(jnp.arange(1, windows_per_row + 1, dtype=jnp.int32), queries)
    return jnp.broadcast_to(segments, (rows, len(segments)))


class Contrast(nnx.Module):
    """Projects sensor and text vectors to a shared space; holds the scale and bias of their scores."""

    def __init__(
        self, size: LanguageSize, variant: str, language: LanguageConfig, dtype: str, *, rngs: nnx.Rngs
    ) -> None:
        self.sensor_proj = nnx.Linear(size.encoder.width, language.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.text_proj = nnx.Linear(size.text.width, language.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)
        if not 0 <= language.init_logit_scale <= _MAX_SCALE:
            raise UserError(
                f"language.init_logit_scale={language.init_logit_scale}: give a number above 0 and at most "
                f"{_MAX_SCALE:g}, or 0 for the default."
            )
        scale = language.init_logit_scale or (10.0 if variant == "siglip" else 1 / 0.07)
        self.log_scale = nnx.Param(jnp.float32(math.log(scale)))
        if variant == "siglip":
            self.bias = nnx.Param(jnp.float32(language.init_logit_bias))

    def scale(self) -> Float[Array, ""]:
        """The inverse temperature."""
        return _limited_exp(self.log_scale[...])


@jax.custom_vjp
def _limited_exp(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """The exponential, at most `_MAX_SCALE`; above it only descent that lowers the scale has a gradient."""
    return jnp.minimum(jnp.exp(log_scale), _MAX_SCALE)


def _limited_exp_forward(log_scale: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    scale = _limited_exp(log_scale)
    return scale, scale


def _limited_exp_backward(scale: Float[Array, ""], gradient: Float[Array, ""]) -> tuple[Float[Array, ""]]:
    return (jnp.where((scale < _MAX_SCALE) | (gradient > 0), gradient * scale, 0.0),)


_limited_exp.defvjp(_limited_exp_forward, _limited_exp_backward)


class Caches(NamedTuple):
    """Key-value caches of the text tower and the decoder."""

    text: Cache
    decoder: Cache


class SensorLanguageModel(nnx.Module):
    """The network of a variant (`clip`, `siglip`, `cap` or `coca`).

    Args:
      config: with a resolved `dtype`.
    """

    def __init__(
        self,
        grid: TokenGrid,
        size: LanguageSize,
        variant: str,
        config: ModelConfig,
        language: LanguageConfig,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        for key, least in (("vocab_size", 1), ("text_length", 1), ("caption_queries", 0), ("embed_dim", 1)):
            if getattr(language, key) < least:
                raise UserError(f"language.{key}={getattr(language, key)}: give a whole number of at least {least}.")
        self.language = language
        self.encoder = Encoder(grid, size.encoder, config, rngs=rngs)
        # SigLIP's text tower is bidirectional. A captioner must not see later tokens.
        self.text = TextTower(
            size.text, language.vocab_size, language.text_length, causal=variant != "siglip", remat=config.remat,
            dtype=config.dtype, rngs=rngs,
        )  # fmt: skip
        if variant in CONTRASTIVE:
            self.pool = Pool(1, size.encoder, config, rngs=rngs)
            self.contrast = Contrast(size, variant, language, config.dtype, rngs=rngs)
        if variant in CAPTIONING:
            if language.caption_queries:
                self.caption_pool = Pool(language.caption_queries, size.encoder, config, rngs=rngs)
            else:
                self.memory_positions = Positions("sincos", grid, size.encoder.width, dtype=config.dtype, rngs=rngs)
            self.decoder = TextStack(
                size.decoder, memory_width=size.encoder.width, cross_attention_impl=config.attention, causal=True,
                remat=config.remat, dtype=config.dtype, rngs=rngs,
            )  # fmt: skip

    def encode(self, cells: TokenCells, rows: Rows) -> Float[Array, "r s d"]:
        """The encoder's output."""
        return self.encoder(cells, rows)

    def sensor_embedding(self, encoded: Float[Array, "r s d"], rows: Rows, windows: int) -> Float[Array, "b e"]:
        """The L2-normalised embedding of each window; float32."""
        return _normalised(self.contrast.sensor_proj(self.pool(encoded, rows, windows)[:, 0]))

    def text_embedding(self, vectors: Float[Array, "b l d"], ids: Int[Array, "b l"]) -> Float[Array, "b e"]:
        """The L2-normalised embedding of each text, from its last token, which has seen all others; float32."""
        return _normalised(self.contrast.text_proj(last_token(vectors, ids)))

    def memory(self, encoded: Float[Array, "r s d"], rows: Rows, windows: int) -> Memory:
        """What the caption decoder attends to: pooled queries, or the encoder's output."""
        if not self.language.caption_queries:
            # Positions again: little of them is left in the encoder's output, and captions name times.
            return encoded + self.memory_positions(rows.token_index % self.encoder.grid.size), rows.segment
        pooled = self.caption_pool(encoded, rows, windows)
        return pooled, jnp.ones(pooled.shape[:2], jnp.int32)

    def caption_logits(
        self, vectors: Float[Array, "b l d"], ids: Int[Array, "b l"], memory: Memory
    ) -> Float[Array, "b l v"]:
        """At each position the logits of the next token, given the tokens up to it.

        Args:
          vectors: of the text tower for `ids`.
        """
        return self.text.logits(self.decoder(vectors, text_segments(ids), memory))

    def empty_caches(self, texts: int) -> Caches:
        """Caches for captions without tokens."""
        length = self.language.text_length
        return Caches(self.text.stack.empty_cache(texts, length), self.decoder.empty_cache(texts, length))

    def caption_step(
        self, ids: Int[Array, " b"], caches: Caches, position: Int[Array, ""], memory: Memory
    ) -> tuple[Float[Array, "b v"], Caches]:
        """Logits of the token after `ids`, the tokens at `position`, and the caches with them."""
        vectors, text = self.text.step(ids, caches.text, position)
        vectors, decoder = self.decoder.step(vectors, caches.decoder, position, memory)
        return self.text.logits(vectors)[:, 0], Caches(text, decoder)


def attention_shapes(
    size: LanguageSize, variant: str, caption_queries: int, rows: Rows, ids: Int[Array, "b l"], encoder_passes: int
) -> list[AttentionShape]:
    """The stacks of a variant, the encoder first.

    Args:
      encoder_passes: see `AttentionShape.passes`; 1 for a frozen encoder.
    """
    segment, text, width = rows.segment, text_segments(ids), size.encoder.width
    windows = len(ids) // len(segment)
    shapes = [AttentionShape(segment, segment, size.encoder, windows, passes=encoder_passes)]
    for number in (int(variant in CONTRASTIVE), caption_queries if variant in CAPTIONING else 0):
        if number:
            pool = pool_segments(number, len(segment), windows)
            shapes.append(AttentionShape(pool, segment, pool_size(size.encoder), windows, width, skips_blocks=False))
    shapes.append(AttentionShape(text, text, size.text, 1, causal=variant != "siglip", skips_blocks=False))
    if variant in CAPTIONING:
        shapes.append(AttentionShape(text, text, size.decoder, 1, causal=True, skips_blocks=False))
        cross = dataclasses.replace(size.decoder, hidden=0)  # the feed-forward layers are counted with the line above
        if caption_queries:
            memory = jnp.ones((len(ids), caption_queries), jnp.int32)
            shapes.append(AttentionShape(text, memory, cross, 1, width, skips_blocks=False))
        else:
            queries = query_segment_ids(text, len(segment))
            shapes.append(AttentionShape(queries, segment, cross, windows, width))
    return shapes


def _normalised(vectors: Float[Array, "b e"]) -> Float[Array, "b e"]:
    vectors = vectors.astype(jnp.float32)
    # The floor is inside the root, so that a zero vector has a finite gradient.
    return vectors / jnp.sqrt(jnp.maximum(jnp.square(vectors).sum(axis=1, keepdims=True), 1e-12))
