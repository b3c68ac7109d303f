"""Prompt files: classes and the sentences that stand for them.

    templates = ["The wearer did some {activity} between {start} and {end}."]
    times = ["07:00-07:40", "17:30-18:15"]
    contexts = ["The wearer was asleep from 00:00 to 06:40."]

    [classes.running]  # uses the templates

    [classes.skiing]   # has sentences of its own
    prompts = ["From {start} to {end} the wearer was busy with hiking."]

A class has the name it has in the log. Its sentences are its own `prompts`, or else the `templates`. A sentence with
`{start}` and `{end}` is repeated for each of `times`. A text encoder trained on whole captions reads a sentence better
after a context: each sentence then follows each of `contexts`, captions of ordinary days, and the embedding of the
contexts alone is subtracted.
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
_LISTS = ("templates", "times", "contexts")
_MAX_BYTES = 2**20
_TIMES = re.compile(r"([01]\d|2[0-3]):[0-5]\d-(([01]\d|2[0-3]):[0-5]\d|24:00)")


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The sentences of each class.

    Attributes:
      texts: by class, in the file's order: (key in the file, text), where the text is a sentence after a context.
      contexts: captions that the sentences follow; empty where they stand alone.
    """

    file: Path
    texts: Mapping[str, Sequence[tuple[str, str]]]
    contexts: Sequence[str] = ()

    def sentences(self, tokenizer: Tokenizer, max_tokens: int) -> Sequence[str]:
        """All texts, class by class; UserError for one longer than the model reads."""
        keyed = [pair for texts in self.texts.values() for pair in texts]
        lengths = tokenizer.encode([text for _, text in keyed], max_tokens).lengths
        for (key, text), tokens in zip(keyed, lengths, strict=True):
            if tokens > max_tokens:
                raise UserError(
                    f"{self.file}: {key} has {tokens} tokens and the model reads language.text_length={max_tokens}: "
                    f"shorten {text[:60]!r}."
                )
        return [text for _, text in keyed]


def read_prompts(file: Path) -> Prompts:
    """Reads a prompt file.

    Raises:
      UserError: damaged, an unknown key or placeholder, an empty prompt, a class without one; names file and key.
    """
    table = _read_toml(file)
    _check_keys(file, "", table, (*_LISTS, "classes"))
    templates, times, contexts = (_texts(file, key, table.get(key, [])) for key in _LISTS)
    for number, time in enumerate(times):
        if not _TIMES.fullmatch(time):
            raise UserError(f"{file}: times[{number}] {time!r}: write it as 07:00-07:40.")
    classes = table.get("classes", {})
    if not isinstance(classes, dict) or not all(isinstance(entry, dict) for entry in classes.values()):
        raise UserError(f"{file}: classes must be a table with a table for each class, [classes.NAME].")
    if not classes:
        raise UserError(f"{file}: it names no class; write [classes.NAME] for each.")
    texts = {}
    for name, entry in classes.items():
        key = f"classes.{name}"
        _check_keys(file, f"{key}.", entry, ("prompts",))
        own = _texts(file, f"{key}.prompts", entry.get("prompts", []))
        origin, sentences = (f"{key}.prompts", own) if own else ("templates", templates)
        if not sentences:
            raise UserError(f"{file}: {key} has no prompt: give it `prompts`, or the file `templates`.")
        filled = [
            (f"{origin}[{number}]", sentence)
            for number, text in enumerate(sentences)
            for sentence in _fill(file, f"{origin}[{number}]", text, name, times)
        ]
        texts[name] = [(where, f"{context} {text}".strip()) for context in contexts or [""] for where, text in filled]
    return Prompts(file, texts, contexts)


def shipped_prompts(in_data: Collection[str]) -> tuple[Prompts, list[str]]:
    """The shipped file that names most of the data's classes, reduced to those, and its classes that the data lacks.

    Raises:
      UserError: no file names any of them.
    """
    files = [read_prompts(file) for file in sorted(SHIPPED.glob("*.toml"))]
    best = max(files, key=lambda prompts: len(prompts.texts.keys() & {*in_data}), default=None)
    if best is None or not best.texts.keys() & {*in_data}:
        raise UserError(
            f"no prompt file in {SHIPPED} fits the data's activities ({', '.join(sorted(in_data)) or 'none'}): write "
            "one and name it with --prompts FILE."
        )
    present = {name: texts for name, texts in best.texts.items() if name in in_data}
    return Prompts(best.file, present, best.contexts), [name for name in best.texts if name not in in_data]


def _read_toml(file: Path) -> Mapping[str, Any]:
    try:
        content = file.read_bytes()
        if len(content) > _MAX_BYTES:
            raise UserError(f"{file}: {len(content)} bytes are no prompt file; they are a few sentences a class.")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not TOML, or damaged: {error}.") from None


def _fill(file: Path, key: str, text: str, name: str, times: Sequence[str]) -> Iterator[str]:
    """A sentence with its placeholders filled in, once for each time where it has one."""
    try:
        fields = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"{file}: {key}: {error} in {text!r}; write a brace itself as {{{{ or }}}}.") from None
    for field, spec, conversion in fields:
        if field not in _PLACEHOLDERS or spec or conversion:
            listed = ", ".join(f"{{{known}}}" for known in _PLACEHOLDERS)
            hint = nearest(str(field), _PLACEHOLDERS)
            raise UserError(f"{file}: {key}: unknown placeholder {{{field}}}.{hint} There are {listed}.")
    has_time = any(field in ("start", "end") for field, _, _ in fields)
    if has_time and not times:
        raise UserError(f"{file}: {key} has a time, and the file no `times` to fill in, such as 07:00-07:40.")
    for time in times if has_time else ("-",):
        start, end = time.split("-")
        sentence = text.format(activity=name, start=start, end=end).strip()
        yield sentence[:1].upper() + sentence[1:]


def _texts(file: Path, key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{file}: {key} must be a list of texts.")
    for number, text in enumerate(value):
        if not text.strip():
            raise UserError(f"{file}: {key}[{number}] is empty.")
    return value


def _check_keys(file: Path, prefix: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{file}: unknown key {prefix}{key}.{nearest(key, known)} There are {', '.join(known)}.")
