"""Statements to sentences and back.

A statement is the content of one sentence: the four statistics of a channel, a trend, a peak or an event. `render` puts
it into words with a random template of `templates.toml`, and `parse_caption` recovers the facts of a text. Parsing is
strict: a sentence counts only if filling its template with the parsed facts gives the same sentence again. A number
without its decimals, a wrong unit or a time such as 25:10 is therefore reported as unparsed, not taken for something
similar.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lsm_jax.captions.facts import STATISTICS, Fact, clock_minutes
from lsm_jax.captions.phrases import CHANNEL_OF, PHRASES, UNITS, decimals, unit_words
from lsm_jax.windows import MINUTES_PER_DAY

_MAX_NAME_LENGTH = 40
_PUNCTUATION = " /&'+-"
_TEMPLATES = tomllib.loads(Path(__file__).with_name("templates.toml").read_text(encoding="utf-8"))
FORMS: Mapping[str, Sequence[str]] = _TEMPLATES["forms"]
VERBS: Mapping[str, Mapping[str, Sequence[str]]] = _TEMPLATES["verbs"]  # by form and kind of fact
_WHOLE: Sequence[str] = _TEMPLATES["whole"]  # phrases that a cut event does not allow

_KIND_OF_VERB = {verb: kind for verbs in VERBS.values() for kind, choices in verbs.items() for verb in choices}
_KIND_OF_FORM = {"sleep_named": "sleep", "meal_moment": "meal", "marks": "mark"}
_CHANNEL_FORMS = ("statistics", "constant", "trend", "extreme")
_MOMENT_FORMS = ("mood", "meal_moment", "mark")


@dataclasses.dataclass(frozen=True)
class Statement:
    """The content of one sentence.

    Attributes:
      form: a key of `FORMS`.
      facts: the four statistics of a channel, or a single fact.
      cut: whether it is of an event that touches the window's edge, so that no sentence may tell where it began or
        ended. Sentences do not say that, so it is not part of the comparison.
    """

    form: str
    facts: tuple[Fact, ...]
    cut: bool = dataclasses.field(default=False, compare=False)


@dataclasses.dataclass(frozen=True)
class ParsedCaption:
    """The facts of the sentences that could be parsed, and the sentences that could not."""

    facts: tuple[Fact, ...]
    unparsed: tuple[str, ...]


def render(statement: Statement, random: np.random.Generator) -> str:
    """The statement as a sentence, with a random template of its form."""
    templates = FORMS[statement.form]
    if statement.cut:
        templates = [each for each in templates if not any(phrase in each for phrase in _WHOLE)]
    draw = int(random.integers(2**32))
    draw, choice = divmod(draw, len(templates))
    verbs = VERBS.get(statement.form)
    verb = "" if verbs is None else (choices := verbs[statement.facts[0].kind])[draw % len(choices)]
    return wording(statement, templates[choice], verb)


def wording(statement: Statement, template: str, verb: str = "") -> str:
    """The statement in the words of one template of its form; `verb` fills `{moved}` or `{turned}`."""
    sentence = template.format(moved=verb, turned=verb, **_fields(statement))
    return sentence[0].upper() + sentence[1:] if "a" <= sentence[0] <= "z" else sentence


def parse_caption(text: str) -> ParsedCaption:
    """Parses a text sentence by sentence."""
    facts: list[Fact] = []
    unparsed = []
    for sentence in sentences(text):
        statement = parse_sentence(sentence)
        if statement:
            facts += statement.facts
        else:
            unparsed.append(sentence)
    return ParsedCaption(tuple(facts), tuple(unparsed))


def sentences(text: str) -> list[str]:
    """The sentences of a text; a sentence ends at a full stop before a space, or at the end of a line."""
    return [sentence for sentence in re.split(r"(?<=\.)\s+|\n+", text.strip()) if sentence]


def facts_of(text: str) -> tuple[Fact, ...]:
    """The facts of a text; sentences in other wording add none."""
    return parse_caption(text).facts


def parse_sentence(sentence: str) -> Statement | None:
    """The statement of a sentence; None if no template gives this sentence."""
    for form, template, pattern in _patterns():
        match = pattern.fullmatch(sentence)
        if not match:
            continue
        fields = match.groupdict()
        verb = fields.get("moved") or fields.get("turned") or ""
        statement = _statement(form, fields, _KIND_OF_VERB.get(verb, ""))
        if statement and wording(statement, template, verb) == sentence:
            return statement
    return None


def event_name(name: str) -> str:
    """An event's name for use in a sentence: lower case, without punctuation that could end the sentence."""
    words = " ".join(re.sub(rf"[^\w{re.escape(_PUNCTUATION)}]+", " ", name.lower()).split())
    return words.strip(_PUNCTUATION)[:_MAX_NAME_LENGTH].strip(_PUNCTUATION) or "unnamed"


