"""Who is who: the person that a path or a row names, and which spellings of an id are one person.

An id may be written in several ways (`007` and `7`, `p01` and `P01`, `S_1` and `S-1`). Spellings that stand in
different sections of a source, such as the recordings and a questionnaire, are one person. Two of them in one section
may be one person or two: that is refused until the mapping says which. A pseudonym is made of the id without these
differences, so that no split of any dataset separates what may be one person.
"""

from __future__ import annotations

import decimal
import re
import unicodedata
from collections.abc import Iterable
from typing import ClassVar, Literal

import polars as pl
import pydantic

from lsm_jax.errors import UserError
from lsm_jax.ingest.parse import add_reason, is_empty
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.section import Section, mistake

Difference = Literal["case", "zeros", "marks"]
LOST_DIGITS = "person id has lost digits to scientific notation: two people may have become one; write ids as text"
_NO_TEXT = pl.Series([None], dtype=pl.String)
# Spreadsheets write 123456789012 as 1.23457E+11. "12E5" is an id like any other.
_SCIENTIFIC = r"^-?\d(?:[.,]\d+[eE]\+?|[eE]\+)\d{1,3}$"


class PersonRule(Section):
    """Whose a file or a row is. One of

    - `column`: one or several columns, joined by `join`. `pattern` takes the part of a column in its first group.
    - `file`: a pattern that is searched in the file's path; its groups are joined.
    - `path`: a glob of the file's path with {person} in it. A zip counts as a folder of its name.
    - `constant`: the id of everything.
    """

    column: str | list[str] = ""
    pattern: str = ""
    file: str = ""
    path: str = ""
    constant: str = ""
    join: str = "-"
    _may_be_empty: ClassVar[bool] = False

    @pydantic.model_validator(mode="after")
    def _check(self) -> PersonRule:
        given = [key for key in ("column", "file", "path", "constant") if getattr(self, key)]
        if len(given) > 1 or not (given or self._may_be_empty):
            raise mistake("takes one of column = '...', file = 'pattern with a group', path = '{person}/*', constant")
        for key, text in (("file", self.file), ("pattern", self.pattern)):
            try:
                groups = re.compile(text).groups
            except re.error as error:
                raise mistake(f"is no regular expression ({error})", key) from None
            if text and not groups:
                raise mistake(f"needs a group around the id, got {text!r}", key)
        if self.pattern and len(self.columns) != 1:
            raise mistake("takes the id out of one column", "pattern")
        if self.path and "{person}" not in self.path:
            raise mistake(f"is {self.path!r}, expected a path with {{person}} in it: '{{person}}/*.csv'", "path")
        if not self.join:
            raise mistake("is empty: two people could get one id", "join")
        return self

    @property
    def columns(self) -> list[str]:
        """The columns that hold the id; none where the path does."""
        return [self.column] if isinstance(self.column, str) and self.column else list(self.column)

    @property
    def is_of_files(self) -> bool:
        """Whether the id is that of a file."""
        return bool(self.file or self.path or self.constant)

    def of_file(self, label: str) -> tuple[str, str]:
        """(raw id, "") of the file of this label, or ("", why there is none)."""
        if self.constant:
            return self.constant, ""
        if self.path:
            match = re.fullmatch(_glob_pattern(self.path), re.sub(r"\.zip!", "/", label, flags=re.I))
            found = [match.groups()] if match else []
        else:
            found = [match.groups() for match in re.finditer(self.file, label)]
        ids = {self.join.join(filter(None, groups)) for groups in found} - {""}
        if len(ids) > 1:
            return "", "finds several ids in its path: make the pattern match in one place"
        return (ids.pop(), "") if ids else ("", "finds no id in its path")

    def of_rows(self, block: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
        """(raw ids, reasons where there are none) of the rows of a block."""
        parts = [read_ids(block[name]) for name in self.columns]
        ids, reasons = parts[0]
        if self.pattern:
            found = ids.str.extract(self.pattern, 1)
            is_other = ids.is_not_null() & (found.fill_null("") == "")
            ids, reasons = found, add_reason(reasons, is_other, "person id is not of the pattern of the mapping")
        if len(parts) > 1:
            for part, faults in parts:
                has_mark = part.str.contains(self.join, literal=True).fill_null(False)
                reasons = reasons.zip_with(reasons.is_not_null(), faults)
                reasons = add_reason(reasons, has_mark, f"part of a person id holds {self.join!r}: give another join")
            columns = [part.alias(str(place)) for place, (part, _) in enumerate(parts)]
            ids = pl.select(pl.concat_str(columns, separator=self.join)).to_series()
        return ids.zip_with(reasons.is_null(), _NO_TEXT), reasons


class PeopleRule(PersonRule):
    """Who is who in a source: the rule of sections without a person, and of formats that find people by folders.

    `same` are the differences in spelling that make no other person. None: all of them, refused where it is unclear.
    """

    same: list[Difference] | None = None
    _may_be_empty: ClassVar[bool] = True

    def over(self, other: PeopleRule) -> PeopleRule:
        """This rule; the other's for what this one leaves open."""
        own, base = self.model_dump(exclude_unset=True), other.model_dump(exclude_unset=True)
        return PeopleRule.model_validate({"same": other.same} | own if self.is_of_files else base | own)

    def identity(self, spelling: str) -> str:
        """The id without the differences in spelling that do not count."""
        return identity(spelling, ("case", "zeros", "marks") if self.same is None else self.same)


DEFAULT_PEOPLE = PeopleRule()


def people_rule(text: str | None) -> PeopleRule:
    """The rule that the command line gives: a path with {person} in it, or one id for everything."""
    if not text:
        return DEFAULT_PEOPLE
    return PeopleRule(path=text) if "{person}" in text else PeopleRule(constant=text)


def identity(spelling: str, same: Iterable[Difference] = ("case", "zeros", "marks")) -> str:
    """An id without differences in spelling: upper and lower case, leading zeros of numbers, blank _ - and dot."""
    text = unicodedata.normalize("NFC", spelling.strip())
    if "case" in same:
        text = unicodedata.normalize("NFKC", text).casefold()
    if "zeros" in same:
        text = re.sub(r"(?<!\d)0+(?=\d)", "", text)
    if "marks" in same:
        text = re.sub(r"[\s_.-]+", "-", text)
    return text


class AmbiguousPeople(UserError):
    """Ids that may be of one person. The message holds no id; `spellings` are for the terminal of a dry run."""

    def __init__(self, message: str, spellings: Iterable[tuple[str, ...]] = ()) -> None:
        super().__init__(message)
        self.spellings = list(spellings)


class Roster:
    """The ids of a source, as they are spelt in each of its sections."""

    def __init__(self, rule: PeopleRule) -> None:
        self._rule = rule
        self._found: dict[str, dict[str, dict[str, str]]] = {}  # identity -> section -> spelling -> where

    def add(self, spellings: Iterable[str], section: str, where: str) -> None:
        for spelling in spellings:
            of_person = self._found.setdefault(self._rule.identity(spelling), {})
            of_person.setdefault(section, {}).setdefault(spelling, where)

    def people(self, report: IngestReport) -> dict[str, tuple[str, ...]]:
        """{id: its spellings}, in order; the id is the spelling of the recordings.

        Raises:
          AmbiguousPeople: a section has two spellings of what may be one id, and no rule says what they are.
        """
        found = [
            [spellings for _, spellings in sorted(sections.items(), key=_rank)] for sections in self._found.values()
        ]
        if self._rule.same is None:
            self._check()
            met = sum(len({*sections[0]}.union(*sections)) > 1 for sections in found)
            if met:
                report.note(
                    f"{met} people are spelt in several ways (upper and lower case, leading zeros, marks) and read as "
                    "one each; same = [] in the section [people] of a mapping keeps spellings apart."
                )
        people = {min(sections[0]): tuple(sorted({*sections[0]}.union(*sections))) for sections in found}
        return dict(sorted(people.items()))

    def _check(self) -> None:
        unclear = [
            (section, spellings)
            for of_person in self._found.values()
            for section, spellings in of_person.items()
            if len(spellings) > 1
        ]
        if not unclear:
            return
        section, spellings = unclear[0]
        files = " and ".join(dict.fromkeys(spellings.values()))
        raise AmbiguousPeople(
            f"{len(unclear)} ids of {section} are spelt in several ways that differ only in case, leading zeros or "
            f"marks (as in {files}): one person or two? Say it in a mapping: [people] with same = ['case', 'zeros', "
            "'marks'] for one, or same = [] for two. --dry-run shows them.",
            (tuple(sorted(spellings)) for _, spellings in unclear),
        )


def _rank(section: tuple[str, object]) -> tuple[int, str]:
    """Recordings come first."""
    name = section[0]
    return ("recordings", "tables", "events", "labels").index(name.split("[")[0]), name


def read_ids(cells: pl.Series) -> tuple[pl.Series, pl.Series]:
    """(ids as text, reasons where there are none). 62161.0 is 62161, as columns with empty cells are often saved."""
    if cells.dtype != pl.String and not cells.dtype.is_integer():
        return _read_ids(cells)
    different = cells.unique()  # a person has many rows
    ids, reasons = _read_ids(different)
    return (
        cells.replace_strict(different, ids, return_dtype=pl.String),
        cells.replace_strict(different, reasons, return_dtype=pl.String),
    )


def _read_ids(cells: pl.Series) -> tuple[pl.Series, pl.Series]:
    reasons: pl.Series = pl.repeat(None, len(cells), dtype=pl.String, eager=True)
    reasons = add_reason(reasons, is_empty(cells), "no person id")
    lost = pl.repeat(False, len(cells), dtype=pl.Boolean, eager=True)
    if cells.dtype.is_float():
        lost = (cells.abs() > (2**53 if cells.dtype == pl.Float64 else 2**24)).fill_null(False)
    text = cells.cast(pl.String).str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "$1")
    scientific = text.filter(text.str.contains(_SCIENTIFIC).fill_null(False)).unique().to_list()
    if scientific:
        text = text.replace({cell: _whole_number(cell) for cell in scientific})
        lost |= text.is_null() & cells.is_not_null()
    reasons = add_reason(reasons, lost, LOST_DIGITS)
    return text.zip_with(reasons.is_null(), _NO_TEXT), reasons


def _whole_number(text: str) -> str | None:
    """1.234E+03 as 1234; None where digits are lost, as in 1.23E+11."""
    number = decimal.Decimal(text.replace(",", "."))
    return str(int(number)) if int(number.as_tuple().exponent) <= 0 and number == number.to_integral_value() else None


def _glob_pattern(path: str) -> str:
    """The regular expression of a glob: * is part of a name, ** any folders, {person} the id. More may follow."""
    parts = re.split(r"(\{person\}|\*\*|\*|\?)", path.rstrip("/"))
    meanings = {"{person}": "([^/]+?)", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(meanings.get(part, re.escape(part)) for part in parts) + "(?:/.*)?"
