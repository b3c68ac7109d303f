"""Counts of what an import did with every row: read, kept or set aside, with file and line.

A bad row never costs a good row and is never dropped silently. Readers count into an `IngestReport`; the reports of
several people, files or machines merge into one. The report names files and lines, never the content of a row. File
names may hold ids, so the report is not part of a dataset to share.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

from lsm_jax.errors import RunError

SAMPLES_PER_REASON = 20
MAX_PRINTED = 20  # of each list on the terminal
MAX_SENTENCES = 500  # of each list: a folder of a million stray files must not fill the report


class BadRows(pydantic.BaseModel):
    """Rows (or cells) that were set aside for one reason."""

    rows: int = 0
    samples: list[str] = []  # at most `SAMPLES_PER_REASON` positions, "file:line"

    def add(self, rows: int, samples: Iterable[str]) -> None:
        self.rows += rows
        self.samples = [*self.samples, *samples][:SAMPLES_PER_REASON]


class IngestReport(pydantic.BaseModel):
    """Counts of an import. Each list holds a sentence once, at most `MAX_SENTENCES` of them."""

    rows_read: int = 0  # rows (of text or tables) or raw samples that were parsed
    rows_kept: int = 0  # those that became a value, an event or a label
    rows_ignored: int = 0  # those of which no channel, event or label is read
    quarantined: dict[str, BadRows] = {}  # reason -> rows set aside; a row is set aside at most once
    damaged_cells: dict[str, BadRows] = {}  # channel -> cells that are not numbers, in rows that were kept
    replaced_cells: dict[str, BadRows] = {}  # what was read as which number -> cells
    incomplete_files: dict[str, BadRows] = {}  # what could not be read -> files that were read without it
    files_used: dict[str, str] = {}  # file -> what it was taken for
    files_set_aside: list[str] = []  # "file: reason" for whole files that were refused or unreadable
    files_ignored: list[str] = []  # "file: reason" for files that are not of this format
    ignored: Counter[str] = Counter()  # by reason: all of these files
    notes: list[str] = []  # other facts about the import
    disordered: int = 0  # samples earlier than the sample before them in the file
    # Every `Counter` is by channel, unless it says otherwise.
    duplicates: Counter[str] = Counter()  # or by kind of event: rows that repeat another, which were dropped
    conflicts: Counter[str] = Counter()  # instants for which one sensor gave several different values
    label_conflicts: Counter[str] = Counter()  # by label: values that a later one of the same person or day replaced
    overlaps: Counter[str] = Counter()  # minutes that several sensors recorded
    outranked_minutes: Counter[str] = Counter()  # by "CHANNEL of a KIND": minutes for which a better source was taken
    # By (channel, source, "used" or "set aside"). Names of sources hold names of people: no file gets them.
    source_minutes: Counter[tuple[str, str, str]] = pydantic.Field(default_factory=Counter, exclude=True)
    invalid: Counter[str] = Counter()  # values the device itself marked as not valid
    implausible: Counter[str] = Counter()  # values outside the registry's range
    partial_minutes: Counter[str] = Counter()  # minutes of a count that were covered for less than half
    not_worn_minutes: int = 0  # minutes whose zeros mean "not worn"
    repeated_hour_minutes: int = 0  # minutes dropped since the wall clock showed them twice (end of summer time)
    people_in_utc: int = 0  # people of whom no time zone is known: their days are those of UTC
    people_on_wall_clock: int = 0  # people whose wall-clock times are of no known zone
    # What was written, and what was empty:
    people: int = 0
    people_without_data: int = 0
    people_set_aside: int = 0  # the reader failed on them
    days: int = 0
    days_without_data: int = 0
    cells: Counter[str] = Counter()  # of all windows
    observed_cells: Counter[str] = Counter()

    def quarantine(self, reason: str, file: str, lines: Iterable[int] = (), rows: int | None = None) -> None:
        """Sets rows aside.

        Args:
          reason: a short clause, the same for all rows of the kind ("time is not readable").
          lines: line numbers, 1-based; the first few become samples.
          rows: how many rows, where that is not the number of `lines`.
        """
        _add(self.quarantined, reason, file, list(lines), rows)

    def unkeep(self, reason: str, file: str, lines: Iterable[int] = (), rows: int | None = None) -> None:
        """Sets rows aside that were counted as kept; arguments as of `quarantine`."""
        before = self.rows_quarantined
        self.quarantine(reason, file, lines, rows)
        self.rows_kept -= self.rows_quarantined - before

    def damage(self, channel: str, file: str, lines: Iterable[int]) -> None:
        """Counts cells of a channel that are not numbers, in rows whose other cells are kept."""
        _add(self.damaged_cells, channel, file, list(lines))

    def replace(self, replacement: str, file: str, lines: Iterable[int]) -> None:
        """Counts cells of text that stand for a number; `replacement` says for which."""
        _add(self.replaced_cells, replacement, file, list(lines))

    def add_labels(self, labels: dict[str, float | str], more: Mapping[str, float | str]) -> None:
        """Adds labels to those of a person or a day. The later of two values is used; contradictions are counted."""
        for name, value in more.items():
            if labels.get(name, value) != value:
                self.label_conflicts[name] += 1
            labels[name] = value

    def lack(self, what: str, file: str) -> None:
        """Counts a file of which a part cannot be read."""
        _add(self.incomplete_files, what, file, [], 1)

    def use(self, file: str, what: str = "") -> None:
        """Records a file that is used, and what it is taken for; it may be taken for several things."""
        _use(self.files_used, file, what)

    def set_aside(self, file: str, reason: str) -> None:
        """Records a whole file that cannot be used. The other files are still read."""
        _append_once(self.files_set_aside, f"{file.encode('utf-8', 'backslashreplace').decode()}: {reason}")

    def ignore(self, file: str, reason: str) -> None:
        """Records a file that is not of this format."""
        _append_once(self.files_ignored, f"{file}: {reason}")
        self.ignored[reason] += 1

    def claim(self, file: str) -> None:
        """Forgets that the format does not know a file, since a mapping uses it."""
        for sentence in self.files_ignored:
            if sentence.startswith(f"{file}: "):
                self.ignored[sentence.removeprefix(f"{file}: ")] -= 1
        for sentences in (self.files_ignored, self.files_set_aside):
            sentences[:] = [each for each in sentences if not each.startswith(f"{file}: ")]

    def note(self, sentence: str) -> None:
        _append_once(self.notes, sentence)

    @property
    def rows_unaccounted(self) -> int:
        """Rows that were read and neither kept nor ignored nor set aside: 0 between one file and the next."""
        return self.rows_read - self.rows_kept - self.rows_ignored - self.rows_quarantined

    def check(self) -> None:
        """RunError unless the rows add up."""
        if self.rows_unaccounted:
            raise RunError(
                f"rows do not add up: {self.rows_read:,} read, {self.rows_kept:,} kept, {self.rows_ignored:,} ignored, "
                f"{self.rows_quarantined:,} set aside. This is a fault of the reader and not of the files; please "
                "report it. Nothing was written."
            )

    @property
    def rows_quarantined(self) -> int:
        return sum(entry.rows for entry in self.quarantined.values())

    def missing_share(self) -> dict[str, float]:
        """Per channel, the share of cells of all windows that were not observed."""
        return {name: 1 - self.observed_cells[name] / cells for name, cells in self.cells.items() if cells}

    def merge(self, other: IngestReport) -> IngestReport:
        """Adds another report's counts to this one and returns this one."""
        for name, added in other:
            mine = getattr(self, name)
            if isinstance(mine, Counter):
                mine.update(added)
            elif name == "files_used":
                for file, what in added.items():
                    _use(mine, file, what)
            elif isinstance(mine, dict):
                for reason, entry in added.items():
                    mine.setdefault(reason, BadRows()).add(entry.rows, entry.samples)
            elif isinstance(mine, list):
                for sentence in added:
                    _append_once(mine, sentence)
            else:
                setattr(self, name, mine + added)
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, with the derived totals."""
        return self.model_dump() | {
            "rows_quarantined": self.rows_quarantined,
            "missing_share": {name: round(share, 5) for name, share in self.missing_share().items()},
        }

    def write(self, path: Path, **more: Any) -> None:
        """Writes the report and the entries of `more` as JSON."""
        path.write_text(json.dumps(self.to_json() | more, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> IngestReport:
        """The report that `write` wrote."""
        return cls.model_validate_json(path.read_bytes())

    def sentences(self, others: str = "ingest_report.json names them") -> Iterator[str]:
        """The report in words: totals, then everything that was not used. `others`: where ignored files are named."""
        ignored = (
            f", {self.rows_ignored:,} ignored (no channel, event or label is read from them)"
            if self.rows_ignored
            else ""
        )
        yield (f"rows: {self.rows_read:,} read, {self.rows_kept:,} kept, {self.rows_quarantined:,} set aside{ignored}")
        failed = f", set aside {self.people_set_aside}" if self.people_set_aside else ""
        yield (
            f"people: {self.people}, without data {self.people_without_data}{failed}; days: {self.days}, "
            f"without data {self.days_without_data}; not worn: {self.not_worn_minutes:,} minutes"
        )
        if self.people_in_utc:
            yield (
                f"  {self.people_in_utc:,} people: no time zone is known, so hours and days are those of UTC and not "
                "those of their lives. Name the zone: --time-zone Europe/Berlin, or time_zone in a mapping"
            )
        if self.people_on_wall_clock:
            yield (
                f"  {self.people_on_wall_clock:,} people: hours and days are those of the clock in the files, whose "
                "time zone is not known; start times are written as if it were UTC (--time-zone names it)"
            )
        for reason, entry in self.quarantined.items():
            yield f"  {entry.rows:,} rows: {reason} ({', '.join(entry.samples[:3])})"
        for channel, entry in self.damaged_cells.items():
            yield f"  {entry.rows:,} cells of {channel} are not numbers ({', '.join(entry.samples[:3])})"
        for replacement, entry in self.replaced_cells.items():
            yield f"  {entry.rows:,} cells: {replacement} ({', '.join(entry.samples[:3])})"
        for what, entry in self.incomplete_files.items():
            yield f"  {entry.rows:,} files: {what} ({', '.join(entry.samples[:3])})"
        for source, minutes in self.outranked_minutes.items():
            fix = "see --prefer; --dry-run shows the names"
            yield f"  {source}: {minutes:,} minutes set aside, since a better source has them ({fix})"
        for what, counts in (
            ("rows repeat another in every column that is read and were dropped", self.duplicates),
            ("instants have several values of one sensor, averaged or added (see aggregate)", self.conflicts),
            ("values of a label contradict a later one of the same person or day, which is used", self.label_conflicts),
            ("minutes of a count were covered for less than half and are unobserved", self.partial_minutes),
        ):
            if total := counts.total():
                channels = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
                yield f"  {total:,} {what} ({channels})"
        if self.disordered:
            yield f"  {self.disordered:,} samples were out of order and were sorted"
        if self.repeated_hour_minutes:
            yield f"  {self.repeated_hour_minutes:,} minutes of an hour that the clock showed twice were dropped"
        for sentences in (self.files_set_aside, self.notes):
            yield from (f"  {sentence}" for sentence in sentences[:MAX_PRINTED])
            if len(sentences) > MAX_PRINTED:
                yield f"  {len(sentences) - MAX_PRINTED:,} more of these stand in ingest_report.json"
        if total := self.ignored.total():
            reasons = ", ".join(
                f"{count:,} {reason}" for reason, count in self.ignored.most_common(MAX_PRINTED) if count
            )
            yield f"  {total:,} files are not read ({reasons}); {others}"


def _add(entries: dict[str, BadRows], key: str, file: str, lines: list[int], rows: int | None = None) -> None:
    count = len(lines) if rows is None else rows
    if count:
        samples = [f"{file}:{line}" for line in lines[:SAMPLES_PER_REASON]] or [file]
        entries.setdefault(key, BadRows()).add(count, samples)


def _use(files: dict[str, str], file: str, what: str) -> None:
    uses = dict.fromkeys(filter(None, (*files.get(file, "").split("; "), *what.split("; "))))
    if file in files or len(files) < MAX_SENTENCES:
        files[file] = "; ".join(uses)


def _append_once(sentences: list[str], sentence: str) -> None:
    if len(sentences) < MAX_SENTENCES and sentence not in sentences:
        sentences.append(sentence)
