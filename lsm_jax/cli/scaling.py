"""`lsm scaling`: power laws over a grid of runs."""

from __future__ import annotations

import argparse

from lsm_jax.cli.places import output, run_folder
from lsm_jax.errors import UserError

HELP = "fit L = a C^b + c to a folder of runs: data, parameters, compute, and the compute-optimal frontier"
EXAMPLE = "lsm scaling runs/scaling --score generative/random_imputation_80%"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm scaling`."""
    parser.add_argument("folder", type=run_folder, metavar="DIR", help="folder of runs, as `launch/grid` makes")
    parser.add_argument(
        "--score",
        default="validation_loss",
        metavar="NAME",
        help="validation_loss, or SUITE/TASK_SETTING of evaluated runs (%(default)s)",
    )
    parser.add_argument("--out", type=output, metavar="DIR", help="where it goes (the folder of runs)")


def run(args: argparse.Namespace) -> int:
    """Writes `scaling.json`, `.md`, `.html` and `.png`, and prints the text."""
    if not args.folder.is_dir():
        raise UserError(f"{args.folder}: no such folder.")
    from lsm_jax.report.scaling import write_scaling

    out = args.out or args.folder
    print(write_scaling(args.folder, out, args.score))
    print(f"{out / 'scaling.json'}, its .md, .html and .png")
    return 0
