"""Reads exports of glucose sensors: LibreView (FreeStyle Libre) and Dexcom Clarity, in mg/dL or mmol/L.

They are tables, so this is a mapping of the table reader (`described`), written here since its sections differ only in
the unit. Every section is optional: it takes the files that have its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lsm_jax.errors import UserError
from lsm_jax.ingest.described.reader import TableReader
from lsm_jax.ingest.files.opening import first_bytes
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.mapping.file import MappingFile, built_in_mapping
from lsm_jax.ingest.reader import Evidence, ReaderOptions

# The column names of an English account, and those of others. The units are part of the names of glucose.
_COLUMNS = {
    "Device Timestamp": (
        "Meter Timestamp",
        "Gerätezeitstempel",
        "Horodatage de l'appareil",
        "Sello de tiempo del dispositivo",
        "Marca de hora del dispositivo",
        "Timestamp del dispositivo",
        "Tijdstempel apparaat",
    ),
    "Record Type": (
        "Aufzeichnungstyp",
        "Type d'enregistrement",
        "Tipo de registro",
        "Tipo di registro",
        "Gegevenstype",
    ),
    "Timestamp (YYYY-MM-DDThh:mm:ss)": ("Zeitstempel (JJJJ-MM-TTThh:mm:ss)",),
    "Event Type": ("Ereignistyp", "Ereignisart"),
    "Duration (hh:mm:ss)": ("Dauer (hh:mm:ss)",),
}
_GLUCOSE_COLUMNS = {
    "Historic Glucose": (
        "Glukosewert-Verlauf",
        "Historique de la glycémie",
        "Historial de glucosa",
        "Storico del glucosio",
        "Historische glucose",
    ),
    "Scan Glucose": (
        "Glukose-Scan",
        "Numérisation de la glycémie",
        "Scan de glycémie",
        "Escaneo de glucosa",
        "Escanear glucosa",
        "Scansione del glucosio",
    ),
    "Glucose Value": ("Glukosewert",),
}
_UNITS = ("mg/dL", "mmol/L")
# What the devices write outside their range. It becomes the end of the range.
_LIBRE_WORDS = {"mg/dL": {"LO": 40.0, "HI": 500.0}, "mmol/L": {"LO": 2.2, "HI": 27.8}}
_DEXCOM_WORDS = {
    "mg/dL": {"Low": 40.0, "High": 400.0, "Niedrig": 40.0, "Hoch": 400.0},
    "mmol/L": {"Low": 2.2, "High": 22.2, "Niedrig": 2.2, "Hoch": 22.2},
}
_LIBRE_DATES = ("%d-%m-%Y", "%m-%d-%Y", "%Y-%m-%d", "%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d.%m.%Y")
# The first folder, or the file without what the vendors put around the person's name. A zip counts as a folder for
# files at its root whose names are not the vendors' own; otherwise the first folder in it, or the file, is the person.
_PERSON = (
    r"^(?:[^/!]+\.(?i:zip)!(?=[^/]+/|CLARITY_Export_|[^/]+_glucose_\d))?(?:CLARITY_Export_)?([^/!]+?)(?:_glucose_\d+-\d+-\d+|_\d{4}-\d\d-\d\d_\d+)?"
    r"(?:\.(?:csv|tsv|txt|gz))*(?:\.(?i:zip)!|/|$)"
)


def _aliases() -> dict[str, str]:
    names = {other: name for name, others in _COLUMNS.items() for other in others}
    for name, others in _GLUCOSE_COLUMNS.items():
        for unit in _UNITS:
            column = _glucose_column(name, unit)
            for written in (unit, unit.lower(), unit[:-1] + unit[-1].lower()):
                for other in (name, *others):
                    names |= dict.fromkeys(
                        (f"{other} {written}", f"{other}({written})", f"{other} ({written})"), column
                    )
    return names


def _glucose_column(name: str, unit: str) -> str:
    return f"{name} ({unit})" if name == "Glucose Value" else f"{name} {unit}"


def _mapping() -> MappingFile:
    every = {"files": "*", "optional": True, "person": {"file": _PERSON}}
    formats = [f"{date} {time}" for date in _LIBRE_DATES for time in ("%H:%M", "%I:%M %p", "%H:%M:%S")]
    libre = {**every, "time": {"column": "Device Timestamp", "formats": formats}}
    dexcom = {
        **every,
        "time": {"column": "Timestamp (YYYY-MM-DDThh:mm:ss)", "formats": ["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]},
    }
    food, event_type = "food or drink", "Event Type"
    events = [
        # Insulin (type 4) and notes (6) are no events.
        {**libre, "kind": "meal", "name_column": "Record Type", "names": {"5": food}},
        {**dexcom, "kind": "meal", "name_column": event_type, "names": {"Carbs": food, "Kohlenhydrate": food}},
        {
            **dexcom,
            "kind": "activity",
            "name_column": event_type,
            "names": {"Exercise": "exercise"},
            "duration": "Duration (hh:mm:ss)",
        },
    ]
    tables = [table for unit in _UNITS for table in _tables(unit, libre, dexcom)]
    return built_in_mapping({"aliases": _aliases(), "tables": tables, "events": events})


def _tables(unit: str, libre: dict[str, Any], dexcom: dict[str, Any]) -> Iterator[dict[str, Any]]:
    numbers = {"decimal": "," if unit == "mmol/L" else "."}  # also reads a point

    def glucose(signal: list[str], words: dict[str, float]) -> dict[str, Any]:
        return {"glucose": {"signal": signal, "unit": unit, "text_values": words}}

    # Record type 0 is what the sensor stored, every 5 or 15 minutes; 1 is what the wearer read off.
    for name, kind, period in (("Historic Glucose", "0", {"period_minutes": 15.0}), ("Scan Glucose", "1", {})):
        yield {
            **libre,
            **numbers,
            **period,
            "signal": "Record Type",
            "value": _glucose_column(name, unit),
            "channels": glucose([kind], _LIBRE_WORDS[unit]),
        }
    yield {
        **dexcom,
        **numbers,
        "period_minutes": 5.0,
        "signal": "Event Type",
        "value": _glucose_column("Glucose Value", unit),
        "channels": glucose(["EGV", "EGW"], _DEXCOM_WORDS[unit]),
    }


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """Text tables with the columns of LibreView or Clarity in their first lines."""
    marks = ("Record Type", "Event Type")
    names = [*marks, *(other for mark in marks for other in _COLUMNS[mark])]
    glucose = ("Glucose", "glucose", "Gluko", "gluco", "glyc")
    found = []
    for file in files:
        if file.name.lower().endswith((".csv", ".tsv", ".txt")):
            text = first_bytes(file).decode("utf-8", "replace")
            if any(name in text for name in names) and any(name in text for name in glucose):
                found.append(file)
    return Evidence("glucose sensors (LibreView or Dexcom Clarity)", tuple(found)) if found else None


class GlucoseReader(TableReader):
    """Reader of glucose exports (see `reader.Reader`)."""

    def __init__(self, options: ReaderOptions) -> None:
        super().__init__(options, mapping=_mapping())

    def channels(self, source: Path) -> tuple[str, ...]:
        channels = super().channels(source)
        if not channels:
            raise UserError(
                f"{source} holds no LibreView or Dexcom Clarity export: no file has the columns Device Timestamp, "
                "Record Type and Historic Glucose, or Timestamp, Event Type and Glucose Value, in a known language. "
                "Any table can be read with --format table."
            )
        return channels