def _fields(statement: Statement) -> dict[str, str]:
    """The values of the fields of the statement's templates."""
    fact = statement.facts[0]
    fields = {}
    if fact.start is not None and fact.end is not None:
        fields = {"start": _clock(fact.start), "end": _clock(fact.end)}
    if statement.form in _CHANNEL_FORMS:
        digits = decimals(fact.subject)
        fields |= {"channel": PHRASES[fact.subject], "unit": unit_words(fact.subject)}
        names = {"value": fact} if statement.form == "extreme" else {each.kind: each for each in statement.facts}
        fields |= {name: f"{each.value:.{digits}f}" for name, each in names.items() if each.value is not None}
        return fields
    fields["name"] = fact.subject
    if fact.value is not None:
        fields |= {"minutes": _duration(int(fact.value)), "count": str(int(fact.value))}
    return fields


def _statement(form: str, fields: Mapping[str, str], kind_of_verb: str) -> Statement | None:
    """The statement with these fields; None if a time is invalid."""
    start, end = _minute(fields.get("start")), _minute(fields.get("end"))
    if ("start" in fields and (start is None or start == MINUTES_PER_DAY)) or ("end" in fields and not end):
        return None
    if form in _CHANNEL_FORMS:
        subject = CHANNEL_OF[fields["channel"].casefold()]
        if form == "statistics":
            return Statement(form, tuple(Fact(kind, subject, float(fields[kind])) for kind in STATISTICS))
        if form == "constant":
            level = float(fields["mean"])
            return Statement(form, tuple(Fact(k, subject, 0.0 if k == "deviation" else level) for k in STATISTICS))
        if form == "extreme":
            return Statement(form, (Fact(kind_of_verb, subject, float(fields["value"]), start, start),))
        return Statement(form, (Fact(kind_of_verb, subject, None, start, end),))
    kind = _KIND_OF_FORM.get(form, form)
    name = fields.get("name", "asleep")
    name = name[0].lower() + name[1:] if "A" <= name[0] <= "Z" else name
    if form in _MOMENT_FORMS:
        return Statement(form, (Fact(kind, name, 1.0 if form == "mark" else None, start, start),))
    if form == "marks":
        return Statement(form, (Fact(kind, name, float(fields["count"]), start, end),))
    minutes = _minutes(fields["minutes"]) if "minutes" in fields else clock_minutes(start or 0, end or 0)
    return Statement(form, (Fact(kind, name, float(minutes), start, end),))


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"


def _minute(clock: str | None) -> int | None:
    """Minutes since midnight of "HH:MM"; None for an invalid time."""
    if clock is None:
        return None
    hours, minutes = int(clock[:2]), int(clock[3:])
    return hours * 60 + minutes if minutes < 60 and hours * 60 + minutes <= MINUTES_PER_DAY else None


def _duration(minutes: int) -> str:
    hours, rest = divmod(minutes, 60)
    parts = [(hours, "hour")] * bool(hours) + [(rest, "minute")] * bool(rest or not hours)
    return " ".join(f"{count} {unit}{'' if count == 1 else 's'}" for count, unit in parts)


def _minutes(duration: str) -> int:
    words = duration.split()
    return sum(int(words[i]) * (60 if words[i + 1].startswith("hour") else 1) for i in range(0, len(words), 2))


@functools.cache
def _patterns() -> Sequence[tuple[str, str, re.Pattern[str]]]:
    """Form, template and regular expression of every template; the groups are its fields."""
    number = r"-?\d{1,9}(?:\.\d{1,4})?"
    clock = r"\d\d:\d\d"
    one_of = {
        "channel": sorted(PHRASES.values(), key=len, reverse=True),
        "unit": UNITS,
        "moved": [verb for choices in VERBS["trend"].values() for verb in choices],
        "turned": [verb for choices in VERBS["extreme"].values() for verb in choices],
    }
    fields = {name: "|".join(re.escape(choice) for choice in choices) for name, choices in one_of.items()}
    fields["channel"] = f"(?i:{fields['channel']})"
    fields |= dict.fromkeys((*STATISTICS, "value"), number) | {"start": clock, "end": clock}
    fields["minutes"] = r"\d{1,4} (?:hours?|minutes?)(?: \d{1,2} minutes?)?"
    fields["count"] = r"\d{1,4}"
    fields["name"] = rf"\w[\w{re.escape(_PUNCTUATION)}]{{0,{_MAX_NAME_LENGTH - 1}}}"
    groups = {name: f"(?P<{name}>{pattern})" for name, pattern in fields.items()}
    return [
        (form, template, re.compile(re.sub(r"\\\{(\w+)\\\}", lambda field: groups[field[1]], re.escape(template))))
        for form, templates in FORMS.items()
        for template in templates
    ]
