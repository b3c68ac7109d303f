"""Caption generation with a key-value cache: greedy, nucleus sampling or beam search."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from lsm_jax.captions.tokenizer import BEGIN, END, PAD, SPECIAL
from lsm_jax.errors import UserError
from lsm_jax.nn.sensor_language import Caches, SensorLanguageModel
from lsm_jax.nn.text import Memory

_MASK_VALUE = -1e30


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Attributes:
      beams: beams of a beam search, ranked by mean log probability of a token; 1: no search.
      temperature: of sampling; 0: the most probable token.
      nucleus: sampling from the fewest tokens with this total probability (top-p; Holtzman et al., arXiv 1904.09751).
    """

    beams: int = 1
    temperature: float = 0.0
    nucleus: float = 1.0

    def __post_init__(self) -> None:
        if self.beams < 1 or self.temperature < 0 or not 0 < self.nucleus <= 1:
            raise UserError(f"{self}: give beams >= 1, temperature >= 0 and a nucleus above 0 up to 1.")
        if self.beams > 1 and self.temperature > 0:
            raise UserError("beams search for the most probable text and sample nothing: set the temperature to 0.")


class _Generated(NamedTuple):
    """The loop's state.

    Attributes:
      ids: tokens so far, then padding.
      log_probability: of each text.
      done: texts that have ended.
      position: of the last token.
    """

    ids: Int[Array, "n l"]
    log_probability: Float[Array, " n"]
    done: Bool[Array, " n"]
    caches: Caches
    position: Int[Array, ""]


def write_captions(
    model: SensorLanguageModel, memory: Memory, vocabulary: int, decoding: Decoding, keys: Key[Array, " b"]
) -> Int[Array, "b l"]:
    """A caption per window: begin, text, end, padding. A caption of the full length has no end.

    Args:
      memory: `SensorLanguageModel.memory` of the windows, one row per window.
      vocabulary: ids of the tokenizer; later rows of the token embedding are never generated.
      keys: of sampling, one for each window.
    """
    windows, beams, length = len(memory[0]), decoding.beams, model.language.text_length
    texts = windows * beams
    repeated: Memory = (jnp.repeat(memory[0], beams, axis=0), jnp.repeat(memory[1], beams, axis=0))

    def unfinished(state: _Generated) -> Bool[Array, ""]:
        return (state.position < length - 1) & ~state.done.all()

    def extend(state: _Generated) -> _Generated:
        last = jax.lax.dynamic_index_in_dim(state.ids, state.position, axis=1, keepdims=False)
        logits, caches = model.caption_step(last, state.caches, state.position, repeated)
        scores = _mask_special_tokens(logits, vocabulary, state.done)
        if decoding.temperature > 0:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.position)
            parent, token, total = _sample(scores, state.log_probability, decoding, step_keys)
        else:
            parent, token, total = _top_beams(scores, state.log_probability, windows)
        ids = state.ids[parent].at[:, state.position + 1].set(token)
        caches = jax.tree.map(lambda part: part[:, parent], caches) if beams > 1 else caches
        return _Generated(ids, total, state.done[parent] | (token == END), caches, state.position + 1)

    # The beams of a window start equal, so all but the first are masked in the first step.
    start = jnp.where(jnp.arange(texts) % beams == 0, 0.0, _MASK_VALUE)
    ids = jnp.full((texts, length), PAD, jnp.int32).at[:, 0].set(BEGIN)
    state = _Generated(ids, start, jnp.zeros(texts, bool), model.empty_caches(texts), jnp.int32(0))
    state = jax.lax.while_loop(unfinished, extend, state)
    mean = state.log_probability / jnp.maximum((state.ids != PAD).sum(axis=1) - 1, 1)
    best = mean.reshape(windows, beams).argmax(axis=1)
    return state.ids.reshape(windows, beams, length)[jnp.arange(windows), best]


def _mask_special_tokens(logits: Float[Array, "n v"], vocabulary: int, done: Bool[Array, " n"]) -> Float[Array, "n v"]:
    """Log probabilities of text tokens and the end token; after the end, padding has log probability 0."""
    token = jnp.arange(logits.shape[1])
    allowed = ((token >= len(SPECIAL)) & (token < vocabulary)) | (token == END)
    scores = jax.nn.log_softmax(jnp.where(allowed, logits, _MASK_VALUE))
    return jnp.where(done[:, None], jnp.where(token == PAD, 0.0, _MASK_VALUE), scores)


def _top_beams(
    scores: Float[Array, "n v"], log_probability: Float[Array, " n"], windows: int
) -> tuple[Int[Array, " n"], Int[Array, " n"], Float[Array, " n"]]:
    """The best continuations of each window's beams: (text continued, token, log probability)."""
    vocabulary, beams = scores.shape[1], len(log_probability) // windows
    candidates = (log_probability[:, None] + scores).reshape(windows, -1)
    best, index = jax.lax.top_k(candidates, beams)
    parent = index // vocabulary + beams * jnp.arange(windows)[:, None]
    return parent.reshape(-1), (index % vocabulary).reshape(-1), best.reshape(-1)


def _sample(
    scores: Float[Array, "n v"], log_probability: Float[Array, " n"], decoding: Decoding, keys: Key[Array, " n"]
) -> tuple[Int[Array, " n"], Int[Array, " n"], Float[Array, " n"]]:
    """A token from each text's nucleus."""
    texts = jnp.arange(len(scores))
    tempered = jax.nn.log_softmax(scores / decoding.temperature)
    order = jnp.argsort(-tempered, axis=1)
    ordered = jnp.take_along_axis(tempered, order, axis=1)
    before = jnp.cumsum(jnp.exp(ordered), axis=1) - jnp.exp(ordered)
    index = jax.vmap(jax.random.categorical)(keys, jnp.where(before < decoding.nucleus, ordered, _MASK_VALUE))
    token = order[texts, index]
    return texts, token, log_probability + scores[texts, token]
