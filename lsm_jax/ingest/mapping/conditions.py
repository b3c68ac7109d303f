"""The grammar of a `keep` rule: which rows or values of a table count.

    rule       := rule "or" rule | rule "and" rule | "not" rule | "(" rule ")" | comparison
    comparison := COLUMN SIGN literal | literal SIGN COLUMN | literal SIGN COLUMN SIGN literal
                | COLUMN ["not"] "in" "[" literal, ... "]"
    literal    := NUMBER | 'TEXT' | "TEXT" | true | false

A column whose name is no plain word stands in backticks. `and` binds closer than `or`. What a rule says of the cells of
a column is in `described.filters`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

MAX_DEPTH = 20  # of nested parentheses and `not`
Literal = float | bool | str

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TOKEN = re.compile(
    rf"""(?P<number>{_NUMBER}(?![\w.]))
    |(?P<text>'[^']*'|"[^"]*")
    |(?P<quoted>`[^`]+`)
    |(?P<word>[^\W\d][\w.-]*)
    |(?P<sign>>=|<=|==|!=|[<>])
    |(?P<mark>[()\[\],])""",
    re.VERBOSE,
)
_WORDS = {"and", "or", "not", "in", "true", "false"}
_MIRRORED = {">=": "<=", "<=": ">=", ">": "<", "<": ">", "==": "==", "!=": "!="}
_INSTEAD = {"=": "==", "&": "and", "&&": "and", "|": "or", "||": "or", "!": "not", "<>": "!=", "≥": ">=", "≤": "<="}


class RuleFault(ValueError):
    """What is wrong with a rule, and at which character (counted from 1)."""

    def __init__(self, place: int, sentence: str) -> None:
        super().__init__(f"at character {place + 1}: {sentence}")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A column against literals. The sign is an order (one literal, a number), "in" or "not in"."""

    column: str
    sign: str
    literals: tuple[Literal, ...]


@dataclasses.dataclass(frozen=True)
class Junction:
    """Several rules of which all ("and") or any ("or") hold."""

    word: str
    parts: tuple[Expression, ...]


@dataclasses.dataclass(frozen=True)
class Negation:
    part: Expression


Expression = Comparison | Junction | Negation


@dataclasses.dataclass(frozen=True)
class Condition:
    """A parsed rule, with the text it was written as."""

    text: str
    rule: Expression

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(comparison.column for comparison in comparisons(self.rule))


def comparisons(rule: Expression) -> Iterator[Comparison]:
    """All comparisons of a rule."""
    match rule:
        case Comparison():
            yield rule
        case Negation(part):
            yield from comparisons(part)
        case Junction(_, parts):
            for part in parts:
                yield from comparisons(part)


def parse_condition(text: str) -> Condition:
    """Parses a rule.

    Raises:
      RuleFault: it is not of the grammar, or compares what has no order.
    """
    return Condition(text, _Parser(text).rule())


@dataclasses.dataclass(frozen=True)
class _Token:
    kind: str  # number, text, column, word, sign, mark, or end
    text: str
    place: int


class _Parser:
    """Recursive descent over the tokens of one rule."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0
        self._depth = 0

    def rule(self) -> Expression:
        found = self._junction("or")
        if self._peek.kind != "end":
            raise self._unexpected("and, or, or the end of the rule")
        return found

    @property
    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> _Token | None:
        """The next token if it is one of these words or marks."""
        token = self._peek
        if token.kind in ("word", "mark", "sign") and token.text in texts:
            self._next += 1
            return token
        return None

    def _unexpected(self, expected: str) -> RuleFault:
        token = self._peek
        if token.kind == "end":
            return RuleFault(token.place, f"the rule ends, expected {expected}")
        hint = "; decimals have a point" if token.text == "," else ""
        return RuleFault(token.place, f"found {token.text!r}, expected {expected}{hint}")

    def _junction(self, word: str) -> Expression:
        parts = [self._operand(word)]
        while self._take(word):
            parts.append(self._operand(word))
        return parts[0] if len(parts) == 1 else Junction(word, tuple(parts))

    def _operand(self, word: str) -> Expression:
        return self._junction("and") if word == "or" else self._negation()

    def _negation(self) -> Expression:
        start = self._take("not", "(")
        if start is None:
            return self._comparison()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RuleFault(start.place, f"nested more than {MAX_DEPTH} deep")
        if start.text == "not":
            found: Expression = Negation(self._negation())
        else:
            found = self._junction("or")
            if not self._take(")"):
                raise self._unexpected("')'")
        self._depth -= 1
        return found

    def _comparison(self) -> Expression:
        start, first = self._peek, self._literal()
        if first is None:
            column = self._column("a column such as in 'Quality >= 0.8'")
            word = self._take("in", "not")
            if word:
                if word.text == "not" and not self._take("in"):
                    raise self._unexpected("in")
                return Comparison(column, "in" if word.text == "in" else "not in", self._list())
            return self._compared(column, self._sign(), self._needed_literal())
        sign = self._sign()
        if self._peek.kind != "column":
            raise RuleFault(start.place, f"{start.text} is compared with no column; column 1 is written `1`")
        column = self._column("a column")
        lower = self._compared(column, dataclasses.replace(sign, text=_MIRRORED[sign.text]), (start, first))
        if self._peek.kind != "sign":
            return lower
        return Junction("and", (lower, self._compared(column, self._sign(), self._needed_literal())))

    def _compared(self, column: str, sign: _Token, literal: tuple[_Token, Literal]) -> Comparison:
        token, value = literal
        if sign.text in ("==", "!="):
            return Comparison(column, "in" if sign.text == "==" else "not in", (value,))
        if isinstance(value, str):
            is_number = re.fullmatch(_NUMBER, value.strip())
            fix = f"write {value.strip()} without quotes to compare numbers" if is_number else "use ==, != or in"
            raise RuleFault(token.place, f"text has no order; {fix}")
        if isinstance(value, bool):
            raise RuleFault(token.place, f"{token.text} has no order; use == or !=")
        return Comparison(column, sign.text, (value,))

    def _column(self, expected: str) -> str:
        token = self._peek
        if token.kind != "column":
            raise self._unexpected(expected)
        self._next += 1
        return token.text

    def _sign(self) -> _Token:
        token = self._peek
        if token.kind != "sign":
            raise self._unexpected("a comparison such as >= or in (a column whose name has blanks goes in backticks)")
        self._next += 1
        return token

    def _literal(self) -> Literal | None:
        token = self._peek
        if token.kind in ("number", "text") or token.text in ("true", "false"):
            self._next += 1
            return _value(token)
        return None

    def _needed_literal(self) -> tuple[_Token, Literal]:
        token, value = self._peek, self._literal()
        if value is None:
            raise self._unexpected("a number, true, false or text in quotes")
        return token, value

    def _list(self) -> tuple[Literal, ...]:
        if not self._take("["):
            raise self._unexpected("a list such as [1, 2] or ['n2', 'rem']")
        values = [self._needed_literal()[1]]
        while self._take(","):
            values.append(self._needed_literal()[1])
        if not self._take("]"):
            raise self._unexpected("',' or ']'")
        return tuple(values)


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        match = _TOKEN.match(text, place)
        if match is None:
            raise _fault_of_character(text, place)
        kind, content = str(match.lastgroup), match[0]
        if kind == "word":
            is_reserved = content.lower() in _WORDS
            kind, content = ("word", content.lower()) if is_reserved else ("column", content)
        elif kind == "quoted":
            kind, content = "column", content.strip("`")
        yield _Token(kind, content, place)
        place = match.end()
    yield _Token("end", "", len(text))


def _fault_of_character(text: str, place: int) -> RuleFault:
    part = re.compile(r"[=&|!<>≥≤]+|\w+|.").match(text, place)
    written = part[0] if part else text[place]
    if written in _INSTEAD:
        return RuleFault(place, f"write {_INSTEAD[written]} for {written}")
    if written in "'\"`":
        return RuleFault(place, f"the quote {written} is not closed")
    return RuleFault(place, f"{written!r} cannot be read; a column whose name is no plain word goes in backticks")


def _value(token: _Token) -> Literal:
    if token.kind == "text":
        return token.text[1:-1]
    if token.kind == "word":
        return token.text == "true"
    if not math.isfinite(number := float(token.text)):
        raise RuleFault(token.place, f"{token.text} is too large a number")
    return number
