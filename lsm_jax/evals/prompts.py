"""Prompt files: classes and the sentences that stand for them.

    templates = ["The wearer did some {activity} between {start} and {end}."]
    times = ["07:00-07:40", "17:30-18:15"]
    contexts = ["The wearer was asleep from 00:00 to 06:40."]

    [classes.running]  # by the templates

    [classes.skiing]   # in words of its own
    prompts = ["From {start} to {end} the wearer was busy with hiking."]

A class is named as the log names it. Its sentences are its own `prompts`, or else the `templates`; one with `{start}`
and `{end}` is said once for each of `times`. A text tower that has only read whole captions understands a sentence
better in one: it is read after each of `contexts`, captions of ordinary days, and held against the contexts alone.
"""

from __future__ import annotations

import dataclasses
import re
import string
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lsm_jax
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.errors import UserError, nearest

SHIPPED = Path(lsm_jax.__file__).parents[1] / "configs" / "prompts"
_PLACEHOLDERS = ("activity", "start", "end")
_KEYS = ("templates", "times", "contexts", "classes")
_LARGEST_FILE = 2**20
_TIMES = re.compile(r"([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The sentences of each class.

    Attributes:
      texts: by class, in the file's order: (key in the file, what is read: a sentence after each context).
      contexts: what the sentences follow; empty where they stand alone.
    """

    file: Path
    texts: Mapping[str, Sequence[tuple[str, str]]]
    contexts: Sequence[str] = ()

    def require(self, known: Collection[str]) -> None:
        """UserError for a class that is not among the known ones, those of the data."""
        for name in self.texts:
            if name not in known:
                raise UserError(
                    f"{self.file}: classes.{name}: the data has no such activity.{nearest(name, known)} "
                    f"It has {', '.join(sorted(known)) or 'none'}."
                )

    def fitting(self, tokenizer: Tokenizer, length: int) -> Sequence[str]:
        """All sentences, class by class; UserError for one longer than the model reads."""
        keyed = [pair for texts in self.texts.values() for pair in texts]
        lengths = tokenizer.encode([text for _, text in keyed], length).lengths
        for (key, text), tokens in zip(keyed, lengths, strict=True):
            if tokens > length:
                raise UserError(
                    f"{self.file}: {key} has {tokens} tokens and the model reads language.text_length={length}: "
                    f"shorten {text[:60]!r}."
                )
        return [text for _, text in keyed]


def read_prompts(file: Path) -> Prompts:
    """Reads a prompt file.

    Raises:
      UserError: damaged, an unknown key or placeholder, an empty prompt, a class without one; names file and key.
    """
    try:
        content = file.read_bytes()
        if len(content) > _LARGEST_FILE:
            raise UserError(f"{file}: {len(content)} bytes are no prompt file; they are a few sentences a class.")
        table = tomllib.loads(content.decode())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not TOML, or damaged: {error}.") from None
    _check_keys(file, "", table, _KEYS)
    templates, times, contexts = (_sentences(file, key, table.get(key, [])) for key in _KEYS[:3])
    for place, time in enumerate(times):
        if not _TIMES.fullmatch(time):
            raise UserError(f"{file}: times[{place}] {time!r}: write it as 07:00-07:40.")
    classes = _table(file, "classes", table.get("classes", {}))
    if not classes:
        raise UserError(f"{file}: it names no class; write [classes.NAME] for each.")
    texts = {}
    for name, entry in classes.items():
        key = f"classes.{name}"
        _check_keys(file, f"{key}.", _table(file, key, entry), ("prompts",))
        own = _sentences(file, f"{key}.prompts", entry.get("prompts", []))
        said = [(f"{key}.prompts[{i}]", text) for i, text in enumerate(own)]
        said = said or [(f"templates[{i}]", text) for i, text in enumerate(templates)]
        if not said:
            raise UserError(f"{file}: {key} has no prompt: give it `prompts`, or the file `templates`.")
        filled = [pair for where, text in said for pair in _filled(file, where, text, name, times)]
        texts[name] = [(where, f"{context} {text}".strip()) for context in contexts or [""] for where, text in filled]
    return Prompts(file, texts, contexts)


def shipped_prompts(known: Collection[str]) -> tuple[Prompts, list[str]]:
    """The shipped file that names most of the data's classes, without those the data lacks, and their names.

    Raises:
      UserError: none names any.
    """
    files = [read_prompts(file) for file in sorted(SHIPPED.glob("*.toml"))]
    best = max(files, key=lambda prompts: len(prompts.texts.keys() & {*known}), default=None)
    if best is None or not best.texts.keys() & {*known}:
        raise UserError(
            f"no prompt file in {SHIPPED} fits the data's activities ({', '.join(sorted(known)) or 'none'}): write one "
            "and name it with --prompts FILE."
        )
    present = {name: texts for name, texts in best.texts.items() if name in known}
    return Prompts(best.file, present, best.contexts), [name for name in best.texts if name not in known]


def _filled(file: Path, key: str, text: str, name: str, times: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A sentence with its placeholders filled in, once for each time where it has one."""
    try:
        fields = [
            (field, spec, conversion)
            for _, field, spec, conversion in string.Formatter().parse(text)
            if field is not None
        ]
    except ValueError as error:
        raise UserError(f"{file}: {key}: {error} in {text!r}; write a brace itself as {{{{ or }}}}.") from None
    for field, spec, conversion in fields:
        if field not in _PLACEHOLDERS or spec or conversion:
            listed = ", ".join(f"{{{known}}}" for known in _PLACEHOLDERS)
            raise UserError(
                f"{file}: {key}: unknown placeholder {{{field}}}.{nearest(field, _PLACEHOLDERS)} There are {listed}."
            )
    timed = any(field in ("start", "end") for field, _, _ in fields)
    if timed and not times:
        raise UserError(f"{file}: {key} has a time, and the file no `times` to say it with, such as 07:00-07:40.")
    for time in times if timed else ("-",):
        start, end = time.split("-")
        sentence = text.format(activity=name, start=start, end=end).strip()
        yield key, sentence[:1].upper() + sentence[1:]


def _sentences(file: Path, key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{file}: {key} must be a list of texts.")
    for place, text in enumerate(value):
        if not text.strip():
            raise UserError(f"{file}: {key}[{place}] is empty.")
    return value


def _table(file: Path, key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{file}: {key} must be a table, [{key}].")
    return value


def _check_keys(file: Path, prefix: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{file}: unknown key {prefix}{key}.{nearest(key, known)} There are {', '.join(known)}.")
