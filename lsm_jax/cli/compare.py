"""`lsm compare`: score cards of several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from lsm_jax.cli.options import whole_number
from lsm_jax.cli.places import output, run_folder

HELP = "put the evaluations of several runs into one table, each compared with the first"
EXAMPLE = "lsm compare runs/lsm1 runs/lsm2 --out runs/compare"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm compare`."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=run_folder,
        metavar="RUN",
        help="folders of runs, or of `lsm evaluate --out`; the reference first",
    )
    parser.add_argument(
        "--out", type=output, default=Path("compare"), metavar="DIR", help="where it goes (%(default)s)"
    )
    parser.add_argument("--seed", type=whole_number, default=0, metavar="S", help="of the bootstrap over people (0)")


def run(args: argparse.Namespace) -> int:
    """Writes `compare.json`, `.md` and `.html`, and prints the tables."""
    from lsm_jax.report.compare import write_comparison

    print(write_comparison(args.runs, args.out, args.seed))
    print(f"{args.out / 'compare.json'}, its .md and .html")
    return 0
