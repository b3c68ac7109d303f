"""Exports that people download, each of one person: whose a file is."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from lsm_jax.errors import UserError
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.people.roster import Roster
from lsm_jax.ingest.people.rules import PeopleRule
from lsm_jax.ingest.report import IngestReport


def person_of(file: SourceFile, source: Path, *, one_file_each: bool = False) -> str:
    """The raw id of the person whose export the file is part of.

    It is the first folder below the source; a zip counts as a folder. Files that lie in the source itself are of the
    person that the source is named after or, with `one_file_each`, each of the person that it is named after itself.
    """
    place = PurePosixPath(file.path)
    if source.is_dir() and len(place.parts) > 1:
        return place.parts[0]
    if one_file_each:
        return _stem(file.member or file.path)
    if file.member or not source.is_dir():
        return _stem(file.path)
    return source.resolve().name


def _stem(path: str) -> str:
    """The name of a file without what says how it is written. Ids may have dots."""
    name = PurePosixPath(path).name
    return re.sub(r"(\.(csv|txt|tsv|json|fit|xml|zip|gz))+$", "", name, flags=re.IGNORECASE) or name


@dataclasses.dataclass(frozen=True)
class PersonFiles:
    """The key of one person: the raw id and the files."""

    person: str
    files: tuple[SourceFile, ...]


def sort_files(
    files: Sequence[tuple[str, SourceFile]], rule: PeopleRule, report: IngestReport, *, one_file_each: bool = False
) -> Iterator[PersonFiles]:
    """The files of each person, by the user's rule; files for which it finds nobody are set aside.

    Args:
      files: with the person as the format finds them, who counts where the user says nothing.
      one_file_each: see `person_of`.

    Raises:
      UserError: files lie in the source and in folders of it, so one person could be taken for several.
      AmbiguousPeople: as by `Roster.people`.
    """
    found: dict[str, list[SourceFile]] = defaultdict(list)
    roster = Roster(rule)
    for name, file in files:
        person, fault = rule.of_file(file.label) if rule.is_of_files else (name, "")
        if fault:
            report.set_aside(file.label, f"the rule of people {fault}")
            continue
        found[person].append(file)
        roster.add([person], "recordings", file.label)
    in_folders = {"/" in file.path or bool(file.member) for _, file in files}
    if not rule.is_of_files and len(found) > 1 and True in in_folders:
        if False in in_folders and not one_file_each:
            raise UserError(
                "files lie in the source itself and in folders of it: of one person, or of several? Say it: --person "
                "NAME for one, --person '{person}' for one person of each folder and file."
            )
        report.note(
            f"{len(found)} people were found, one for each folder of the source. --person NAME says that all files are "
            "of one person, --person '*/{person}' that the second folder is the person."
        )
    for person, spellings in roster.people(report).items():
        yield PersonFiles(person, tuple(file for spelling in spellings for file in found[spelling]))
