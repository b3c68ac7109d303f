"""The people of a source.

An id may be written in several ways (`007` and `7`, `p01` and `P01`, `S_1` and `S-1`). Spellings that stand in
different sections of a source, such as the recordings and a questionnaire, are one person. Two of them in one section
may be one person or two: that is refused until the mapping says which. A pseudonym is made of the id without these
differences, so that no split of any dataset separates what may be one person.
"""

from __future__ import annotations

from collections.abc import Iterable

from lsm_jax.errors import UserError
from lsm_jax.ingest.people.rules import PeopleRule
from lsm_jax.ingest.report import IngestReport


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
