"""The data card as one self-contained HTML page: no script, no network, every text escaped."""

from __future__ import annotations

import base64
import datetime as dt
import html
from collections.abc import Mapping, Sequence
from typing import Any

from lsm_jax.data.store import Dataset
from lsm_jax.errors import UserError
from lsm_jax.report.pictures import day_picture, gaps_picture, missingness_picture
from lsm_jax.windows import Window


def card_page(dataset: Dataset, days: int) -> str:
    """The page of a dataset, with pictures of this many of its days.

    Raises:
      UserError: the data card lacks a part, or a record is damaged.
    """
    card = dataset.card
    try:
        sections = [
            _numbers(card),
            _warnings(card["warnings"]),
            _section("Missing by channel and hour", "Share of minutes without a value, by local hour.", _missing(card)),
            _section("Where missing time lies", "Share of all missing time by the length of its gap.", _gaps(card)),
            _section("Values", "Bars span the plausible range: light from least to most, dark one sd around the mean.",
                     _values(card["values"])),
            _section("Days", "Channels by local time, purple low to yellow high, grey not recorded.",
                     _days(dataset, days)),
            _section("Labels", "", _labels(card["labels"])),
            _section("Events", "", _events(card["events"])),
            _section("Captions", "Tokens of the training split's captions.", _captions(card.get("captions", {}))),
        ]  # fmt: skip
        title, text = html.escape(str(card["name"])), html.escape(str(card["description"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{dataset.path / 'data_card.json'}: the card lacks or garbles a part ({type(error).__name__}: {error})."
        ) from None
    return _PAGE.format(title=title, description=text, style=_STYLE, body="\n".join(filter(None, sections)))


def typical_windows(dataset: Dataset, count: int) -> list[Window]:
    """Windows of `count` people spread over all splits, each their person's median by recorded cells."""
    sources = {split: dataset.source(split) for split in ("train", "validation", "test")}
    places: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for split, source in sources.items():
        for place, (participant, observed) in enumerate(zip(source.participants, source.observed, strict=True)):
            places.setdefault((split, participant), []).append((int(observed), place))
    people = sorted(places)
    chosen = [people[place * len(people) // count] for place in range(count)] if len(people) > count else people
    return [
        sources[split][sorted(places[split, person])[len(places[split, person]) // 2][1]] for split, person in chosen
    ]


def _numbers(card: Mapping[str, Any]) -> str:
    people, windows = card["people_by_split"], card["windows_by_split"]
    tokens = card["tokens_per_window"]["quantiles"]
    facts = [
        (f"{card['people']:,}", "people", _by_split(people)),
        (f"{card['days']:,}", "person-days", ""),
        (f"{card['windows']:,}", "windows", _by_split(windows)),
        (f"{100 * card['missing_share']:.1f} %", "of cells missing", f"{len(card['channels'])} channels"),
        (f"{tokens['50']:,.0f}", "tokens in the median window", f"90 % have {tokens['5']:,.0f} to {tokens['95']:,.0f}"),
    ]
    tiles = "".join(
        f"<div class=tile><b>{number}</b><span>{name}</span><small>{note}</small></div>" for number, name, note in facts
    )
    return f"<div class=tiles>{tiles}</div>"


def _by_split(counts: Mapping[str, int]) -> str:
    return " · ".join(f"{split} {int(counts[split]):,}" for split in ("train", "validation", "test"))


def _warnings(warnings: Sequence[str]) -> str:
    return "".join(f"<p class=warning>{html.escape(str(warning))}</p>" for warning in warnings)


def _missing(card: Mapping[str, Any]) -> str:
    return _image(missingness_picture(card), "missing share by channel and hour")


def _gaps(card: Mapping[str, Any]) -> str:
    return _image(gaps_picture(card), "share of missing time by gap length")


def _days(dataset: Dataset, count: int) -> str:
    figures = []
    for window in typical_windows(dataset, count):
        local = window.start + dt.timedelta(minutes=window.utc_offset_minutes)
        caption = f"{window.participant[:8]} · {local:%Y-%m-%d} · {100 * window.observed.mean():.0f} % recorded"
        picture = _image(day_picture(window, dataset.normalisation), "a day")
        figures.append(f"<figure>{picture}<figcaption>{html.escape(caption)}</figcaption></figure>")
    return "".join(figures)


def _values(values: Mapping[str, Mapping[str, Any]]) -> str:
    head = ("channel", "unit", "recorded", "least", "mean", "sd", "most", "plausible", "")
    rows = []
    for name, entry in values.items():
        numbers = [entry[key] for key in ("min", "mean", "sd", "max")]
        low, high = entry["plausible"]
        rows.append([
            f"<td>{html.escape(name.replace('_', ' '))}</td><td class=soft>{html.escape(str(entry['unit']))}</td>",
            f"<td class=number>{100 * (1 - entry['missing_share']):.1f} %</td>",
            "".join(f"<td class=number>{_number(number)}</td>" for number in numbers),
            f"<td class='number soft'>{_number(low)} – {_number(high)}</td><td>{_range_bar(entry)}</td>",
        ])  # fmt: skip
    return _table(head, ["".join(row) for row in rows])


def _range_bar(entry: Mapping[str, Any]) -> str:
    """The observed range and mean +- sd as shares of the plausible range."""
    if not entry["count"]:
        return "<div class=range></div>"
    low, high = entry["plausible"]

    def span(start: float, end: float, kind: str) -> str:
        left, right = (min(max(100 * (edge - low) / (high - low), 0), 100) for edge in (start, end))
        return f"<i class={kind} style='left:{left:.2f}%;width:{max(right - left, 0.5):.2f}%'></i>"

    middle = span(entry["mean"] - entry["sd"], entry["mean"] + entry["sd"], "dark")
    return f"<div class=range>{span(entry['min'], entry['max'], 'light')}{middle}</div>"


def _labels(labels: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, entry in labels.items():
        parts = []
        if "mean" in entry:
            numbers = [_number(entry[key]) for key in ("mean", "sd", "min", "max")]
            parts.append("mean {} ± {}, from {} to {}".format(*numbers))
        if "distinct" in entry:
            named = ", ".join(f"{html.escape(str(value))} ({count})" for value, count in entry["values"].items())
            parts.append(named or f"{entry['distinct']} distinct values")
        rows.append(f"<td>{html.escape(name)}</td><td class=number>{entry['people']:,}</td><td>{'; '.join(parts)}</td>")
    return _table(("label", "people", "values"), rows)


def _events(events: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    rows = [
        f"<td>{html.escape(kind)}</td><td>{html.escape(name)}</td><td class=number>{entry['count']:,}</td>"
        f"<td class=number>{entry['minutes'] / max(entry['count'], 1):,.0f}</td>"
        for kind, names in events.items()
        for name, entry in names.items()
    ]
    return _table(("kind", "event", "times", "minutes each"), rows)


def _captions(captions: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for level, entry in captions.items():
        numbers = (entry["captions"], entry["vocabulary"], *entry["tokens"].values())
        cells = "".join(f"<td class=number>{int(number):,}</td>" for number in numbers)
        rows.append(f"<td>{html.escape(level)}</td>{cells}")
    return _table(("level", "captions", "vocabulary", "median", "99th percentile", "most"), rows)


def _section(title: str, note: str, content: str) -> str:
    return f"<section><h2>{title}</h2><p class=soft>{note}</p>{content}</section>" if content else ""


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table, or nothing where it would be empty; cells come as HTML."""
    if not rows:
        return ""
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f"<div class=scroll><table><tr>{cells}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table></div>"


def _image(png: bytes, description: str) -> str:
    return f"<img alt='{description}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #f6f7f9; margin: 0 }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 18px; margin: 0 0 2px }
section { background: #fff; border: 1px solid #e4e7eb; border-radius: 10px; padding: 20px 22px; margin-top: 18px }
p { margin: 0 0 10px } .soft, small, figcaption { color: #6b7683 }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 20px }
.tile { flex: 1 1 150px; background: #fff; border: 1px solid #e4e7eb; border-radius: 10px; padding: 14px 16px }
.tile b { display: block; font-size: 24px } .tile span { display: block } .tile small { font-size: 12px }
.warning { background: #fff7e6; border-left: 4px solid #d97706; padding: 8px 12px; margin: 16px 0 0 }
img { width: 100%; display: block } figure { margin: 18px 0 0 } figcaption { font-size: 13px }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 13.5px }
th { text-align: left; color: #6b7683; font-weight: 500 }
th, td { padding: 4px 10px 4px 0; border-bottom: 1px solid #eef0f3; vertical-align: middle }
.number { font-variant-numeric: tabular-nums; white-space: nowrap }
.range { position: relative; width: 170px; height: 8px; background: #eceef1; border-radius: 4px }
.range i { position: absolute; top: 0; height: 8px; border-radius: 4px }
.light { background: #8fc9c1 } .dark { background: #0f766e }
"""

_PAGE = """<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{title}</title><style>{style}</style></head>
<body><main><h1>{title}</h1><p class=soft>{description}</p>
{body}
</main></body></html>
"""
