"""`lsm inspect`: what is in a dataset, on the terminal and as a page; and the channels this framework knows."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lsm_jax.errors import UserError

HELP = "show what is in a dataset: people, days, missingness, value ranges, pictures of days"
EXAMPLE = "lsm inspect data/cohort"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("dataset", nargs="?", type=Path, metavar="DIR", help="dataset folder; the page goes there too")
    parser.add_argument("--channels", action="store_true", help="list the channel registry, nothing else")
    parser.add_argument(
        "--days", type=int, default=6, metavar="N", help="days to draw, of different people (%(default)s)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="the page's place (DIR/data_card.html)")


def run(args: argparse.Namespace) -> int:
    """Prints the card and writes `data_card.html` beside `data_card.json`; or lists the channels."""
    if args.channels:
        _print_channels()
        return 0
    if args.dataset is None:
        raise UserError("name a dataset folder, as in `lsm inspect DIR`, or pass --channels.")
    if args.days < 0:
        raise UserError(f"--days {args.days}: give 0 or more.")

    from lsm_jax.data.store import open_dataset
    from lsm_jax.report.data_card import card_page

    dataset = open_dataset(args.dataset)
    page = args.html or args.dataset / "data_card.html"
    content = card_page(dataset, args.days)
    try:
        page.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page}: cannot be written ({error.strerror}); choose another place with --html.") from None
    _print_card(dataset.card)
    print(f"{args.dataset / 'data_card.json'}\n{page}")
    return 0


def _print_card(card: Mapping[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    people, windows = card["people_by_split"], card["windows_by_split"]
    console.print(f"[bold]{escape(card['name'])}[/bold]  {escape(card['description'])}", highlight=False)
    splits = Table("", *people, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    splits.add_row("people", *[f"{count:,}" for count in people.values()])
    splits.add_row("windows", *[f"{windows[split]:,}" for split in people])
    console.print(splits)
    console.print(
        f"{card['days']:,} person-days, {100 * card['missing_share']:.1f} % of cells missing", highlight=False
    )
    values = Table(
        "channel",
        "unit",
        "recorded",
        "least",
        "mean",
        "sd",
        "most",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name, entry in card["values"].items():
        numbers = ["-" if entry[key] is None else f"{entry[key]:.4g}" for key in ("min", "mean", "sd", "max")]
        values.add_row(name, entry["unit"], f"{100 * (1 - entry['missing_share']):.1f} %", *numbers)
    console.print(values)
    for warning in card["warnings"]:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)


def _print_channels() -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from lsm_jax.channels import REGISTRY

    table = Table(
        "channel",
        "sensor",
        "unit",
        "plausible",
        "mean",
        "sd",
        "source",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for channel in REGISTRY.values():
        plausible = f"{channel.low:g} to {channel.high:g}"
        moments = (f"{channel.mean:g}", f"{channel.sd:g}")
        table.add_row(channel.name, channel.sensor, channel.unit, plausible, *moments, channel.source)
    Console().print(table)
