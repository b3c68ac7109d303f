"""`lsm report`: one self-contained HTML page of a run."""

from __future__ import annotations

import argparse

from lsm_jax.cli.places import output, run_folder
from lsm_jax.errors import UserError

HELP = "write one self-contained HTML page of a run: tables, curves, pictures, a map of embeddings, captions"
EXAMPLE = "lsm report --workdir runs/lsm2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm report`."""
    parser.add_argument("--workdir", type=run_folder, required=True, metavar="W", help="the run's folder")
    parser.set_defaults(checkpoint_for=("map_windows", "caption_days"))
    parser.add_argument("--out", type=output, metavar="FILE.html", help="the page to write (W/report.html)")
    parser.add_argument(
        "--map-windows",
        type=int,
        default=200,
        metavar="N",
        help="windows of the test splits on the map of embeddings; 0: no map (%(default)s)",
    )
    parser.add_argument(
        "--caption-days",
        type=int,
        default=4,
        metavar="N",
        help="days of each test split with the caption that a SensorLM run writes; 0: none (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the page and prints its path."""
    for option, count in {"--map-windows": args.map_windows, "--caption-days": args.caption_days}.items():
        if count < 0:
            raise UserError(f"{option} {count}: give 0 or more.")
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.report.run_report import write_report
    from lsm_jax.train.loop import use_compile_cache
    from lsm_jax.train.mesh import cores, use_cores

    use_cores(cores())
    use_compile_cache()
    with progress_bar("embedding for the map: windows") as progress:
        out = args.out or args.workdir / "report.html"
        place = args.urls.get("workdir", "")
        print(write_report(args.workdir, out, args.map_windows, args.caption_days, progress, place))
    return 0
