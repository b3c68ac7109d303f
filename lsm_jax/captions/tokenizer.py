"""Captions to tokens and back: byte-level BPE (Hugging Face `tokenizers`) in which every digit is a token of its own.

Single digits let a model read and write numbers place by place. Every byte is a token, so no text is unknown and
decoding restores what was encoded. Special tokens have fixed ids, and no merge makes them: a text that spells `<end>`
is only text.

The file is the library's own JSON. It is treated as untrusted input: vocabulary and merges are checked, and everything
else must be exactly what this module writes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import decoders, models, pre_tokenizers, trainers

from lsm_jax.errors import UserError

SPECIAL = ("<pad>", "<begin>", "<end>", "<unknown>", "<class>")
PAD, BEGIN, END, UNKNOWN, CLASS = range(len(SPECIAL))
SMALLEST_VOCABULARY = len(SPECIAL) + 256
LARGEST_VOCABULARY = 2**17
_MAX_FILE_BYTES = 64 * 2**20
_TRAIN_AGAIN = "Train one with `lsm caption --tokenizer FILE`."


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Texts as rows of tokens.

    Attributes:
      ids: int32[B, L]: begin, the text, end, padding. A row that was cut has no end; an empty text is all padding.
      lengths: int32[B], tokens of the whole text including begin and end; 0 for an empty text.
    """

    ids: Int[np.ndarray, "b l"]
    lengths: Int[np.ndarray, " b"]


class Tokenizer:
    """A trained vocabulary, made by `train`, `load` or `from_bytes`. `vocabulary` is its number of ids."""

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
        self._library = _library(vocabulary, merges)
        self.vocabulary = len(vocabulary)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> Tokenizer:
        """Learns at most `vocabulary` ids, or fewer if the texts have no more pairs. The same texts give the same ids.

        Raises:
          UserError: there is no text, or `vocabulary` is out of range.
        """
        if not SMALLEST_VOCABULARY <= vocabulary <= LARGEST_VOCABULARY:
            raise UserError(
                f"a vocabulary of {vocabulary} tokens: give {SMALLEST_VOCABULARY} (every byte and the special tokens) "
                f"to {LARGEST_VOCABULARY}."
            )
        texts = [text for text in texts if text]
        if not texts:
            raise UserError("no caption to learn a vocabulary from: every window's caption is empty.")
        library = _library({}, [])
        library.train_from_iterator(
            texts,
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
        """The tokenizer of `to_bytes`; UserError if it is damaged. `name` is what the error calls it."""
        if len(content) > _MAX_FILE_BYTES:
            raise UserError(f"{name}: {len(content)} bytes is more than a vocabulary can have. {_TRAIN_AGAIN}")
        try:
            whole = json.loads(content.decode())
            vocabulary, merges = whole["model"]["vocab"], whole["model"]["merges"]
            problem = _problem(vocabulary, merges)
            if not problem:
                tokenizer = cls(vocabulary, [(left, right) for left, right in merges])
                if json.loads(tokenizer.to_bytes()) == whole:
                    return tokenizer
                problem = "it splits text in another way than this framework's captions are split"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            problem = "not a tokenizer's JSON, or a damaged one"
        raise UserError(f"{name}: {problem}. {_TRAIN_AGAIN}")

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """The tokenizer in a file; UserError if it is missing or damaged."""
        try:
            return cls.from_bytes(path.read_bytes(), str(path))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}). {_TRAIN_AGAIN}") from None

    def to_bytes(self) -> bytes:
        """The tokenizer as JSON. The same tokenizer gives the same bytes."""
        return self._library.to_str().encode()

    def save(self, path: Path) -> None:
        """Writes `to_bytes` to a file; UserError if that fails."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.to_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place.") from None

    def encode(self, texts: Sequence[str], length: int) -> Encoded:
        """Texts as rows of `length` tokens; UserError if a row is too short for begin, a token and end."""
        if length < 3:
            raise UserError(f"rows of {length} tokens hold no text between begin and end: give 3 or more.")
        ids = np.full((len(texts), length), PAD, np.int32)
        lengths = np.zeros(len(texts), np.int32)
        # Text by text: the library's batch calls start threads, and the processes of a loader must not fork then.
        for row, text in enumerate(texts):
            if text:
                tokens = [BEGIN, *self._library.encode(text).ids, END]
                lengths[row] = len(tokens)
                ids[row, : len(tokens)] = tokens[:length]
        return Encoded(ids, lengths)

    def decode(self, ids: Int[np.ndarray, "b l"]) -> list[str]:
        """The texts of rows up to their end token, without special tokens and ids beyond the vocabulary."""
        texts = []
        for row in np.asarray(ids).tolist():
            end = row.index(END) if END in row else len(row)
            texts.append(self._library.decode([each for each in row[:end] if len(SPECIAL) <= each < self.vocabulary]))
        return texts


def _library(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    # A space belongs to the digit after it: this saves a token per number and marks a number's first digit.
    digits = pre_tokenizers.Split(tokenizers.Regex(r" ?\d"), "isolated")
    library.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    library.decoder = decoders.ByteLevel()
    return library


def _problem(vocabulary: dict[str, int], merges: list[list[str]]) -> str:
    """What is wrong with a vocabulary and its merges, as a clause; empty if nothing is."""
    if {*vocabulary.values()} != {*range(len(vocabulary))}:
        return "the ids of its vocabulary are not 0, 1, 2, ..., each once"
    if not SMALLEST_VOCABULARY <= len(vocabulary) <= LARGEST_VOCABULARY:
        return f"it has {len(vocabulary)} tokens, and a vocabulary {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY}"
    for number, token in enumerate(SPECIAL):
        if vocabulary.get(token) != number:
            return f"the special token {token} has id {vocabulary.get(token)}, not {number}"
    if not set(pre_tokenizers.ByteLevel.alphabet()) <= vocabulary.keys():
        return "its vocabulary lacks some bytes"
    if joined := [token for token in vocabulary if sum(letter in "0123456789" for letter in token) > 1]:
        return f"its token {joined[0]!r} holds several digits, and captions keep them apart"
    if not all(type(merge) is list and {*merge, "".join(merge)} <= vocabulary.keys() for merge in merges):
        return "its merges do not fit its vocabulary"
    return "a merge makes a special token" if any("".join(merge) in SPECIAL for merge in merges) else ""
