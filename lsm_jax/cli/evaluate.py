"""`lsm evaluate`: a run against every baseline, on people it was never trained on."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from lsm_jax.cli.embed import POOLINGS
from lsm_jax.cli.places import data_folder, local_path, output, run_folder
from lsm_jax.errors import UserError
from lsm_jax.evals import SUITES

if TYPE_CHECKING:  # importing these takes seconds, and help must come at once
    from lsm_jax.data.store import Dataset
    from lsm_jax.train.run import Run

# As in evals.probe, whose import would slow help down.
PROBE_METHODS = ("pretrained", "random_encoder", "engineered_linear", "engineered_trees", "pca")
HELP = "score a run on the papers' tasks against the baselines, on held-out people"
EXAMPLE = "lsm evaluate --workdir runs/lsm2 --suite generative"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm evaluate`."""
    parser.add_argument("--workdir", type=run_folder, required=True, metavar="W", help="the run's folder")
    parser.add_argument("--suite", choices=tuple(SUITES), default="generative", help="which tasks (generative)")
    parser.add_argument(
        "--data", type=data_folder, nargs="+", metavar="DIR", help="datasets to score on; the run's own where left out"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="whose windows (test)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; the newest where left out")
    parser.add_argument(
        "--curve", action="store_true", help="score every checkpoint kept and draw error over minutes of training"
    )
    parser.add_argument(
        "--max-windows", type=int, metavar="N", help="at most N windows of each dataset, of whole people: a quick look"
    )
    parser.add_argument(
        "--mask-channels", type=int, default=0, metavar="N",
        help="of generative: channels hidden together, to score models with other tokens on equal cells",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="windows per model call (32)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of hidden tokens and bootstrap (0)")
    parser.add_argument(
        "--prompts",
        type=local_path,
        metavar="FILE.toml",
        help="of zeroshot; a shipped file that fits the data if left out",
    )
    parser.add_argument("--decode", default="greedy", metavar="D", help="of captioning: greedy, beam, nucleus (greedy)")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="M",
        help=f"of probe, robustness ({' '.join(PROBE_METHODS)}); slow: pretrained_attentive fine_tuned scratch",
    )
    parser.add_argument(
        "--folds", type=int, default=0, metavar="K",
        help="of probe, robustness: K person-grouped folds over all people; 0: the dataset's splits (0)",
    )  # fmt: skip
    parser.add_argument(
        "--spans-per-person", type=int, metavar="N",
        help="of both: at most N spans of a person in tasks about spans, drawn at random; 0: all (50)",
    )  # fmt: skip
    parser.add_argument("--pooling", choices=POOLINGS, help="of both: how tokens become one vector (that of the suite)")
    parser.add_argument("--out", type=output, metavar="DIR", help="where results go (W/eval)")


def run(args: argparse.Namespace) -> int:
    """Writes `SUITE.json` and `SUITE.md`, with the generative suite `figures/`, and prints the table of totals."""
    for name, value in (("--max-windows", args.max_windows), ("--batch-size", args.batch_size)):
        at_least_one(name, value)
    if args.curve and (args.step is not None or args.suite != "generative"):
        raise UserError("--curve scores every checkpoint of the generative suite: leave out --step or --curve.")
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.evals import make_suite
    from lsm_jax.report.charts import error_over_minutes
    from lsm_jax.report.reconstructions import PNG, write_reconstructions
    from lsm_jax.train.loop import use_compile_cache
    from lsm_jax.train.mesh import cores, use_cores
    from lsm_jax.train.run import load_run, whole_steps

    use_compile_cache()
    use_cores(cores())
    started, out = time.perf_counter(), args.out or args.workdir / "eval"
    shared = {"split": args.split, "max_windows": args.max_windows, "batch_size": args.batch_size, "seed": args.seed}
    given = {"pooling": args.pooling, "spans_per_person": args.spans_per_person}
    probes = {"folds": args.folds, **{name: value for name, value in given.items() if value is not None}}
    own = {
        "generative": {"mask_channels": args.mask_channels},
        "zeroshot": {"prompts": args.prompts},
        "captioning": {"decode": args.decode},
        "probe": {"methods": tuple(args.methods or PROBE_METHODS), **probes},
        "robustness": {"methods": tuple(args.methods or PROBE_METHODS[:3]), **probes},
    }.get(args.suite, {})
    datasets: list[Dataset] = []
    objective, results = None, []
    for step in whole_steps(args.workdir) if args.curve else [args.step]:
        loaded = load_run(args.workdir, step, objective)
        objective, datasets = loaded.objective, datasets or held_out_datasets(args, loaded)
        with progress_bar(f"{args.suite}, step {loaded.step}: windows") as progress:
            suite = make_suite(args.suite, **shared, **own, progress=progress)
            suite.check_objective(loaded.config.objective.name)
            results.append(suite.run(loaded, datasets))
        path = results[-1].write(out / f"step-{step}" if args.curve else out)
    if args.curve:
        path, others = out / "learning_curve.png", "step-*/ beside it"
        error_over_minutes(results).savefig(path, **PNG)
    else:
        print("\n".join([results[0].table(), "", *results[0].notes, ""]))
        others = "its .md"
    if args.suite == "generative" and not args.curve:
        write_reconstructions(loaded, datasets, out / "figures", args.split, args.seed, args.batch_size)
        others = "its .md and figures"
    print(f"{path} and {others}, in {time.perf_counter() - started:.0f} s")
    return 0


def at_least_one(option: str, value: int | None) -> None:
    """UserError for a count below 1."""
    if value is not None and value < 1:
        raise UserError(f"{option} {value}: give a whole number of at least 1.")


def held_out_datasets(args: argparse.Namespace, loaded: Run) -> list[Dataset]:
    """The datasets to score on; UserError where the run was trained on a person of the split."""
    from lsm_jax.data.spec import open_datasets
    from lsm_jax.data.store import open_dataset
    from lsm_jax.evals.suite import check_never_trained_on

    datasets = [open_dataset(path) for path in args.data] if args.data else list(open_datasets(loaded.config.data))
    if not check_never_trained_on(args.workdir, datasets, args.split):
        print(f"{args.workdir} does not say whom the run was trained on: not checked against the people scored on.")
    return datasets
