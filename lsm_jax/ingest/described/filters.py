"""Which rows pass the `keep` rules of a mapping (`mapping.conditions`), compared by the type of each column.

A cell of text is read as a number or a flag where the rule compares with one. An empty cell equals nothing and has no
order. A cell that is no number, or no flag, is unknown: a rule that depends on it does not pass, with `not` or without.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from lsm_jax.ingest.cells import LINE, is_empty, numbers
from lsm_jax.ingest.described.columns import Origin
from lsm_jax.ingest.files.source import UnreadableFile
from lsm_jax.ingest.mapping.conditions import Comparison, Condition, Expression, Junction, Negation, comparisons
from lsm_jax.ingest.mapping.sections import FileRule

_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FLAGS = {"true": 1.0, "t": 1.0, "yes": 1.0, "y": 1.0, "false": 0.0, "f": 0.0, "no": 0.0, "n": 0.0}


def passes(block: pl.DataFrame, conditions: Sequence[Condition], rule: FileRule, origin: Origin) -> pl.Series:
    """Whether each row passes all conditions. A column of text of which no cell can be compared is noted.

    Raises:
      UnreadableFile: a rule that the type of its column (of a Parquet file) contradicts.
    """
    passed = pl.repeat(True, len(block), dtype=pl.Boolean, eager=True)
    for condition in conditions:
        for comparison in comparisons(condition.rule):
            _check_type(block, comparison, condition, rule, origin)
        passed &= _truth(block, condition.rule).fill_null(False)
    return passed


def _check_type(
    block: pl.DataFrame, comparison: Comparison, condition: Condition, rule: FileRule, origin: Origin
) -> None:
    cells = block[comparison.column]
    where = f"the rule {condition.text!r} of {rule.section}"
    has_text = any(isinstance(literal, str) for literal in comparison.literals)
    if cells.dtype == pl.String:
        filled = cells.filter(~is_empty(cells))
        if len(filled) and not has_text and _equals(filled, comparison.literals[0]).is_null().all():
            kind = "flag" if isinstance(comparison.literals[0], bool) else "number"
            origin.report.note(
                f"{origin.file}: lines {block[LINE][0]} to {block[LINE][-1]} have no {kind} in column "
                f"{comparison.column!r}, with which {where} compares: none of them passes."
            )
    elif not (cells.dtype.is_numeric() or cells.dtype == pl.Boolean):
        raise UnreadableFile(
            f"column {comparison.column!r} holds {cells.dtype}, and {where} cannot compare it: rules "
            "compare numbers, text and flags."
        )
    elif has_text:
        fix = "true or false" if cells.dtype == pl.Boolean else "numbers"
        raise UnreadableFile(
            f"column {comparison.column!r} holds {cells.dtype}, which {where} compares with text. Write "
            f"{fix} without quotes."
        )


def _truth(block: pl.DataFrame, rule: Expression) -> pl.Series:
    """Whether each row is true by the rule; null where that is unknown."""
    match rule:
        case Negation(part):
            return ~_truth(block, part)
        case Junction(word, parts):
            combine = operator.and_ if word == "and" else operator.or_
            return functools.reduce(combine, (_truth(block, part) for part in parts))
        case Comparison(column, sign, literals):
            cells = block[column]
            if sign in _ORDER:
                return _ORDER[sign](_number(cells), literals[0])
            found = functools.reduce(operator.or_, (_equals(cells, literal) for literal in literals))
            found = found.zip_with(~is_empty(cells), pl.Series([False]))
            return ~found if sign == "not in" else found


def _equals(cells: pl.Series, literal: float | bool | str) -> pl.Series:
    """Whether each cell is the literal; null where it is not of the literal's kind."""
    if isinstance(literal, bool):
        return _flag(cells) == literal
    if isinstance(literal, float):
        return _number(cells) == literal
    return cells.cast(pl.String).str.strip_chars() == literal


def _number(cells: pl.Series) -> pl.Series:
    """The cells as numbers; null for a cell that is none, and for NaN, which has no order."""
    return numbers(cells).fill_nan(None)


def _flag(cells: pl.Series) -> pl.Series:
    """Whether each cell is a number other than 0 or a word that means true; null for neither true nor false."""
    words = cells.cast(pl.String).str.strip_chars().str.to_lowercase()
    from_words = words.replace_strict(_FLAGS, default=None, return_dtype=pl.Float64)
    number = _number(cells)
    return number.zip_with(number.is_not_null(), from_words) != 0
