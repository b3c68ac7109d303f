"""Captions as rows of tokens, computed together with the batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from lsm_jax.captions.caption import EMPTY_BECAUSE, Caption, Captioner, window_rng
from lsm_jax.captions.grammar import event_name
from lsm_jax.captions.semantic import is_mark, logged_events
from lsm_jax.captions.tokenizer import BEGIN, END, PAD, Tokenizer
from lsm_jax.config import LanguageConfig
from lsm_jax.data.event_crops import event_crop
from lsm_jax.data.store import Dataset, WindowSource
from lsm_jax.errors import UserError, nearest
from lsm_jax.windows import Window

_MAX_TRAINING_CAPTIONS = 50_000  # for a vocabulary; more add no words
_TEXT_LENGTHS = (256, 512, 1024)  # tokens: the lengths that SensorLM publishes for its levels (arXiv 2506.09108)


@dataclasses.dataclass(frozen=True)
class CaptionTokens:
    """Writes the captions of windows as rows of tokens.

    Attributes:
      length: tokens of a row. A longer caption is cut and then has no end token.
      held_out_activities: names of activities and sessions; a window whose log has one of them gets no caption.
      event_crop_prob: share of windows that are cropped around an event, differently in each epoch.
    """

    captioner: Captioner
    tokenizer: Tokenizer
    length: int
    held_out_activities: tuple[str, ...] = ()
    event_crop_prob: float = 0.0

    @classmethod
    def from_config(cls, language: LanguageConfig, file: Path) -> CaptionTokens:
        """From the section `language` and the tokenizer in `file`.

        Raises:
          UserError: a level or kind of event is unknown, the tokenizer is missing or damaged, or it has more ids than
            the model's embedding table.
        """
        captioner = Captioner.from_config(language)
        if not file.name:
            raise UserError(
                "language.tokenizer is empty: name the file of a tokenizer, as in --config.language.tokenizer=FILE. "
                "Train one with `lsm caption --tokenizer FILE`."
            )
        tokenizer = Tokenizer.load(file)
        if tokenizer.vocabulary > language.vocab_size:
            raise UserError(
                f"{file} has {tokenizer.vocabulary} ids and the model a table of language.vocab_size="
                f"{language.vocab_size}: use the tokenizer it was trained with, or for a new run set "
                f"--config.language.vocab_size={tokenizer.vocabulary}."
            )
        if not 0 <= language.event_crop_prob <= 1:
            raise UserError(
                f"language.event_crop_prob={language.event_crop_prob}: give a share of windows, from 0 to 1."
            )
        held_out, crop_prob = tuple(language.held_out_activities), float(language.event_crop_prob)
        return cls(captioner, tokenizer, language.text_length, held_out, crop_prob)

    def event_crop(self, window: Window, epoch: int) -> tuple[int, int] | None:
        """The interval, in steps, to which the window is cropped in this epoch; None for the whole window.

        A window with a held-out activity is never cropped, because a crop without that activity would get a caption.
        """
        if not self.event_crop_prob or self._is_held_out(window):
            return None
        random = window_rng(f"excerpt {self.captioner.seed} {epoch}", window)  # the word is part of the seed
        return event_crop(window, random, self.captioner.events) if random.random() < self.event_crop_prob else None

    def __call__(self, windows: Sequence[Window], epochs: Sequence[int]) -> Int[np.ndarray, "b l"]:
        """One row per window: begin, its caption in that epoch, end, padding.

        Held-out windows, and windows with nothing observed, are all padding: they take part in no loss.
        """
        texts = [self.captioner(window, epoch).text for window, epoch in zip(windows, epochs, strict=True)]
        ids = self.tokenizer.encode(texts, self.length).ids
        # The model learns to write an empty caption for a recorded window without anything to describe.
        silent = [row for row, text in enumerate(texts) if not text and windows[row].observed.any()]
        ids[silent, :2] = BEGIN, END
        # The whole caption is dropped: with only the activity left out, the model would learn to ignore its signals.
        ids[[row for row, window in enumerate(windows) if self._is_held_out(window)]] = PAD
        return ids

    def cut_warning(self, ids: Int[np.ndarray, "b l"]) -> str:
        """A sentence if most captions of a run's first batch are cut, otherwise empty."""
        captions = int((ids[:, 2] != PAD).sum())  # those of more than begin and end
        cut = int(((ids[:, -1] != PAD) & (ids[:, -1] != END)).sum())
        if 2 * cut <= captions:
            return ""
        return (
            f"{cut} of the {captions} captions in the first batch are longer than language.text_length={self.length} "
            f"tokens, and the rest of them is not learnt. Levels come in the order {'+'.join(self.captioner.levels)}. "
            "Raise --config.language.text_length, or name fewer levels."
        )

    def _is_held_out(self, window: Window) -> bool:
        return not activity_names(window).isdisjoint(self.held_out_activities)


def activity_names(window: Window) -> set[str]:
    """Names of the activities and sessions in a window's log, as captions spell them, without button presses."""
    events = logged_events(window, ("activity", "session"))
    return {event.name for event in events if not is_mark(event, len(window.observed))}


def check_held_out_activities(names: Sequence[str], datasets: Sequence[Dataset]) -> None:
    """UserError, with the nearest names, if an activity is in no dataset's card (`language.held_out_activities`)."""
    logged = [dataset.card.get("events", {}).get(kind, {}) for dataset in datasets for kind in ("activity", "session")]
    activities = {event_name(name) for names in logged for name in names}
    for name in names:
        if name not in activities:
            raise UserError(
                f"language.held_out_activities: no dataset has an activity {name!r}.{nearest(name, activities)} "
                f"They have {', '.join(sorted(activities)) or 'none'}."
            )


def captioned_windows(source: WindowSource, captioner: Captioner, epoch: int) -> Iterator[tuple[int, Window, Caption]]:
    """Every readable window of a source: its position, itself, its caption.

    Raises:
      UserError: all captions are empty; says why.
    """
    empty = True
    for position, window in source.readable(range(len(source))):
        caption = captioner(window, epoch)
        empty = empty and not caption.text
        yield position, window, caption
    if empty:
        reasons = "; ".join(f"{level}: {EMPTY_BECAUSE[level]}" for level in captioner.levels)
        raise UserError(f"{source.path}: nothing to say of any of the split's {len(source)} windows ({reasons}).")


def learn_vocabulary(
    dataset: Dataset, captioner: Captioner, size: int, epoch: int = 0
) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer of at most `size` ids, trained on captions of the training split, and their lengths in tokens."""
    source = dataset.source("train")
    indices = np.linspace(0, len(source) - 1, min(len(source), _MAX_TRAINING_CAPTIONS)).astype(int).tolist()
    texts = [text for _, window in source.readable(indices) if (text := captioner(window, epoch).text)]
    tokenizer = Tokenizer.train(texts, size)
    tokens = tokenizer.encode(texts, _TEXT_LENGTHS[0]).lengths
    median, high, most = (int(quantile) for quantile in np.percentile(tokens, (50, 99, 100)))
    lengths = {
        "captions": len(texts),
        "vocabulary": tokenizer.vocabulary,
        "tokens": {"median": median, "99th percentile": high, "most": most},
        "share longer than": {str(length): round(float((tokens > length).mean()), 4) for length in _TEXT_LENGTHS},
    }
    return tokenizer, lengths
