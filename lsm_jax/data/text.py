"""Captions as tokens, made beside the batches they describe."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lsm_jax.captions.caption import Captioner, stream
from lsm_jax.captions.grammar import event_name
from lsm_jax.captions.tokenizer import BEGIN, END, PAD, Tokenizer
from lsm_jax.config import LanguageConfig
from lsm_jax.data.event_crops import event_crop
from lsm_jax.data.store import Dataset
from lsm_jax.errors import UserError, nearest
from lsm_jax.windows import Window


@dataclasses.dataclass(frozen=True)
class CaptionTokens:
    """Writes a window's caption as a row of tokens.

    Attributes:
      length: tokens of a row; a longer caption is cut, which a row without an end tells.
      leave_out: names of activities and sessions that stay unseen: nothing at all is said of a window that holds one.
      excerpts: share of the windows of which a stretch is shown and spoken of, another one each epoch.
    """

    captioner: Captioner
    tokenizer: Tokenizer
    length: int
    held_out_activities: tuple[str, ...] = ()
    event_crop_prob: float = 0.0

    @classmethod
    def from_config(cls, language: LanguageConfig, file: Path) -> CaptionTokens:
        """Those of the section `language`, with the tokenizer in `file`.

        Raises:
          UserError: an unknown level or kind of event, no such tokenizer or a damaged one, or one with more ids than
            the model knows.
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
        return cls(
            captioner,
            tokenizer,
            language.text_length,
            tuple(language.held_out_activities),
            float(language.event_crop_prob),
        )

    def event_crop(self, window: Window, epoch: int) -> tuple[int, int] | None:
        """The stretch of the window that is shown in this epoch; None: all of it.

        Of a day that stays unseen no part is shown by itself: a stretch without what is left out would be spoken of.
        """
        if not self.event_crop_prob or self._unseen(window):
            return None
        random = stream(f"excerpt {self.captioner.seed} {epoch}", window)
        return event_crop(window, random, self.captioner.events) if random.random() < self.event_crop_prob else None

    def __call__(self, windows: Sequence[Window], epochs: Sequence[int]) -> Int[np.ndarray, "b l"]:
        """A row per window: begin, its caption in that epoch, end, padding; all padding where nothing may be learnt."""
        texts = [self.captioner(window, epoch).text for window, epoch in zip(windows, epochs, strict=True)]
        ids = self.tokenizer.encode(texts, self.length).ids
        # Of a day without anything to say a captioner learns to say nothing.
        ids[[row for row, text in enumerate(texts) if not text], :2] = BEGIN, END
        # Were a day only kept from naming an activity, the model would learn to look past what it saw of it.
        ids[[row for row, window in enumerate(windows) if self._unseen(window)]] = PAD
        return ids

    def _unseen(self, window: Window) -> bool:
        return not activity_names(window).isdisjoint(self.held_out_activities)


def activity_names(window: Window) -> set[str]:
    """The activities and sessions in a window's log, named as captions name them; button presses are none."""
    return {
        event_name(event.name)
        for event in window.events
        if event.kind == "activity" or (event.kind == "session" and event.end - event.start > 1)
    }


def check_held_out_activities(names: Sequence[str], datasets: Sequence[Dataset]) -> None:
    """UserError where no dataset's card knows one of `language.held_out_activities`; the nearest names are offered."""
    logged = [dataset.card.get("events", {}).get(kind, {}) for dataset in datasets for kind in ("activity", "session")]
    known = {event_name(name) for names in logged for name in names}
    for name in names:
        if name not in known:
            raise UserError(
                f"language.held_out_activities: no dataset has an activity {name!r}.{nearest(name, known)} "
                f"They have {', '.join(sorted(known)) or 'none'}."
            )
