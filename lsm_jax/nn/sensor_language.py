"""SensorLM: the encoder of LSM-2, a text tower and a multimodal decoder (arXiv 2506.09108; CoCa, arXiv 2205.01917).

One architecture whose variants are CLIP, SigLIP, Cap and CoCa: a variant has the parts its losses need. The encoder
reads observed tokens alone, so a window is what was recorded, and a checkpoint of LSM-2 fits it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lsm_jax.errors import UserError
from lsm_jax.nn.layers import Stack
from lsm_jax.nn.masked_autoencoder import Encoder, ModelSettings
from lsm_jax.nn.neighbours import Cells
from lsm_jax.nn.positions import Positions
from lsm_jax.nn.sizes import LanguageSize, StackSize
from lsm_jax.nn.text import Cache, Memory, TextStack, TextTower, last_real, real
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.rows import Rows

_HIGHEST_SCALE = 100.0  # CLIP's clamp


@dataclasses.dataclass(frozen=True)
class LanguageSettings:
    """What shapes SensorLM beside the settings of its encoder.

    Attributes:
      variant: `clip`, `siglip`, `cap` or `coca`.
      vocab_size: rows of the token table, at least as many as the tokenizer has ids.
      text_length: tokens of a text.
      caption_queries: learned queries whose outputs a caption is written from; 0: it is written from the encoder's
        tokens themselves.
      embed_dim: width of the embeddings.
      init_logit_scale, init_logit_bias: initial values; a scale of 0 is the variant's own.
    """

    size: LanguageSize
    variant: str
    vocab_size: int
    text_length: int
    caption_queries: int
    embed_dim: int
    init_logit_scale: float
    init_logit_bias: float

    def __post_init__(self) -> None:
        for key, least in (("vocab_size", 1), ("text_length", 1), ("caption_queries", 0), ("embed_dim", 1)):
            if getattr(self, key) < least:
                raise UserError(f"language.{key}={getattr(self, key)}: give a whole number of at least {least}.")

    @property
    def contrasts(self) -> bool:
        return self.variant != "cap"

    @property
    def captions(self) -> bool:
        return self.variant in {"cap", "coca"}


class Pool(nnx.Module):
    """Learned queries, the same for every window, that attend to their window's tokens (MAP pooling)."""

    def __init__(self, queries: int, size: StackSize, settings: ModelSettings, *, rngs: nnx.Rngs) -> None:
        width = settings.size.encoder.width
        self.queries = nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (queries, width)))
        self.stack = Stack(
            size, memory_width=width, implementation=settings.attention, remat="none", dtype=settings.dtype, rngs=rngs
        )
        self.dtype = settings.dtype

    def __call__(self, encoded: Float[Array, "r s d"], rows: Rows, windows: int) -> Float[Array, "b q d"]:
        """Each window's queries. A window without tokens gives what the queries say of nothing."""
        queries = self.queries[...].astype(self.dtype)
        number, per_row = len(queries), windows // len(encoded)
        segments = jnp.repeat(jnp.arange(1, per_row + 1, dtype=jnp.int32), number)
        tokens = jnp.broadcast_to(jnp.tile(queries, (per_row, 1)), (len(encoded), per_row * number, queries.shape[1]))
        pooled = self.stack(tokens, jnp.broadcast_to(segments, tokens.shape[:2]), (encoded, rows.segment))
        return pooled.reshape(windows, number, -1)


