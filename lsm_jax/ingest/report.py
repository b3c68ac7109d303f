"""What happened to every row of an import: read, kept, or set aside, with the place where it stands.

Bad input never costs good data, and never passes silently either. Readers count into an `IngestReport`;
reports of several people, files or machines merge into one. The report names files and lines, never the
content of a row; the names of files may hold ids, so it is no part of a dataset to share.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SAMPLES_PER_REASON = 20
SENTENCES = 500  # of a list; a folder of a million stray files must not fill the report


@dataclasses.dataclass
class Quarantined:
    """Rows set aside for one reason.

    Attributes:
      rows: how many.
      samples: at most `SAMPLES_PER_REASON` places, "file:line".
    """

    rows: int = 0
    samples: list[str] = dataclasses.field(default_factory=list)

    def add(self, rows: int, places: Iterable[str]) -> None:
        self.rows += rows
        for place in places:
            if len(self.samples) >= SAMPLES_PER_REASON:
                break
            self.samples.append(place)


@dataclasses.dataclass
class IngestReport:
    """Counts of an import; merge with `merge`, write with `write`.

    Attributes:
      rows_read: rows (of text or tables) or raw samples looked at.
      rows_kept: those that became a value, an event or a label.
      rows_ignored: rows of signals nobody asked for.
      quarantined: reason -> rows set aside; a row is set aside at most once.
      damaged_cells: channel -> cells that are not numbers, in rows otherwise kept.
      files_set_aside: "file: why" for whole files refused or unreadable.
      files_ignored: "file: why" for files recognised as nothing this reader reads.
      notes: anything else a person should know. These three lists say a thing once and end at `SENTENCES`.
      disordered: samples that stood before their predecessor in time.
      duplicates: per channel, samples dropped because the same minute already had that value.
      conflicts: per channel, minutes for which one sensor gave several different values.
      overlaps: per channel, minutes that several sensors recorded.
      invalid: per channel, values the device itself marked as not valid.
      implausible: per channel, values outside the registry's range.
      not_worn_minutes: minutes whose zeros mean "not worn".
      repeated_hour_minutes: samples dropped because their wall-clock minute came twice (end of summer time).
      people, people_without_data, days, days_without_data: what came out.
      cells, observed_cells: per channel, cells of all windows, and those observed.
    """

    rows_read: int = 0
    rows_kept: int = 0
    rows_ignored: int = 0
    quarantined: dict[str, Quarantined] = dataclasses.field(default_factory=dict)
    damaged_cells: dict[str, Quarantined] = dataclasses.field(default_factory=dict)
    files_set_aside: list[str] = dataclasses.field(default_factory=list)
    files_ignored: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    disordered: int = 0
    duplicates: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    conflicts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    overlaps: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    invalid: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    implausible: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    not_worn_minutes: int = 0
    repeated_hour_minutes: int = 0
    people: int = 0
    people_without_data: int = 0
    days: int = 0
    days_without_data: int = 0
    cells: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    observed_cells: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def quarantine(self, reason: str, file: str, lines: Iterable[int] = (), rows: int | None = None) -> None:
        """Sets rows aside.

        Args:
          reason: a short clause, the same for all rows of the kind ("time is not readable").
          file: the file, relative to the source folder.
          lines: their line numbers, 1-based; the first few become samples.
          rows: how many rows, where that is not the number of `lines`.
        """
        lines = list(lines)
        count = len(lines) if rows is None else rows
        if count:
            places = (f"{file}:{line}" for line in lines[:SAMPLES_PER_REASON])
            self.quarantined.setdefault(reason, Quarantined()).add(count, places)

    def damage(self, channel: str, file: str, lines: Iterable[int]) -> None:
        """Cells of a channel that are not numbers, in rows whose other cells are kept."""
        lines = list(lines)
        if lines:
            places = (f"{file}:{line}" for line in lines[:SAMPLES_PER_REASON])
            self.damaged_cells.setdefault(channel, Quarantined()).add(len(lines), places)

    def set_aside(self, file: str, why: str) -> None:
        """A whole file that cannot be used, with the reason; the other files go on."""
        _say_once(self.files_set_aside, f"{file.encode('utf-8', 'backslashreplace').decode()}: {why}")

    def ignore(self, file: str, why: str) -> None:
        """A file this reader recognises as nothing it reads."""
        _say_once(self.files_ignored, f"{file}: {why}")

    def note(self, sentence: str) -> None:
        _say_once(self.notes, sentence)

    @property
    def rows_quarantined(self) -> int:
        return sum(entry.rows for entry in self.quarantined.values())

    def missing_share(self) -> dict[str, float]:
        """Per channel, the share of cells of all windows that were not observed."""
        return {name: 1 - self.observed_cells[name] / cells for name, cells in self.cells.items() if cells}

    def merge(self, other: IngestReport) -> IngestReport:
        """Adds another report's counts to this one and returns it."""
        for mine, theirs in ((self.quarantined, other.quarantined), (self.damaged_cells, other.damaged_cells)):
            for reason, entry in theirs.items():
                mine.setdefault(reason, Quarantined()).add(entry.rows, entry.samples)
        for field in dataclasses.fields(self):
            ours, added = getattr(self, field.name), getattr(other, field.name)
            if isinstance(ours, collections.Counter):
                ours.update(added)
            elif isinstance(ours, list):
                for sentence in added:
                    _say_once(ours, sentence)
            elif isinstance(ours, int):
                setattr(self, field.name, ours + added)
        return self

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, with the derived totals."""
        # Not dataclasses.asdict: it rebuilds a Counter from its items, which counts the items.
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("quarantined", "damaged_cells"):
            plain[name] = {reason: dataclasses.asdict(entry) for reason, entry in plain[name].items()}
        return plain | {
            "rows_quarantined": self.rows_quarantined,
            "missing_share": {name: round(share, 5) for name, share in self.missing_share().items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> IngestReport:
        """The report that `to_json` wrote."""
        report = cls()
        for field in dataclasses.fields(cls):
            value = content[field.name]
            if field.name in ("quarantined", "damaged_cells"):
                value = {reason: Quarantined(**entry) for reason, entry in value.items()}
            elif isinstance(getattr(report, field.name), collections.Counter):
                value = collections.Counter(value)
            setattr(report, field.name, value)
        return report

    def write(self, path: Path, **more: Mapping[str, Any] | Any) -> None:
        """Writes the report, and `more` beside it, as JSON."""
        path.write_text(json.dumps(self.to_json() | more, indent=2, sort_keys=False) + "\n", encoding="utf-8")


def _say_once(sentences: list[str], sentence: str) -> None:
    if len(sentences) < SENTENCES and sentence not in sentences:
        sentences.append(sentence)
