"""`lsm synth`: a synthetic cohort with known physiology, written as a dataset."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path, PurePath, PurePosixPath

from lsm_jax.cli.options import whole_number
from lsm_jax.cli.places import output_dataset
from lsm_jax.errors import UserError

HELP = "make a synthetic cohort: physiology, events, labels and realistic gaps"
EXAMPLE = "lsm synth --people 400 --days 8 --out data/synth --seed 0"

_NAME, _NAME_OF_TRUTH = "synth", "synth_truth"  # of the datasets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm synth`."""
    parser.add_argument("--people", type=int, required=True, metavar="N", help="people in the cohort")
    parser.add_argument("--days", type=int, required=True, metavar="D", help="days of each person, one window a day")
    parser.add_argument(
        "--out", type=output_dataset, required=True, metavar="DIR", help="folder of the dataset to write"
    )
    parser.add_argument(
        "--seed", type=whole_number, default=0, metavar="S", help="the same seed gives the same people (0)"
    )
    parser.add_argument(
        "--ground-truth",
        type=output_dataset,
        metavar="DIR2",
        help="also write the same days without gaps, as a second dataset outside --out; for evaluation only",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace datasets that are already there")


def run(args: argparse.Namespace) -> int:
    """Writes the cohort and, if asked to, its ground truth. Prints where they are and how long it took."""
    out, truth = args.out, args.ground_truth
    if truth:
        data, complete = (_place(args, name) for name in ("out", "ground_truth"))
        if complete.is_relative_to(data) or data.is_relative_to(complete):
            raise UserError(
                f"--ground-truth {truth} and --out {out} must lie apart: no model may read the truth by accident."
            )
    from lsm_jax.channels import MINUTELY_26
    from lsm_jax.data.store import check_output

    # Both, before the first is made.
    check_output(out, _NAME, MINUTELY_26, args.overwrite)
    if truth:
        check_output(truth, _NAME_OF_TRUTH, MINUTELY_26, args.overwrite, "--ground-truth")
    summary = {"synth": _write(args, out, truth=False)}
    if truth:
        summary["ground_truth"] = _write(args, truth, truth=True)
    (out / "synth.json").write_text(json.dumps(summary, indent=1))
    return 0


def _place(args: argparse.Namespace, name: str) -> PurePath:
    """The place of an argument, in the store where it names one there."""
    return PurePosixPath(args.urls[name]) if name in args.urls else getattr(args, name).resolve()


def _write(args: argparse.Namespace, out: Path, *, truth: bool) -> dict[str, object]:
    # Imported late: the rest of the command line should not wait for them.
    from lsm_jax.channels import MINUTELY_26
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.data.store import write_dataset
    from lsm_jax.synth.cohort import windows

    what = "Ground truth (no gaps, for evaluation only) of a" if truth else "A"
    size = f"{args.people} people, {args.days} days"
    name, days, started = _NAME_OF_TRUTH if truth else _NAME, args.people * args.days, time.perf_counter()
    with progress_bar(f"{name}: person-days") as report:
        write_dataset(
            out,
            name,
            MINUTELY_26,
            windows(args.people, args.days, args.seed, truth=truth),
            seed=args.seed,
            description=f"{what} synthetic cohort: {size}, seed {args.seed}, made by lsm synth.",
            overwrite=args.overwrite,
            progress=lambda count: report(count, days),
        )
    seconds = time.perf_counter() - started
    place = args.urls.get("ground_truth" if truth else "out", out)
    print(f"{place}: {args.people} people, {days} person-days in {seconds:.1f} s ({days / seconds:.0f} a second)")
    return {"people": args.people, "days": args.days, "seed": args.seed, "seconds": round(seconds, 2)}
