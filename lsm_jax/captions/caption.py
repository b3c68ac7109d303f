"""The caption of a window at one or several levels, with new wording in each epoch."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from lsm_jax.captions.facts import Fact
from lsm_jax.captions.grammar import Statement, render
from lsm_jax.captions.semantic import EVENT_KINDS, semantic_statements
from lsm_jax.captions.statistical import statistical_statements
from lsm_jax.captions.structural import structural_statements
from lsm_jax.config import LanguageConfig
from lsm_jax.errors import UserError, nearest
from lsm_jax.windows import Window

LEVELS = ("statistical", "structural", "semantic")
# Why every caption of a dataset may be empty at a level.
EMPTY_BECAUSE = {
    "statistical": "no channel that captions speak of was observed for half an hour",
    "structural": "no channel was recorded long enough without a gap to show a trend, peak or drop",
    "semantic": "no activity, sleep, mood, meal or session was logged while something was recorded; `[[events]]` of a "
    "mapping file bring such logs in",
}


@dataclasses.dataclass(frozen=True)
class Caption:
    """The description of a window.

    Attributes:
      sentences: none if too little was recorded to say anything at these levels.
      statements: the content of each sentence, in the same order.
    """

    sentences: tuple[str, ...]
    statements: tuple[Statement, ...]

    @property
    def text(self) -> str:
        """The sentences joined by spaces."""
        return " ".join(self.sentences)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All facts, in the order of the text."""
        return tuple(fact for statement in self.statements for fact in statement.facts)


class CaptionStatistics:
    """Counts of the words and facts of captions."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self._facts: Counter[str] = Counter()

    def add(self, text: str, facts: Iterable[Fact]) -> None:
        """Adds a caption."""
        self.words.append(len(text.split()))
        self._facts.update(fact.kind for fact in facts)

    def summary(self) -> dict[str, Any]:
        """Counts of windows and facts; words of the captions that are not empty."""
        words = sorted(count for count in self.words if count) or [0]
        return {
            "windows": len(self.words),
            "empty": self.words.count(0),
            "words": {"median": words[len(words) // 2], "most": words[-1]},
            "facts": dict(self._facts.most_common()),
        }


@dataclasses.dataclass(frozen=True)
class Captioner:
    """Writes captions.

    Attributes:
      levels: some of `LEVELS`, in the order of their sentences.
      seed: chooses the wording and the randomly added channels.
      events: kinds of events that the semantic level mentions, some of `semantic.EVENT_KINDS`.
    """

    levels: tuple[str, ...] = ("semantic",)
    seed: int = 0
    events: tuple[str, ...] = EVENT_KINDS

    @classmethod
    def from_config(cls, language: LanguageConfig) -> Captioner:
        """From the section `language`; UserError, with the nearest names, if a level or kind of event is unknown."""
        for kind in language.events:
            if kind not in EVENT_KINDS:
                raise UserError(
                    f"language.events: there is no kind of event {kind!r}.{nearest(kind, EVENT_KINDS)} "
                    f"Kinds are {', '.join(EVENT_KINDS)}; none named means all."
                )
        return cls(parse_levels(language.levels), language.seed, tuple(language.events) or EVENT_KINDS)

    def __call__(self, window: Window, epoch: int = 0) -> Caption:
        """The window's caption, a pure function of the seed, the epoch and the window.

        Participant and start time identify the window, not its position in a file. So the wording does not depend on
        the data order, the number of hosts or the mixture of datasets.

        Raises:
          UserError: the window is longer than a day.
        """
        random = window_rng(f"{self.seed} {epoch}", window)
        statements: list[Statement] = []
        for level in self.levels:
            if level == "statistical":
                statements += statistical_statements(window, random)
            elif level == "structural":
                statements += structural_statements(window, random)
            else:
                statements += semantic_statements(window, self.events)
        return Caption(tuple(render(statement, random) for statement in statements), tuple(statements))


def parse_levels(text: str) -> tuple[str, ...]:
    """Parses "semantic", "statistical+structural" or "all"; UserError if a level is unknown or repeated."""
    if text == "all":
        return LEVELS
    levels = tuple(text.split("+"))
    for level in levels:
        if level not in LEVELS:
            raise UserError(
                f"unknown caption level {level!r}.{nearest(level, LEVELS)} "
                f"Levels are {', '.join(LEVELS)}, several joined by +, or all."
            )
    if len({*levels}) != len(levels):
        raise UserError(f"caption levels {text!r} name one twice.")
    return levels


def window_rng(purpose: str, window: Window) -> np.random.Generator:
    """A random generator seeded by the purpose and the window's participant and start time."""
    identity = f"{purpose} {window.participant} {int(window.start.timestamp())}"
    digest = hashlib.blake2b(identity.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))
