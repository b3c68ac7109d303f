"""How a file writes numbers: decimal commas and thousands marks.

A column of which some cells are read and others are lost by a pattern would be biased: of numbers with a decimal comma
only the whole ones are left, of numbers with thousands marks only the small ones. Such files are refused with the keys
that read them.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from lsm_jax.errors import UserError
from lsm_jax.ingest.cells import LINE, is_empty, numbers
from lsm_jax.ingest.mapping.sections import FileRule, TableRule
from lsm_jax.ingest.report import IngestReport

_BLANK, _APOSTROPHE = "[ \u00a0\u202f]", "['\u2019]"
_MARKS = {"": "", ",": ",", ".": r"\.", " ": _BLANK, "'": _APOSTROPHE}
_DECIMAL_COMMA = r"^[+-]?(\d+,(\d{1,2}|\d{4,})|0,\d+|,\d+)$"
_COMMA_OF_EITHER_KIND = r"^[+-]?\d{1,3},\d{3}$"
# (what a cell looks like, the keys that read it)
_THOUSANDS = (
    (r"^[+-]?\d{1,3}(\.\d{3})+,\d+$|^[+-]?\d{1,3}(\.\d{3}){2,}$", """decimal = "," and thousands = "." """.strip()),
    (r"^[+-]?\d{1,3}(,\d{3})+\.\d+$|^[+-]?\d{1,3}(,\d{3}){2,}$", 'decimal = "." and thousands = ","'),
    (rf"^[+-]?\d{{1,3}}({_BLANK}\d{{3}})+([.,]\d+)?$", 'thousands = " "'),
    (rf"^[+-]?\d{{1,3}}({_APOSTROPHE}\d{{3}})+([.,]\d+)?$", """thousands = "'" """.strip()),
)
_PART, _CLEAR_PART = 0.01, 0.1  # shares of a column's cells that are a pattern and no damage


def plain_numbers(block: pl.DataFrame, rule: FileRule, file: str, report: IngestReport) -> pl.DataFrame:
    """The block with its columns of numbers in plain spelling: a decimal point and nothing else.

    Of a channel's column with many other cells the report says what those look like.

    Raises:
      UserError: the cells of a column that are no numbers in the rule's spelling are numbers in another.
    """
    plain = {}
    for name in rule.number_columns:
        if name not in block.columns or block[name].dtype != pl.String:
            continue
        cells = block[name].str.strip_chars()
        plain[name] = _plain(cells, rule.decimal, rule.thousands)
        read = numbers(plain[name]).is_not_null()
        fault = _lost_pattern(cells, read)
        if not fault and "decimal" not in rule.model_fields_set:
            fault = _misread_thousands(cells, read)
        if fault:
            raise UserError(
                f"{file}:{block[LINE].filter(fault.cells)[0]}: column {name!r} has {fault.what}: they would be misread "
                f"or lost, and its other numbers kept. Say {fault.keys} in {rule.section} of the mapping."
            )
        if isinstance(rule, TableRule) and (form := _form_of_others(cells.filter(~read), name, rule, len(cells))):
            report.note(
                f"{file}: many cells of column {name!r} are no numbers but of the form {form!r}: they are lost, the "
                f"others are kept. {rule.section}.channels.NAME.text_values gives words a number."
            )
    return block.with_columns(cells.alias(name) for name, cells in plain.items())


def _plain(cells: pl.Series, decimal: str, thousands: str) -> pl.Series:
    """Numbers of this spelling with a decimal point; other cells as they are."""
    if thousands:
        grouped = cells.str.contains(rf"^[+-]?\d{{1,3}}({_MARKS[thousands]}\d{{3}})+({_MARKS[decimal]}\d+)?$")
        cells = cells.zip_with(~grouped.fill_null(False), cells.str.replace_all(_MARKS[thousands], ""))
    return cells.str.replace(",", ".", literal=True) if decimal == "," else cells


def _form_of_others(others: pl.Series, column: str, rule: TableRule, cells: int) -> str:
    """What most cells of a channel's column that are no numbers look like (9 is a digit, a is text); "" for few."""
    words = [word for channel in rule.channels.values() if channel.column == column for word in channel.text_values]
    is_known = is_empty(others) | others.str.to_lowercase().is_in([word.lower() for word in words])
    others = others.filter(~is_known)
    if not any(channel.column == column for channel in rule.channels.values()) or len(others) < max(1, _PART * cells):
        return ""
    forms = others.str.slice(0, 20).str.replace_all(r"\d+", "9").str.replace_all(r"\p{L}+", "a")
    return str(forms.mode().sort()[0])


class _Fault(NamedTuple):
    cells: pl.Series  # which are of the pattern
    what: str
    keys: str  # that read them


def _lost_pattern(cells: pl.Series, read: pl.Series) -> _Fault | None:
    """What the cells that are not read have in common; None where that is nothing."""
    if read.all():
        return None
    filled = ~is_empty(cells)
    lost = filled & ~read
    if not lost.any():
        return None
    lost_text = cells.filter(lost)
    if not lost_text.str.contains(r"^[+-]?[\d.]*[,.'\x{2019} \x{a0}\x{202f}]\d").any():
        return None
    kept = cells.filter(read)
    has_point = kept.str.contains(".", literal=True).any()
    has_large = (numbers(kept).abs() >= 1000).any()

    def is_systematic(found: pl.Series, *, alone: bool, others: pl.Series = read, share: float = _PART) -> bool:
        """Whether they are many, or the only ones of their size, in a column that is numbers otherwise."""
        count = int(found.sum())
        is_many = count >= share * int(filled.sum()) or (alone and count >= 2)
        return count > 0 and is_many and 2 * int((others | found).sum()) >= int(filled.sum())

    for pattern, keys in _THOUSANDS:
        found = lost & cells.str.contains(pattern)
        if is_systematic(found, alone=not has_large):
            return _Fault(found, "thousands marks", keys)
    decimals, either = (lost & cells.str.contains(pattern) for pattern in (_DECIMAL_COMMA, _COMMA_OF_EITHER_KIND))
    if is_systematic(decimals, alone=False, others=read | either, share=_CLEAR_PART if has_point else _PART):
        return _Fault(decimals, "decimal commas", 'decimal = ","')
    if is_systematic(either, alone=not has_large, others=read | decimals):
        keys = 'thousands = ","' if has_point else 'decimal = "," or thousands = ",", whichever it is,'
        return _Fault(either, "commas before three digits", keys)
    return None


def _misread_thousands(cells: pl.Series, read: pl.Series) -> _Fault | None:
    """Whether points are thousands marks: they stand before three digits only, and no plain number reaches 1000."""
    dotted = read & cells.str.contains(".", literal=True)
    if int(dotted.sum()) < 3 or not cells.filter(dotted).str.contains(r"^[+-]?[1-9]\d{0,2}\.\d{3}$").all():
        return None
    largest = numbers(cells.filter(read & ~dotted)).abs().max()
    if not isinstance(largest, float) or not 100 <= largest < 1000:
        return None
    keys = 'decimal = "," and thousands = "." (or decimal = "." where they are decimals)'
    return _Fault(dotted, "points before three digits only, and no other number of 1000 or more", keys)
