"""`lsm report`: one self-contained HTML page of a run."""

from __future__ import annotations

import argparse

from lsm_jax.cli.places import output, run_folder

HELP = "write one self-contained HTML page of a run: tables, curves, pictures"
EXAMPLE = "lsm report --workdir runs/lsm2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm report`."""
    parser.add_argument("--workdir", type=run_folder, required=True, metavar="W", help="the run's folder")
    parser.add_argument("--out", type=output, metavar="FILE.html", help="the page to write (W/report.html)")


def run(args: argparse.Namespace) -> int:
    """Writes the page and prints its path."""
    from lsm_jax.report.run_report import write_report

    print(write_report(args.workdir, args.out or args.workdir / "report.html"))
    return 0
