"""Finds the person of each E4 session from its folders, and labels of people from a study's own tables.

The folder rules, for the levels of folders between the source and a session:

- Folders that name a time (a date, `session 2`, E4 Connect's `1684532969_A01B2C`: start and device) and levels with the
  same name for all sessions are skipped.
- Of `CLASS/PERSON` and `PERSON/CLASS` the level with numbers in its names is the people; the upper one if most lower
  names occur in one folder only. Where both could be, that is refused, and the user says it (`PeopleRule`).
- A class ("STRESS") becomes an event of kind "session" and name "stress" if several people have it. A name that only
  one person has, or with a number in it, may be an id and is never written.

The tables are those of the "Wearable Device Dataset from Induced Stress and Structured Exercise Sessions" (PhysioNet,
10.1038/s41597-025-04845-9). Without them people have no labels.
"""

from __future__ import annotations

import collections
import csv
import re
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from pathlib import Path, PurePosixPath

from lsm_jax.errors import UserError
from lsm_jax.ingest.files.opening import read_bytes
from lsm_jax.ingest.files.source import MIB, SourceFile, UnreadableFile
from lsm_jax.ingest.people.ids import identity
from lsm_jax.ingest.people.rules import PersonRule
from lsm_jax.ingest.report import IngestReport

_CONNECT = re.compile(r"(?P<start>\d{9,11})_(?P<device>[0-9A-Za-z]+)")
_DATE = r"20[12]\d(?P<mark>[-_.]?)[01]\d(?P=mark)[0-3]\d(?:[-_. T].*)?"
_TIME_NAME = re.compile(rf"{_CONNECT.pattern}|{_DATE}|(?:session|visit|day|night|week)[-_ ]?\d+", re.I)
_ID = re.compile(r"(?!E4$)[^\W\d]{0,8}[-_ ]?\d{1,6}", re.I)  # S01, sub-12, 7; no name of a study with a version
_PART_OF_RECORDING = re.compile(r"(?P<person>.+)_[a-z]")

Labels = dict[str, float | str]

# Folders.


def assign_sessions(
    folders: Iterable[PurePosixPath], source: Path, known_people: Set[str], report: IngestReport
) -> dict[PurePosixPath, tuple[str, str]]:
    """(raw person id, session class or "") of each session's folder; the study's tables name `known_people`."""
    names = {folder: tuple(part for part in folder.parts if not _TIME_NAME.fullmatch(part)) for folder in folders}
    all_names = {*known_people}.union(*names.values())
    found: dict[PurePosixPath, tuple[str, str]] = {}
    # Depth by depth: one session that lies deeper than the others must not shift their levels.
    for depth in sorted({len(parts) for parts in names.values()}):
        rows = {
            folder: tuple(_without_part_suffix(part, all_names) for part in parts)
            for folder, parts in names.items()
            if len(parts) == depth
        }
        if depth:
            found |= _read_levels(rows, {*known_people, *(person for person, _ in found.values())}, report)
            continue
        for folder in rows:
            connect = _CONNECT.fullmatch(folder.name)
            found[folder] = (connect["device"] if connect else source.resolve().stem), ""
        report.note(f"{len(rows)} sessions lie in no folder of a person: each device, or the source, is a person.")
    return found


def assign_sessions_by_rule(
    labels: Mapping[PurePosixPath, str], rule: PersonRule, report: IngestReport
) -> dict[PurePosixPath, tuple[str, str]]:
    """As `assign_sessions`, where the user says who a file belongs to; `labels` is a file of each folder.

    Sessions for which the rule finds no person are set aside.
    """
    people: dict[PurePosixPath, str] = {}
    for folder, label in labels.items():
        person, fault = rule.of_file(label)
        if fault:
            report.set_aside(str(folder), f"the rule of people {fault}")
        else:
            people[folder] = person
    found: dict[PurePosixPath, tuple[str, str]] = {}
    for depth in sorted({len(folder.parts) for folder in people}):
        rows = {folder: folder.parts for folder in people if len(folder.parts) == depth}
        classes = [
            level
            for level in reversed(range(depth))
            if not any(people[folder] in row[level] or _TIME_NAME.fullmatch(row[level]) for folder, row in rows.items())
        ]
        found |= _with_classes(rows, people, classes)
    return found


