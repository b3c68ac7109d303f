"""Captions to tokens and back: byte-level BPE whose digits stand alone, with special ids that never move.

The subword model is Hugging Face's `tokenizers` (BPE). Every digit is a token of its own, so that numbers are read
and written place by place, and every byte is one, so that no text is unknown and decoding gives back what was
encoded. Special tokens stand in the vocabulary but no merge makes them: a text that spells `<end>` is just text.

On disk it is the library's own JSON. Reading one trusts nothing but vocabulary and merges: they are checked, and
everything else must be what this module would have written.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, pre_tokenizers, trainers

from lsm_jax.errors import UserError

SPECIAL = ("<pad>", "<begin>", "<end>", "<unknown>", "<class>")
PAD, BEGIN, END, UNKNOWN, CLASS = range(len(SPECIAL))
SMALLEST_VOCABULARY = len(SPECIAL) + 256
LARGEST_VOCABULARY = 2**17
_LARGEST_FILE = 64 * 2**20
_TRAIN_AGAIN = "Train one with `lsm caption --tokenizer FILE`."


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Texts as rows of tokens.

    Attributes:
      ids: int32[B, L]; begin, the text, end, then padding. A row that was cut has no end; an empty text is all padding.
      lengths: int32[B], tokens the whole text has, begin and end included; 0 for an empty text.
      truncated: rows that were cut.
      empty: rows without text.
    """

    ids: Int[np.ndarray, "b l"]
    lengths: Int[np.ndarray, " b"]
    truncated: int
    empty: int


class Tokenizer:
    """A trained vocabulary. Made by `train`, `load` or `from_bytes`; `vocabulary` is its number of ids."""

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
        self._library = _library(vocabulary, merges)
        self.vocabulary = len(vocabulary)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> Tokenizer:
        """Learns at most `vocabulary` ids (fewer where the texts hold no more pairs); the same texts, the same ids.

        Raises:
          UserError: no text, or a vocabulary no byte-level model can have.
        """
        if not SMALLEST_VOCABULARY <= vocabulary <= LARGEST_VOCABULARY:
            raise UserError(
                f"a vocabulary of {vocabulary} tokens: give {SMALLEST_VOCABULARY} (every byte and the special tokens) "
                f"to {LARGEST_VOCABULARY}."
            )
        said = [text for text in texts if text]
        if not said:
            raise UserError("no caption to learn a vocabulary from: every window's caption is empty.")
        library = _library({}, [])
        library.train_from_iterator(
            said,
            trainers.BpeTrainer(
                vocab_size=vocabulary,
                min_frequency=2,
                show_progress=False,
                special_tokens=list(SPECIAL),
                initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            ),
        )
        model = json.loads(library.to_str())["model"]
        return cls(model["vocab"], [tuple(merge) for merge in model["merges"]])

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "the tokenizer") -> Tokenizer:
        """The tokenizer of `to_bytes`; `name` is what errors call it.

        Raises:
          UserError: not such a file, or a damaged one; says what is wrong.
        """
        if len(content) > _LARGEST_FILE:
            raise UserError(f"{name}: {len(content)} bytes is more than a vocabulary can have. {_TRAIN_AGAIN}")
        try:
            whole = json.loads(content.decode())
            model = whole["model"]
            vocabulary, merges = model.pop("vocab"), model.pop("merges")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{name}: not a tokenizer's JSON, or a damaged one. {_TRAIN_AGAIN}") from None
        problem = _problem(vocabulary, merges)
        if not problem and whole != _skeleton():
            problem = "it splits text in another way than this framework's captions are split"
        if problem:
            raise UserError(f"{name}: {problem}. {_TRAIN_AGAIN}")
        return cls(vocabulary, [(left, right) for left, right in merges])

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """The tokenizer in a file; UserError where it is missing, damaged or of another kind."""
        try:
            return cls.from_bytes(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}). {_TRAIN_AGAIN}") from None

    def to_bytes(self) -> bytes:
        """The tokenizer as JSON; the same tokenizer gives the same bytes."""
        return self._library.to_str().encode()

    def save(self, path: Path) -> None:
        """Writes `to_bytes` to a file; UserError where it cannot."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.to_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place.") from None

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        """Texts as rows of `length` tokens.

        Raises:
          UserError: a row too short for begin, a token and end.
        """
        if length < 3:
            raise UserError(f"rows of {length} tokens hold no text between begin and end: give 3 or more.")
        ids = np.full((len(texts), length), PAD, np.int32)
        lengths = np.zeros(len(texts), np.int32)
        # One by one: the library's batches start threads, which a loader's forked processes cannot have.
        for row, text in enumerate(texts):
            if text:
                tokens = [BEGIN, *self._library.encode(text).ids, END]
                lengths[row] = len(tokens)
                ids[row, : len(tokens)] = tokens[:length]
        return Encoded(ids, lengths, int((lengths > length).sum()), int((lengths == 0).sum()))

    def decode(self, ids: Int[np.ndarray, "b l"]) -> list[str]:
        """The texts of rows, up to their end; special tokens and ids beyond the vocabulary have no text."""
        return [self._library.decode(_until_end(row, self.vocabulary)) for row in np.asarray(ids).tolist()]


def _until_end(row: list[int], vocabulary: int) -> list[int]:
    end = row.index(END) if END in row else len(row)
    return [token for token in row[:end] if len(SPECIAL) <= token < vocabulary]


def _library(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    # A digit takes the space before it along: a number costs a token less, and its first place can be told.
    digits = pre_tokenizers.Split(tokenizers.Regex(r" ?\d"), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    library.decoder = decoders.ByteLevel()
    return library


def _skeleton() -> dict[str, Any]:
    """Everything of a tokenizer's JSON but vocabulary and merges."""
    whole = json.loads(_library({}, []).to_str())
    del whole["model"]["vocab"], whole["model"]["merges"]
    return whole


def _problem(vocabulary: Any, merges: Any) -> str:
    """What is wrong with a vocabulary and its merges, as a clause; empty where nothing is."""
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        return "its vocabulary is no table of numbers"
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        return "the ids of its vocabulary are not 0, 1, 2, ..., each once"
    if not SMALLEST_VOCABULARY <= len(vocabulary) <= LARGEST_VOCABULARY:
        return f"a vocabulary of {len(vocabulary)} tokens is none of ours"
    moved = [token for number, token in enumerate(SPECIAL) if vocabulary.get(token) != number]
    if moved:
        return f"the special token {moved[0]} has id {vocabulary.get(moved[0])}, not {SPECIAL.index(moved[0])}"
    if not set(pre_tokenizers.ByteLevel.alphabet()) <= vocabulary.keys():
        return "its vocabulary lacks some bytes"
    if joined := [token for token in vocabulary if sum(letter in "0123456789" for letter in token) > 1]:
        return f"its token {joined[0]!r} holds several digits, and captions keep them apart"
    pairs = isinstance(merges, list) and all(
        isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge) for merge in merges
    )
    if not pairs or not all({left, right, left + right} <= vocabulary.keys() for left, right in merges):
        return "its merges do not fit its vocabulary"
    if any(left + right in SPECIAL for left, right in merges):
        return "a merge makes a special token"
    return ""
