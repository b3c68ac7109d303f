"""Who is who: the person that a path or a row names, and which spellings of an id are one person."""

from __future__ import annotations

import re
from typing import ClassVar

import polars as pl
import pydantic

from lsm_jax.ingest.cells import add_reason
from lsm_jax.ingest.people.ids import NO_TEXT, Difference, identity, read_ids
from lsm_jax.ingest.section import Section, mistake


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
        return ids.zip_with(reasons.is_null(), NO_TEXT), reasons


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


def _glob_pattern(path: str) -> str:
    """The regular expression of a glob: * is part of a name, ** any folders, {person} the id. More may follow."""
    parts = re.split(r"(\{person\}|\*\*|\*|\?)", path.rstrip("/"))
    meanings = {"{person}": "([^/]+?)", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(meanings.get(part, re.escape(part)) for part in parts) + "(?:/.*)?"
