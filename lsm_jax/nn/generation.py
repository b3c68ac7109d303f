"""Captions out of a model, token by token from a cache: the likeliest token, a draw from the nucleus, or beams."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.captions.tokenizer import BEGIN, END, PAD, SPECIAL
from lsm_jax.errors import UserError
from lsm_jax.nn.sensor_language import Caches, SensorLanguageModel
from lsm_jax.nn.text import Memory

_NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Attributes:
      beams: texts followed side by side, the best by mean log probability of a token kept; 1: no search.
      temperature: of draws; 0 takes the likeliest token.
      nucleus: draws are from the fewest tokens that hold this much probability (Holtzman et al., arXiv 1904.09751).
    """

    beams: int = 1
    temperature: float = 0.0
    nucleus: float = 1.0

    def __post_init__(self) -> None:
        if self.beams < 1 or self.temperature < 0 or not 0 < self.nucleus <= 1:
            raise UserError(f"{self}: give beams >= 1, temperature >= 0 and a nucleus above 0 up to 1.")
        if self.beams > 1 and self.temperature > 0:
            raise UserError("beams search for the likeliest text and draw nothing: set the temperature to 0.")


class _Written(NamedTuple):
    """What is written so far.

    Attributes:
      ids: tokens, padding where none stands yet.
      total: log probability of each text.
      done: texts that have ended.
      place: of the last token.
    """

    ids: Int[Array, "n l"]
    total: Float[Array, " n"]
    done: Bool[Array, " n"]
    caches: Caches
    place: Int[Array, ""]


def write_captions(
    model: SensorLanguageModel, memory: Memory, vocabulary: int, decoding: Decoding, key: PRNGKeyArray
) -> Int[Array, "b l"]:
    """A caption per window as tokens: begin, text, end, padding; one as long as the model can write has no end.

    Args:
      memory: `SensorLanguageModel.memory` of the windows.
      vocabulary: ids of the tokenizer; rows of the token table beyond have no text.
    """
    windows, beams, length = len(memory[0]), decoding.beams, model.language.text_length
    texts = windows * beams
    repeated: Memory = (jnp.repeat(memory[0], beams, axis=0), jnp.repeat(memory[1], beams, axis=0))

    def unfinished(written: _Written) -> Bool[Array, ""]:
        return (written.place < length - 1) & ~written.done.all()

    def extend(written: _Written) -> _Written:
        last = jax.lax.dynamic_index_in_dim(written.ids, written.place, axis=1, keepdims=False)
        scores, caches = model.caption_step(last, written.caches, written.place, repeated)
        scores = _speakable(scores, vocabulary, written.done)
        if decoding.temperature > 0:
            drawn = jax.random.fold_in(key, written.place)
            parent, token, total = _draw(scores, written.total, decoding, drawn)
        else:
            parent, token, total = _best(scores, written.total, windows)
        ids = written.ids[parent].at[:, written.place + 1].set(token)
        caches = jax.tree.map(lambda part: part[:, parent], caches) if beams > 1 else caches
        return _Written(ids, total, written.done[parent] | (token == END), caches, written.place + 1)

    # All beams begin alike: all but the first of a window are out of the running until they differ.
    total = jnp.where(jnp.arange(texts) % beams == 0, 0.0, _NEVER)
    ids = jnp.full((texts, length), PAD, jnp.int32).at[:, 0].set(BEGIN)
    begun = _Written(ids, total, jnp.zeros(texts, bool), model.empty_caches(texts), jnp.int32(0))
    written = jax.lax.while_loop(unfinished, extend, begun)
    mean = written.total / jnp.maximum((written.ids != PAD).sum(axis=1) - 1, 1)
    best = mean.reshape(windows, beams).argmax(axis=1)
    return written.ids.reshape(windows, beams, length)[jnp.arange(windows), best]


def _speakable(scores: Float[Array, "n v"], vocabulary: int, done: Bool[Array, " n"]) -> Float[Array, "n v"]:
    """Log probabilities of what may follow: a token with text or the end; after an end, padding alone, for free."""
    token = jnp.arange(scores.shape[1])
    allowed = ((token >= len(SPECIAL)) & (token < vocabulary)) | (token == END)
    following = jax.nn.log_softmax(jnp.where(allowed, scores, _NEVER))
    return jnp.where(done[:, None], jnp.where(token == PAD, 0.0, _NEVER), following)


def _best(
    scores: Float[Array, "n v"], total: Float[Array, " n"], windows: int
) -> tuple[Int[Array, " n"], Int[Array, " n"], Float[Array, " n"]]:
    """Of each window's texts and what may follow them as many as there are beams: the text, the token, the total."""
    vocabulary = scores.shape[1]
    together = (total[:, None] + scores).reshape(windows, -1)
    beams = len(total) // windows
    best, place = jax.lax.top_k(together, beams)
    parent = place // vocabulary + beams * jnp.arange(windows)[:, None]
    return parent.reshape(-1), (place % vocabulary).reshape(-1), best.reshape(-1)


def _draw(
    scores: Float[Array, "n v"], total: Float[Array, " n"], decoding: Decoding, key: PRNGKeyArray
) -> tuple[Int[Array, " n"], Int[Array, " n"], Float[Array, " n"]]:
    """A token from each text's nucleus."""
    texts = jnp.arange(len(scores))
    sharpened = jax.nn.log_softmax(scores / decoding.temperature)
    order = jnp.argsort(-sharpened, axis=1)
    ordered = jnp.take_along_axis(sharpened, order, axis=1)
    before = jnp.cumsum(jnp.exp(ordered), axis=1) - jnp.exp(ordered)
    place = jax.random.categorical(key, jnp.where(before < decoding.nucleus, ordered, _NEVER))
    token = order[texts, place]
    return texts, token, total + scores[texts, token]
