"""Pages and cards from templates: one environment, one way to write numbers and names."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from lsm_jax.report.style import HUES, PALETTE


def render(template: str, **values: Any) -> str:
    """A file of `templates/` filled in. Values in .html files are escaped unless they are `Markup`."""
    return _ENVIRONMENT.get_template(template).render(values)


def model_card(card: Mapping[str, Any]) -> str:
    """The README of an export: the card's content (`lsm_jax.export.card.card_of`) in words and tables."""
    return render("model_card.md", card=card)


def png_address(content: bytes) -> str:
    """A PNG file as a `data:` address, so that the page needs no second file."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def number(value: float | None) -> str:
    """Four significant digits, or all digits before the point, with commas; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(share: float, digits: int = 1) -> str:
    """A share between 0 and 1 as a percentage."""
    return f"{share:.{digits}%}"


def interval(limits: tuple[float, float], digits: int = 1) -> str:
    """The limits of an interval of shares as percentages with signs."""
    low, high = limits
    return f"{low:+.{digits}%} to {high:+.{digits}%}"


def improvement(comparison: Mapping[str, Any]) -> str:
    """How much lower the model's error is than the baseline's, with its 95 % interval where there is one."""
    limits = f" ({interval(comparison['ci95'])})" if comparison["ci95"] else ""
    return f"{comparison['improvement']:+.1%}{limits}"


def readable(name: str) -> str:
    """An identifier as words: `heart_rate` becomes "heart rate", `60min` becomes "60 min"."""
    return name.replace("_", " ").replace("min", " min") if name[:1].isdigit() else name.replace("_", " ")


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def by_split(counts: Mapping[str, int]) -> str:
    """The counts of the three splits in one line."""
    return " · ".join(f"{split} {counts[split]:,}" for split in ("train", "validation", "test"))


def offsets(start: float, end: float, limits: Sequence[float]) -> str:
    """CSS that places a bar from `start` to `end` on an axis between two limits; what lies outside is cut off."""
    low, high = limits
    left, right = (min(max((value - low) / (high - low), 0), 1) for value in (start, end))
    return f"left:{100 * left:.1f}%;right:{100 * (1 - right):.1f}%"


def columns(names: Iterable[str], kind: str = "") -> list[tuple[str, str]]:
    """Columns of the macro `table`, with their class in CSS."""
    return [(name, kind) for name in names]


def css_string(text: str) -> str:
    """The text as a CSS string, which no character of it can end: all but letters, digits and spaces are escaped."""
    return '"' + "".join(c if c.isascii() and (c.isalnum() or c == " ") else f"\\{ord(c):x} " for c in text) + '"'


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lsm_jax.report"),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = (number, percent, interval, improvement, readable, duration, by_split, css_string)
    environment.filters.update({filter_.__name__: filter_ for filter_ in filters})
    environment.globals.update(palette=PALETTE, hues=HUES, offsets=offsets, columns=columns)
    return environment


_ENVIRONMENT = _environment()
