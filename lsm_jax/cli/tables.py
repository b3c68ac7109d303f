"""Tables on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints rows of values under their column names; no header if there are none."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, title=title, show_header=bool(columns), box=box.SIMPLE)
    for row in rows:
        table.add_row(*(escape(_printable(_text(value))) for value in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _printable(text: str) -> str:
    """The text without what would steer the terminal: names of files may hold anything."""
    return "".join(each if each.isprintable() or each == "\n" else "\ufffd" for each in text)


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int() | float() if 1e6 <= abs(value) < 1e12:
            return f"{value / 1e6:,.0f}M"
        case float():
            return f"{value:.4g}"
        case dict():
            return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) or "none"
        case list():
            return "\n".join(map(_text, value)) or "none"
    return str(value)
