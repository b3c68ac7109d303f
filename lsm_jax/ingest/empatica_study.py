"""What a study puts beside its E4 sessions: who the people are, how they felt, what went wrong.

The tables are those of the "Wearable Device Dataset from Induced Stress and Structured Exercise Sessions"
(PhysioNet, 10.1038/s41597-025-04845-9); a folder without them gives people without labels.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterable, Mapping

from lsm_jax.ingest.files import Limits, Refused, SourceFile, read_whole
from lsm_jax.ingest.report import IngestReport

PEOPLE, RATINGS, FAULTS = "subject-info.csv", re.compile(r"stress_level.*\.csv", re.I), "data_constraints.txt"
_SMALL = 4 << 20
_NUMBERS = {"Age": ("age", 1, 120), "Height (cm)": ("height_cm", 50, 260), "Weight (kg)": ("weight_kg", 20, 400)}
# "only the ELECTRODERMAL ACTIVITY AND ACCELEROMETER DATA measurements are valid"
_ONLY_VALID = re.compile(r"(?P<session>\w+):.*\bonly the (?P<kept>.+?) (?:data )?measurements are valid", re.I)
_SENSOR_WORDS = {"accelero": "ACC", "electroderm": "EDA", "temp": "TEMP", "ppg": "PPG", "heart": "PPG"}


@dataclasses.dataclass(frozen=True)
class Study:
    """Attributes:
    labels: person -> label -> number or string.
    valid_only: (session class in lower case, session folder) -> the only sensors of it to trust.
    """

    labels: Mapping[str, dict[str, float | str]]
    valid_only: Mapping[tuple[str, str], frozenset[str]]


def is_study_file(file: SourceFile) -> bool:
    return file.name.lower() in (PEOPLE, FAULTS) or bool(RATINGS.fullmatch(file.name))


def read_study(files: Iterable[SourceFile], report: IngestReport, limits: Limits) -> Study:
    """Labels and known faults from the study's own tables; unreadable ones are set aside."""
    labels: dict[str, dict[str, float | str]] = {}
    faults: dict[tuple[str, str], frozenset[str]] = {}
    for file in files:
        try:
            # Windows spellings of a bullet or an accent become replacement characters, which no label needs.
            text = read_whole(file, limits, most=_SMALL).decode("utf-8-sig", "replace")
        except Refused as refusal:
            report.set_aside(file.label, str(refusal))
            continue
        if file.name.lower() == FAULTS:
            faults |= _faults(text, file, report)
            continue
        read = _person_labels if file.name.lower() == PEOPLE else _ratings
        try:
            for person, found in read(text, file, report):
                labels.setdefault(person, {}).update(found)
        except csv.Error as error:  # before the first row: the table is split as a whole
            report.set_aside(file.label, f"not a readable table ({error})")
    return Study(labels, faults)


def _table(text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the rows that begin with an id and are as long as the header, with their line numbers."""
    lines = list(csv.reader(text.splitlines()))
    names = [name.strip() for name in lines[0]] if lines else []
    return names, [(number, [cell.strip() for cell in row]) for number, row in enumerate(lines[1:], 2)]


def _person_labels(text: str, file: SourceFile, report: IngestReport) -> Iterable[tuple[str, dict[str, float | str]]]:
    names, table = _table(text)
    for number, cells in table:
        row = dict(zip(names, cells, strict=False))
        sex = {"m": "M", "male": "M", "f": "F", "female": "F"}.get(row.get("Gender", "").lower())
        if not cells or not cells[0] or sex is None:
            continue  # a footnote of the table
        report.rows_read += 1
        found: dict[str, float | str] = {"sex": sex}
        for column, (label, low, high) in _NUMBERS.items():
            value = _number(row.get(column, ""))
            if value is not None and low <= value <= high:
                found[label] = value
            elif value is not None:
                report.note(f"{file.label}:{number}: {column} is not plausible and was left out.")
        if "height_cm" in found and "weight_kg" in found:
            found["bmi"] = round(float(found["weight_kg"]) / (float(found["height_cm"]) / 100) ** 2, 2)
        active = {"yes": 1.0, "no": 0.0}.get(row.get("Does physical activity regularly?", "").lower())
        if active is not None:
            found["physically_active"] = active
        report.rows_kept += 1
        yield cells[0], found


def _ratings(text: str, file: SourceFile, report: IngestReport) -> Iterable[tuple[str, dict[str, float | str]]]:
    """Self-rated stress, 0 to 10, at each stage of the protocol."""
    names, table = _table(text)
    for number, cells in table:
        if not cells or not cells[0]:
            continue
        report.rows_read += 1
        rated = {name: _number(cell) for name, cell in zip(names[1:], cells[1:], strict=False) if name}
        found = {
            f"stress_{name.lower().replace(' ', '_')}": value
            for name, value in rated.items()
            if value is not None and 0 <= value <= 10
        }
        if not found:
            report.quarantine("no stress rating from 0 to 10", file.label, [number])
            continue
        report.rows_kept += 1
        labels: dict[str, float | str] = {**found, "stress_mean": round(sum(found.values()) / len(found), 3)}
        yield cells[0], labels


def _faults(text: str, file: SourceFile, report: IngestReport) -> dict[tuple[str, str], frozenset[str]]:
    """Sessions of which the authors trust only some sensors; every other remark goes to the report."""
    kind, found = "", {}
    for number, line in enumerate(text.splitlines(), 1):
        if re.fullmatch(r"\s*[A-Z]+\s*", line):
            kind = line.strip().lower()
        elif said := _ONLY_VALID.search(line):
            kept = {sensor for word, sensor in _SENSOR_WORDS.items() if word in said["kept"].lower()}
            found[kind, said["session"]] = frozenset(kept)
            report.note(f"{file.label}:{number}: of this session only {', '.join(sorted(kept))} are used.")
    return found


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) < 1e9 else None  # also refuses NaN and infinity
