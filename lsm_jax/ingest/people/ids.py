"""Ids of people: how tables write them, and what they are without differences in spelling."""

from __future__ import annotations

import decimal
import re
import unicodedata
from collections.abc import Iterable
from typing import Literal

import polars as pl

from lsm_jax.ingest.cells import add_reason, is_empty

Difference = Literal["case", "zeros", "marks"]
LOST_DIGITS = "person id has lost digits to scientific notation: two people may have become one; write ids as text"
NO_TEXT = pl.Series([None], dtype=pl.String)
# Spreadsheets write 123456789012 as 1.23457E+11. "12E5" is an id like any other.
_SCIENTIFIC = r"^-?\d(?:[.,]\d+[eE]\+?|[eE]\+)\d{1,3}$"


def identity(spelling: str, same: Iterable[Difference] = ("case", "zeros", "marks")) -> str:
    """An id without differences in spelling: upper and lower case, leading zeros of numbers, blank _ - and dot."""
    text = unicodedata.normalize("NFC", spelling.strip())
    if "case" in same:
        text = unicodedata.normalize("NFKC", text).casefold()
    if "zeros" in same:
        text = re.sub(r"(?<!\d)0+(?=\d)", "", text)
    if "marks" in same:
        text = re.sub(r"[\s_.-]+", "-", text)
    return text


def read_ids(cells: pl.Series) -> tuple[pl.Series, pl.Series]:
    """(ids as text, reasons where there are none). 62161.0 is 62161, as columns with empty cells are often saved."""
    if cells.dtype != pl.String and not cells.dtype.is_integer():
        return _read_ids(cells)
    different = cells.unique()  # a person has many rows
    ids, reasons = _read_ids(different)
    return (
        cells.replace_strict(different, ids, return_dtype=pl.String),
        cells.replace_strict(different, reasons, return_dtype=pl.String),
    )


def _read_ids(cells: pl.Series) -> tuple[pl.Series, pl.Series]:
    reasons: pl.Series = pl.repeat(None, len(cells), dtype=pl.String, eager=True)
    reasons = add_reason(reasons, is_empty(cells), "no person id")
    lost = pl.repeat(False, len(cells), dtype=pl.Boolean, eager=True)
    if cells.dtype.is_float():
        lost = (cells.abs() > (2**53 if cells.dtype == pl.Float64 else 2**24)).fill_null(False)
    text = cells.cast(pl.String).str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "$1")
    scientific = text.filter(text.str.contains(_SCIENTIFIC).fill_null(False)).unique().to_list()
    if scientific:
        text = text.replace({cell: _whole_number(cell) for cell in scientific})
        lost |= text.is_null() & cells.is_not_null()
    reasons = add_reason(reasons, lost, LOST_DIGITS)
    return text.zip_with(reasons.is_null(), NO_TEXT), reasons


def _whole_number(text: str) -> str | None:
    """1.234E+03 as 1234; None where digits are lost, as in 1.23E+11."""
    number = decimal.Decimal(text.replace(",", "."))
    return str(int(number)) if int(number.as_tuple().exponent) <= 0 and number == number.to_integral_value() else None
