"""Reads the first sheet of an Excel workbook (.xlsx). A workbook is parsed whole."""

from __future__ import annotations

import functools
import io
import re
import zipfile
from typing import NamedTuple
from xml.etree import ElementTree

import fastexcel
import polars as pl

from lsm_jax.ingest.files.faults import is_panic
from lsm_jax.ingest.files.opening import DAMAGE_ERRORS, read_workbook
from lsm_jax.ingest.files.source import SourceFile, UnreadableFile

# A formula that is followed by no value, or by an empty one. Nothing in it backtracks: the text may be hostile.
_UNSAVED = re.compile(
    rb"<(?:\w+:)?f\b[^<>]*+>(?:[^<]*+</(?:\w+:)?f>)?+\s*+"
    rb"(?:<(?:\w+:)?v\s*+/>|<(?:\w+:)?v>\s*+</(?:\w+:)?v>)?+\s*+</(?:\w+:)?c>"
)
_ERROR_CELL = re.compile(rb"<(?:\w+:)?c\s[^<>]*\bt=[\"']e[\"']")
_ID = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"


class Sheet(NamedTuple):
    """The cells of the first sheet as text."""

    cells: pl.DataFrame  # with the header, wherever it is
    other_sheets: int
    unsaved: int  # formulas without a saved value, which are empty
    errors: int  # cells such as #N/A, which are empty


def read_sheet(file: SourceFile) -> Sheet:
    """The first sheet; UnreadableFile if there is none."""
    status = (file.root / file.path).lstat()
    return _parse(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)  # the header and the rows of a workbook are read one after the other
def _parse(file: SourceFile, *_version: int) -> Sheet:
    content = read_workbook(file)
    try:
        cells = pl.read_excel(
            io.BytesIO(content), engine="calamine", has_header=False, infer_schema_length=0, drop_empty_rows=False
        )
        others = len(fastexcel.read_excel(content).sheet_names) - 1
    except pl.exceptions.NoDataError:
        raise UnreadableFile("its first sheet is empty") from None
    except BaseException as error:
        if isinstance(error, Exception) or is_panic(error):
            raise UnreadableFile(f"not a readable Excel workbook ({type(error).__name__})") from error
        raise
    sheet = _first_sheet(content)
    return Sheet(cells, others, len(_UNSAVED.findall(sheet)), len(_ERROR_CELL.findall(sheet)))


def _first_sheet(content: bytes) -> bytes:
    """The XML of the first sheet; empty where the workbook does not say where it is."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sheets = ElementTree.fromstring(archive.read("xl/workbook.xml")).iterfind(".//{*}sheets/{*}sheet")
            relations = ElementTree.fromstring(archive.read("xl/_rels/workbook.xml.rels"))
            targets = {relation.get("Id"): relation.get("Target", "") for relation in relations}
            target = targets[next(sheets).get(_ID)]
            return archive.read(target.removeprefix("/") if target.startswith("/") else f"xl/{target}")
    except (KeyError, StopIteration, ElementTree.ParseError, *DAMAGE_ERRORS):
        return b""
