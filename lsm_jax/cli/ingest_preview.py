"""The pages of `lsm ingest --dry-run`: people, files, days, events and labels."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lsm_jax.cli.tables import print_table

if TYPE_CHECKING:
    from lsm_jax.ingest.preview import PersonPreview, Preview

_MAX_PEOPLE, _MAX_NAMES, _MAX_KINDS, _MAX_SOURCES = 200, 3, 40, 100


def print_preview(found: Preview) -> None:
    """Prints who and what was found. Raw ids and names of sources appear here and are written nowhere."""
    people = found.people
    shown = people[:_MAX_PEOPLE]
    print_table(
        f"{len(people)} people" + (f", the first {len(shown)} of them" if len(shown) < len(people) else ""),
        ("person", "days", "first day", "last day", "hours", "time zone", "events", "labels", "files"),
        map(_row, shown),
    )
    by_use = collections.defaultdict[str, list[str]](list)
    for file, what in found.files.items():
        by_use[what or "of this format"].append(file)
    rows = [(what, len(files), _names(files)) for what, files in sorted(by_use.items())]
    for sentences, outcome in ((found.report.files_ignored, "not used"), (found.report.files_set_aside, "set aside")):
        reasons = collections.defaultdict[str, list[str]](list)
        for sentence in sentences:
            file, _, reason = sentence.partition(": ")
            reasons[reason].append(file)
        rows += [(f"{outcome}: {reason}", len(files), _names(files)) for reason, files in reasons.items()]
    print_table("files", ("taken for", "files", "names"), rows)
    _print_sources(found.report.source_minutes)
    events = collections.Counter[tuple[str, str]]()
    with_event = collections.Counter[tuple[str, str]]()
    with_label = collections.Counter[str]()
    for person in people:
        events.update(person.events)
        with_event.update(person.events.keys())
        with_label.update(person.labels)
    if events:
        most = [(kind, name, count, with_event[kind, name]) for (kind, name), count in events.most_common(_MAX_KINDS)]
        more = f", the {_MAX_KINDS} most frequent" if len(events) > _MAX_KINDS else ""
        print_table(f"{len(events)} kinds of events{more}", ("kind", "name", "events", "people"), most)
    if with_label:
        print_table("labels", ("label", "people"), sorted(with_label.items()))


def _print_sources(minutes: Mapping[tuple[str, str, str], int]) -> None:
    """Prints the sources of channels that several sources recorded: `--prefer` takes a part of a name."""
    names = sorted({(channel, name) for channel, name, _ in minutes})
    several = {channel for channel, count in collections.Counter(channel for channel, _ in names).items() if count > 1}
    rows = [(*each, *(minutes.get((*each, use), 0) for use in ("used", "set aside"))) for each in names]
    if rows := [row for row in rows if row[0] in several]:
        shown = f", the first {_MAX_SOURCES}" if len(rows) > _MAX_SOURCES else ""
        columns = ("channel", "source", "minutes used", "set aside")
        print_table(f"channels of several sources{shown}", columns, rows[:_MAX_SOURCES])


def print_spellings(spellings: Sequence[tuple[str, ...]]) -> None:
    """Prints ids that may be of one person."""
    print_table("one person or several?", ("spellings",), [(" | ".join(map(repr, each)),) for each in spellings])


def _row(person: PersonPreview) -> tuple[object, ...]:
    days = sorted(person.days)
    return (
        person.person,
        len(days),
        str(days[0]) if days else "",
        str(days[-1]) if days else "",
        f"{person.observed_minutes / 60:.1f}",
        person.zone,
        person.events.total(),
        len(person.labels),
        _names(person.files),
    )


def _names(files: Sequence[str]) -> str:
    more = f"\nand {len(files) - _MAX_NAMES} more" if len(files) > _MAX_NAMES else ""
    return "\n".join(files[:_MAX_NAMES]) + more