def _read_levels(
    rows: Mapping[PurePosixPath, tuple[str, ...]], known_people: Set[str], report: IngestReport
) -> dict[PurePosixPath, tuple[str, str]]:
    """(person, class or "") of folders of one depth, from the names of their levels."""
    levels = [set(names) for names in zip(*rows.values(), strict=True)]
    person = _person_level([tuple(map(identity, row)) for row in rows.values()], {*map(identity, known_people)})
    # Classes are looked for below the person first, the nearest level before the farther ones.
    order = (*range(person + 1, len(levels)), *range(person - 1, -1, -1))
    classes = [level for level in order if len(levels[level]) > 1]
    layout = "/".join("PERSON" if i == person else "CLASS" if i in classes else "*" for i in range(len(levels)))
    report.note(
        f"{len(rows)} sessions were read as {layout}, {len(levels[person])} people (folders of dates and of one name, "
        "*, are skipped). If these are not the people, say where they are: --person '{person}' is the first folder, "
        "'*/{person}' the second."
    )
    whole = _join_parts(levels[person])
    return _with_classes(rows, {folder: whole[row[person]] for folder, row in rows.items()}, classes)


def _join_parts(names: Set[str]) -> dict[str, str]:
    """{name: person}: S03_a and S03_b are parts of S03, unless the letters are all that tells the names apart.

    Raises:
      UserError: they are.
    """
    stems = {name: part["person"] for name in names if (part := _PART_OF_RECORDING.fullmatch(name))}
    several = {stem for stem, count in collections.Counter(stems.values()).items() if count > 1}
    if several and len(stems) == len(names) and len({*stems.values()}) == 1:
        raise UserError(
            f"{len(names)} folders differ only in the letter at their end: parts of one person's recording, or people? "
            "Say it: --person '{person}_?' joins them, --person '{person}' makes each a person (folders above: '*/')."
        )
    return {name: stems[name] if stems.get(name) in several else name for name in names}


def _with_classes(
    rows: Mapping[PurePosixPath, tuple[str, ...]], people: Mapping[PurePosixPath, str], classes: Sequence[int]
) -> dict[PurePosixPath, tuple[str, str]]:
    """(person, class or "") of folders: the class is the first name in these levels that several people have."""
    people_with = collections.defaultdict[tuple[int, str], set[str]](set)
    for folder, row in rows.items():
        for level in classes:
            people_with[level, row[level]].add(people[folder])
    shared = {key for key, who in people_with.items() if len(who) > 1 and not _all_have_digits([key[1]])}
    return {
        folder: (people[folder], next((row[level].lower() for level in classes if (level, row[level]) in shared), ""))
        for folder, row in rows.items()
    }


def _person_level(rows: Sequence[tuple[str, ...]], known_people: Set[str]) -> int:
    """The level of folders whose names are the people.

    It is a level that holds only known people, if there is one. Of the levels with several names, the lowest is left
    out if most of its names occur in one folder only: those are sessions. Of the others it is the level with numbers in
    its names (S01 in STRESS), or the only one. Where no level with several names has numbers, a level of one name
    with a number (S01 above rest, run) is the person.

    Raises:
      UserError: several levels could be the people.
    """
    levels = [set(names) for names in zip(*rows, strict=True)]
    for level, names in enumerate(levels):
        if names <= known_people:
            return level
    candidates = [level for level, names in enumerate(levels) if len(names) > 1]
    lowest = max(candidates, default=0)
    folders_with = collections.Counter(name for _, name in {(row[:lowest], row[lowest]) for row in rows})
    if len(candidates) > 1 and 2 * sum(count > 1 for count in folders_with.values()) < len(folders_with):
        candidates.remove(lowest)
    single = [level for level, names in enumerate(levels) if len(names) == 1 and any(map(_ID.fullmatch, names))]
    numbered = [level for level in candidates if _all_have_digits(levels[level])]
    # One name above several (P01 above S1 and S2) may be the person or the study.
    found = numbered + [level for level in single if level < lowest] if numbered else single
    found = (found or candidates) if candidates else (single or [len(levels) - 1])[-1:]
    # Of levels that group the sessions alike (S2/S2_E4_Data) the upper one.
    found = [*{_grouping(rows, level): level for level in reversed(found)}.values()]
    if len(found) > 1:
        raise UserError(
            f"{len(rows)} sessions lie in folders of {len(levels)} levels, and names of several levels could be the "
            "people. Say which: --person '{person}' for the first folder, '*/{person}' for the second."
        )
    return found[0]


def _grouping(rows: Sequence[tuple[str, ...]], level: int) -> tuple[int, ...]:
    """For each row the first row that has the same name at the level."""
    first: dict[str, int] = {}
    return tuple(first.setdefault(row[level], place) for place, row in enumerate(rows))


def _all_have_digits(names: Iterable[str]) -> bool:
    return all(re.search(r"\d", name) for name in names)


def _without_part_suffix(name: str, names: Container[str]) -> str:
    """The name without the `_a`, `_b` of a recording in several parts, where the whole name is known too."""
    part = _PART_OF_RECORDING.fullmatch(name)
    return part["person"] if part and part["person"] in names else name


# The study's tables.

