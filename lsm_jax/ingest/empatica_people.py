"""Finds the person of each E4 session from its folders, and labels of people from a study's own tables.

The folder rules, for the levels of folders between the source and a session:

- Folders that name a time (a date, `session 2`, E4 Connect's `1684532969_A01B2C`: start and device) and levels with the
  same name for all sessions are skipped.
- Of `CLASS/PERSON` and `PERSON/CLASS` the level with numbers in its names is the people, else the level with more
  names; the upper one if both have as many, or if most lower names occur in one folder only.
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

from lsm_jax.ingest.files import MIB, SourceFile, UnreadableFile, read_bytes
from lsm_jax.ingest.report import IngestReport

_CONNECT = re.compile(r"(?P<start>\d{9,11})_(?P<device>[0-9A-Za-z]+)")
_DATE = r"20[12]\d(?P<mark>[-_.]?)[01]\d(?P=mark)[0-3]\d(?:[-_. T].*)?"
_TIME_NAME = re.compile(rf"{_CONNECT.pattern}|{_DATE}|(?:session|visit|day|night|week)[-_ ]?\d+", re.I)
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


def _read_levels(
    rows: Mapping[PurePosixPath, tuple[str, ...]], known_people: Set[str], report: IngestReport
) -> dict[PurePosixPath, tuple[str, str]]:
    """(person, class or "") of folders of one depth, from the names of their levels."""
    levels = [set(names) for names in zip(*rows.values(), strict=True)]
    person = _person_level(list(rows.values()), levels, known_people)
    # Classes are looked for below the person first, the nearest level before the farther ones.
    order = (*range(person + 1, len(levels)), *range(person - 1, -1, -1))
    classes = [level for level in order if len(levels[level]) > 1]
    people_with = collections.defaultdict[tuple[int, str], set[str]](set)
    for row in rows.values():
        for level in classes:
            people_with[level, row[level]].add(row[person])
    layout = "/".join("PERSON" if i == person else "CLASS" if i in classes else "*" for i in range(len(levels)))
    report.note(
        f"{len(rows)} sessions were read as {layout}, {len(levels[person])} people (folders of dates and of one name, "
        "*, are skipped). If these are not the people, see Empatica E4 in docs/reference/ingest.md."
    )
    shared = {key for key, people in people_with.items() if len(people) > 1 and not _all_have_digits([key[1]])}
    return {
        folder: (row[person], next((row[level].lower() for level in classes if (level, row[level]) in shared), ""))
        for folder, row in rows.items()
    }


def _person_level(rows: Sequence[tuple[str, ...]], levels: Sequence[set[str]], known_people: Set[str]) -> int:
    """The level of folders whose names are the people.

    It is a level that holds only known people, if there is one. Of the levels with several names, the lowest is left
    out if most of its names occur in one folder only: those are sessions. Of the others it is the level with numbers in
    its names (S01 in STRESS), else the one with the most names; the uppermost of several.
    """
    candidates = [level for level, names in enumerate(levels) if len(names) > 1]
    for level in candidates or range(len(levels)):
        if levels[level] <= known_people:
            return level
    if not candidates:
        return len(levels) - 1
    lowest = candidates[-1]
    folders_with = collections.Counter(name for _, name in {(row[:lowest], row[lowest]) for row in rows})
    if len(candidates) > 1 and 2 * sum(count > 1 for count in folders_with.values()) < len(folders_with):
        candidates.remove(lowest)
    candidates = [level for level in candidates if _all_have_digits(levels[level])] or candidates
    return max(candidates, key=lambda level: len(levels[level]))


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
                labels[cells[0]].update(found)
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
