"""The caption of a window at one or several levels, worded anew each epoch and the same whenever it is asked for."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from lsm_jax.captions.facts import Fact
from lsm_jax.captions.grammar import Statement, render
from lsm_jax.captions.semantic import KINDS, semantic_statements
from lsm_jax.captions.statistical import statistical_statements
from lsm_jax.captions.structural import structural_statements
from lsm_jax.config import LanguageConfig
from lsm_jax.errors import UserError, nearest
from lsm_jax.windows import Window

LEVELS = ("statistical", "structural", "semantic")


@dataclasses.dataclass(frozen=True)
class Caption:
    """What is said of a window.

    Attributes:
      text: sentences with a space between; empty where nothing recorded can be said at these levels.
      statements: what the sentences say, in their order.
    """

    text: str
    statements: tuple[Statement, ...]

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All facts, in the order of the text."""
        return tuple(fact for statement in self.statements for fact in statement.facts)


@dataclasses.dataclass(frozen=True)
class Captioner:
    """Writes captions.

    Attributes:
      levels: of `LEVELS`, in the order their sentences come.
      seed: another seed, other words and other extra channels.
      events: kinds of events the semantic level speaks of, of `semantic.KINDS`.
    """

    levels: tuple[str, ...] = ("semantic",)
    seed: int = 0
    events: tuple[str, ...] = KINDS

    @classmethod
    def from_config(cls, language: LanguageConfig) -> Captioner:
        """That of the section `language`; UserError with the nearest names where a level or a kind is unknown."""
        for kind in language.events:
            if kind not in KINDS:
                raise UserError(
                    f"language.events: there is no kind of event {kind!r}.{nearest(kind, KINDS)} "
                    f"Kinds are {', '.join(KINDS)}; none named means all."
                )
        return cls(parse_levels(language.levels), language.seed, tuple(language.events) or KINDS)

    def __call__(self, window: Window, epoch: int = 0) -> Caption:
        """The window's caption: a pure function of the seed, the epoch and the window.

        The window is known by its participant and start, not by its place in a file, so that another order, another
        number of hosts or another mixture of datasets reads the same words.

        Raises:
          UserError: the window is longer than a day.
        """
        random = stream(f"{self.seed} {epoch}", window)
        statements: list[Statement] = []
        for level in self.levels:
            if level == "statistical":
                statements += statistical_statements(window, random)
            elif level == "structural":
                statements += structural_statements(window, random)
            else:
                statements += semantic_statements(window, self.events)
        return Caption(" ".join(render(statement, random) for statement in statements), tuple(statements))


def parse_levels(text: str) -> tuple[str, ...]:
    """The levels of "semantic", "statistical+structural" or "all".

    Raises:
      UserError: an unknown or repeated level; the nearest names are offered.
    """
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


def stream(purpose: str, window: Window) -> np.random.Generator:
    """Random numbers for one purpose, the same for a window wherever it stands."""
    identity = f"{purpose} {window.participant} {int(window.start.timestamp())}"
    digest = hashlib.blake2b(identity.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, np.uint64)))
