"""`lsm inspect`: what is in a dataset, in the terminal and as a page; or the channel registry."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lsm_jax.cli.options import given
from lsm_jax.cli.places import data_folder, output
from lsm_jax.errors import UserError

HELP = "show what is in a dataset: people, days, missingness, value ranges, pictures of days"
EXAMPLE = "lsm inspect data/cohort"

_DAYS = 6  # drawn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm inspect`."""
    parser.add_argument(
        "dataset", nargs="?", type=data_folder, metavar="DIR", help="dataset folder; the page goes there too"
    )
    parser.add_argument("--channels", action="store_true", help="list the channel registry, nothing else")
    parser.add_argument("--days", type=int, metavar="N", help=f"days to draw, of different people ({_DAYS})")
    parser.add_argument("--html", type=output, metavar="FILE", help="the page to write (DIR/data_card.html)")


def run(args: argparse.Namespace) -> int:
    """Prints the data card and writes `data_card.html` beside `data_card.json`; or lists the channels."""
    if args.channels:
        if given(args, ("dataset", "days", "html")):
            raise UserError(
                "--channels lists the channel registry, nothing else: leave out the dataset and its options."
            )
        _print_channels()
        return 0
    if args.dataset is None:
        raise UserError("name a dataset folder, as in `lsm inspect DIR`, or pass --channels.")
    days = _DAYS if args.days is None else args.days
    if days < 0:
        raise UserError(f"--days {days}: give 0 or more.")

    from lsm_jax.data.store import open_dataset
    from lsm_jax.report.data_card import data_card_page

    dataset = open_dataset(args.dataset)
    page = args.html or args.dataset / "data_card.html"
    content = data_card_page(dataset, days)
    try:
        page.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page}: cannot be written ({error.strerror}); choose another place with --html.") from None
    _print_card(dataset.card)
    print(f"{args.dataset / 'data_card.json'}\n{page}")
    return 0


def _print_card(card: Mapping[str, Any]) -> None:
    from rich import print as rich_print
    from rich.markup import escape

    people, windows = card["people_by_split"], card["windows_by_split"]
    rich_print(f"[bold]{escape(card['name'])}[/bold]  {escape(card['description'])}")
    counts = [
        [name, *(f"{by[split]:,}" for split in people)] for name, by in (("people", people), ("windows", windows))
    ]
    _print_table(["", *people], counts)
    print(f"{card['days']:,} person-days, {card['missing_share']:.1%} of cells missing")
    values = [
        [name, entry["unit"], f"{1 - entry['missing_share']:.1%}"]
        + ["-" if entry[key] is None else f"{entry[key]:.4g}" for key in ("min", "mean", "sd", "max")]
        for name, entry in card["values"].items()
    ]
    _print_table(["channel", "unit", "recorded", "min", "mean", "sd", "max"], values)
    for warning in card["warnings"]:
        rich_print(f"[yellow]warning:[/yellow] {escape(warning)}")


def _print_channels() -> None:
    from lsm_jax.channels import REGISTRY

    rows = [
        [c.name, c.sensor, c.unit, f"{c.low:g} to {c.high:g}", f"{c.mean:g}", f"{c.sd:g}", c.source]
        for c in REGISTRY.values()
    ]
    _print_table(["channel", "sensor", "unit", "plausible", "mean", "sd", "source"], rows)


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