class Contrast(nnx.Module):
    """Both sides into one space, and how sharply they are compared."""

    def __init__(self, language: LanguageSettings, dtype: str, *, rngs: nnx.Rngs) -> None:
        size = language.size
        self.sensor = nnx.Linear(size.encoder.width, language.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.text = nnx.Linear(size.text.width, language.embed_dim, use_bias=False, dtype=dtype, rngs=rngs)
        start = language.init_logit_scale or (10.0 if language.variant == "siglip" else 1 / 0.07)
        self.log_scale = nnx.Param(jnp.float32(math.log(start)))
        if language.variant == "siglip":
            self.bias = nnx.Param(jnp.float32(language.init_logit_bias))

    def scale(self) -> Float[Array, ""]:
        """The inverse temperature."""
        return jnp.minimum(jnp.exp(self.log_scale[...]), _HIGHEST_SCALE)


class Caches(NamedTuple):
    """What a caption written so far leaves behind, in both stacks."""

    text: Cache
    decoder: Cache


class SensorLanguageModel(nnx.Module):
    """The parts of a variant."""

    def __init__(self, grid: TokenGrid, settings: ModelSettings, language: LanguageSettings, *, rngs: nnx.Rngs) -> None:
        size = language.size
        pooling = dataclasses.replace(size.encoder, depth=1)
        self.encoder = Encoder(grid, settings, rngs=rngs)
        # SigLIP's text is read at once; what writes captions must not see what comes next.
        self.text = TextTower(
            size.text,
            language.vocab_size,
            language.text_length,
            causal=language.variant != "siglip",
            remat=settings.remat,
            dtype=settings.dtype,
            rngs=rngs,
        )
        if language.contrasts:
            self.pool = Pool(1, pooling, settings, rngs=rngs)
            self.contrast = Contrast(language, settings.dtype, rngs=rngs)
        if language.captions:
            if not language.caption_queries:
                self.places = Positions("sincos", grid, size.encoder.width, dtype=settings.dtype, rngs=rngs)
            else:
                self.caption_pool = Pool(language.caption_queries, pooling, settings, rngs=rngs)
            self.decoder = TextStack(
                size.decoder,
                memory_width=size.encoder.width,
                reading=settings.attention,
                causal=True,
                remat=settings.remat,
                dtype=settings.dtype,
                rngs=rngs,
            )
        self.language = language

    def encode(self, cells: Cells, rows: Rows) -> Float[Array, "r s d"]:
        """The encoder's tokens."""
        return self.encoder(cells, rows)

    def sensor_embedding(self, encoded: Float[Array, "r s d"], rows: Rows, windows: int) -> Float[Array, "b e"]:
        """A window's embedding, of length one; float32."""
        return _normalised(self.contrast.sensor(self.pool(encoded, rows, windows)[:, 0]))

    def text_embedding(self, vectors: Float[Array, "b l d"], ids: Int[Array, "b l"]) -> Float[Array, "b e"]:
        """A text's embedding, of length one; float32. Pooled on the last token, which has seen every real one."""
        return _normalised(self.contrast.text(last_real(vectors, ids)))

    def memory(self, encoded: Float[Array, "r s d"], rows: Rows, windows: int) -> Memory:
        """What captions are written from."""
        if not self.language.caption_queries:
            # What is where must be read off a token at once; after the encoder's layers little says when it was.
            return encoded + self.places(rows.token_index % self.encoder.grid.size), rows.segment
        queried = self.caption_pool(encoded, rows, windows)
        return queried, jnp.ones(queried.shape[:2], jnp.int32)

    def caption_scores(
        self, vectors: Float[Array, "b l d"], ids: Int[Array, "b l"], memory: Memory
    ) -> Float[Array, "b l v"]:
        """At each place, scores of the next token; depends on this token and those before it alone."""
        return self.text.scores(self.decoder(vectors, real(ids), memory))

    def empty_caches(self, texts: int) -> Caches:
        """For captions not begun."""
        return Caches(
            self.text.stack.empty_cache(texts, self.language.text_length),
            self.decoder.empty_cache(texts, self.language.text_length),
        )

    def caption_step(
        self, ids: Int[Array, " b"], caches: Caches, place: Int[Array, ""], memory: Memory
    ) -> tuple[Float[Array, "b v"], Caches]:
        """Scores of what follows the tokens `ids`, which stand at `place` after those in the caches."""
        vectors, text = self.text.step(ids, caches.text, place)
        vectors, decoder = self.decoder.step(vectors, caches.decoder, place, memory)
        return self.text.scores(vectors)[:, 0], Caches(text, decoder)


def _normalised(vectors: Float[Array, "b e"]) -> Float[Array, "b e"]:
    vectors = vectors.astype(jnp.float32)
    # The floor stands under the root, so that a vector of zeros has a gradient.
    return vectors / jnp.sqrt(jnp.maximum(jnp.square(vectors).sum(axis=1, keepdims=True), 1e-12))