_PEOPLE, _RATINGS, _FAULTS = "subject-info.csv", re.compile(r"stress_level.*\.csv", re.I), "data_constraints.txt"
_SEX = {"m": "M", "male": "M", "f": "F", "female": "F"}
# column -> (label, lowest and highest plausible value)
_NUMBERS = {"Age": ("age", 1, 120), "Height (cm)": ("height_cm", 50, 260), "Weight (kg)": ("weight_kg", 20, 400)}
_YES_NO = {"yes": 1.0, "no": 0.0}
# "only the ELECTRODERMAL ACTIVITY AND ACCELEROMETER DATA measurements are valid"
_ONLY_VALID = re.compile(r"(?P<session>\w+):.*\bonly the (?P<sensors>.+?) (?:data )?measurements are valid", re.I)
_SENSOR_WORDS = {"accelero": "ACC", "electroderm": "EDA", "temp": "TEMP", "ppg": "PPG", "heart": "PPG"}


def is_study_table(file: SourceFile) -> bool:
    return file.name.lower() in (_PEOPLE, _FAULTS) or bool(_RATINGS.fullmatch(file.name))


def read_study_tables(
    files: Iterable[SourceFile], report: IngestReport
) -> tuple[dict[str, Labels], dict[tuple[str, str], set[str]]]:
    """Reads the study's own tables; unreadable ones are set aside.

    Returns:
      The labels of each person, and the only sensors to use of some sessions, by (session class in lower case, session
      folder).
    """
    labels: dict[str, Labels] = collections.defaultdict(dict)
    valid_sensors: dict[tuple[str, str], set[str]] = {}
    for file in files:
        report.use(file.label, "a table of the study")
        try:
            # Windows encodings of a bullet or an accent become replacement characters, which no label needs.
            text = read_bytes(file, max_bytes=4 * MIB).decode("utf-8-sig", "replace")
            if file.name.lower() == _FAULTS:
                valid_sensors |= _valid_sensors(text, file, report)
                continue
            table = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
        except UnreadableFile as error:
            report.set_aside(file.label, str(error))
            continue
        except csv.Error as error:
            report.set_aside(file.label, f"not a readable table ({error})")
            continue
        for number, cells in enumerate(table[1:], 2):
            row = dict(zip(table[0][1:], cells[1:], strict=False))
            # Rows without an id, and rows of people without a sex, are footnotes.
            if not cells or not cells[0] or (file.name.lower() == _PEOPLE and _sex(row) is None):
                continue
            report.rows_read += 1
            if file.name.lower() == _PEOPLE:
                found = _person_labels(row, f"{file.label}:{number}", report)
            else:
                found = _stress_ratings(row)
            if found:
                report.add_labels(labels[cells[0]], found)
                report.rows_kept += 1
            else:
                report.quarantine("no stress rating from 0 to 10", file.label, [number])
    return labels, valid_sensors


def _sex(row: Mapping[str, str]) -> str | None:
    return _SEX.get(row.get("Gender", "").lower())


def _person_labels(row: Mapping[str, str], position: str, report: IngestReport) -> Labels:
    """Sex, age, height, weight, body mass index and activity of a person."""
    labels: Labels = {"sex": _sex(row) or ""}
    for column, (label, low, high) in _NUMBERS.items():
        value = _number(row.get(column, ""))
        if value is not None and low <= value <= high:
            labels[label] = value
        elif value is not None:
            report.note(f"{position}: {column} is not plausible and was left out.")
    if "height_cm" in labels and "weight_kg" in labels:
        labels["bmi"] = round(float(labels["weight_kg"]) / (float(labels["height_cm"]) / 100) ** 2, 2)
    active = row.get("Does physical activity regularly?", "").lower()
    if active in _YES_NO:
        labels["physically_active"] = _YES_NO[active]
    return labels


def _stress_ratings(row: Mapping[str, str]) -> Labels:
    """Self-rated stress, 0 to 10, at each stage of the protocol, and its mean."""
    rated = {name: _number(cell) for name, cell in row.items() if name}
    ratings = {
        f"stress_{name.lower().replace(' ', '_')}": value
        for name, value in rated.items()
        if value is not None and 0 <= value <= 10
    }
    return {**ratings, "stress_mean": round(sum(ratings.values()) / len(ratings), 3)} if ratings else {}


def _valid_sensors(text: str, file: SourceFile, report: IngestReport) -> dict[tuple[str, str], set[str]]:
    """Sessions of which the authors call only some sensors valid."""
    session_class, found = "", {}
    for number, line in enumerate(text.splitlines(), 1):
        if re.fullmatch(r"\s*[A-Z]+\s*", line):
            session_class = line.strip().lower()
        elif remark := _ONLY_VALID.search(line):
            sensors = {sensor for word, sensor in _SENSOR_WORDS.items() if word in remark["sensors"].lower()}
            found[session_class, remark["session"]] = sensors
            report.note(f"{file.label}:{number}: of this session only {', '.join(sorted(sensors))} are used.")
    return found


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None  # also rejects NaN and infinity
