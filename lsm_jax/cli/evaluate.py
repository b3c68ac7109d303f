"""`lsm evaluate`: a run against every baseline, on people it was never trained on."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm_jax.cli.embed import POOLINGS
from lsm_jax.cli.options import check_mode, flag, given, whole_number
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

_PROBES = ("probe", "robustness")
# Options by the field of the suite that they set: the suites that have it, and the arguments of `add_argument`.
_OPTIONS_OF_SUITES: Mapping[str, tuple[Sequence[str], Mapping[str, Any]]] = {
    "mask_channels": (
        ("generative", "openmhc"),
        {
            "type": int, "metavar": "N",
            "help": "channels hidden together, to score models with other tokens on equal cells (those of a token)",
        },
    ),
    "prompts": (
        ("zeroshot",),
        {"type": local_path, "metavar": "FILE.toml", "help": "a shipped file that fits the data where left out"},
    ),
    "decode": (("captioning",), {"metavar": "D", "help": "greedy, beam, nucleus (greedy)"}),
    "methods": (
        _PROBES,
        {
            "nargs": "+", "metavar": "M",
            "help": f"which of {' '.join(PROBE_METHODS)} (all; robustness knows the first three); slow, of probe only: "
            "pretrained_attentive fine_tuned scratch",
        },
    ),
    "folds": (
        _PROBES,
        {"type": int, "metavar": "K", "help": "K person-grouped folds over all people; 0: the dataset's splits (0)"},
    ),
    "spans_per_person": (
        _PROBES,
        {
            "type": int, "metavar": "N",
            "help": "at most N spans of a person in tasks about spans, drawn at random; 0: all (50)",
        },
    ),
    "pooling": (
        _PROBES,
        {"choices": POOLINGS, "help": "how tokens become one vector (channel_mean_sd)"},
    ),
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm evaluate`."""
    parser.add_argument("--workdir", type=run_folder, required=True, metavar="W", help="the run's folder")
    parser.add_argument("--suite", choices=tuple(SUITES), default="generative", help="which tasks (generative)")
    parser.add_argument(
        "--data", type=data_folder, nargs="+", metavar="DIR", help="datasets to score on; the run's own where left out"
    )
    parser.add_argument("--split", choices=("validation", "test"), help="whose windows (test)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; the newest where left out")
    parser.add_argument(
        "--curve", action="store_true", help="score every checkpoint kept and draw error over minutes of training"
    )
    parser.add_argument(
        "--max-windows", type=int, metavar="N",
        help="a quick look: at most N windows of each dataset, whole people for generative and openmhc, else spread "
        "evenly over the split; probe and robustness take N of each split",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, metavar="B", help="windows per model call (32)")
    parser.add_argument("--seed", type=whole_number, metavar="S", help="of hidden tokens and bootstrap (0)")
    for name, (suites, described) in _OPTIONS_OF_SUITES.items():
        parser.add_argument(flag(name), **{**described, "help": f"of {', '.join(suites)}: {described['help']}"})
    parser.add_argument("--out", type=output, metavar="DIR", help="where results go (W/eval)")


def run(args: argparse.Namespace) -> int:
    """Writes `SUITE.json` and `SUITE.md`, with the generative suite `figures/`, and prints the table of totals."""
    _check_options(args)
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.evals import make_suite
    from lsm_jax.report.charts import error_over_minutes
    from lsm_jax.report.reconstructions import PNG, write_reconstructions
    from lsm_jax.train.loop import use_compile_cache
    from lsm_jax.train.mesh import cores, use_cores
    from lsm_jax.train.run import load_run, whole_steps
    from lsm_jax.train.workdir import read_trained_on

    use_compile_cache()
    use_cores(cores())
    started, out = time.perf_counter(), args.out or args.workdir / "eval"
    suite = make_suite(args.suite, **_settings(args))
    datasets: list[Dataset] = []
    objective, results = None, []
    for step in whole_steps(args.workdir) if args.curve else [args.step]:
        loaded = load_run(args.workdir, step, objective)
        objective = loaded.objective
        datasets = datasets or held_out_datasets(loaded, args.workdir, suite.split, args.data)
        with progress_bar(f"{args.suite}, step {loaded.step}: windows") as progress:
            suite.check_objective(loaded.config.objective.name)
            results.append(dataclasses.replace(suite, progress=progress).run(loaded, datasets))
        path = results[-1].write(out / f"step-{step}" if args.curve else out)
    if args.curve:
        path, others = out / "learning_curve.png", "step-*/ beside it"
        error_over_minutes(results).savefig(path, **PNG)
    else:
        print("\n".join([results[0].table(), "", *results[0].notes, ""]))
        others = "its .md"
    if args.suite == "generative" and not args.curve:
        checked = bool(read_trained_on(args.workdir))  # or `held_out_datasets` had nothing to check with
        write_reconstructions(loaded, datasets, out / "figures", suite.split, suite.seed, suite.batch_size, checked)
        others = "its .md and figures"
    print(f"{path} and {others}, in {time.perf_counter() - started:.0f} s")
    return 0


def _check_options(args: argparse.Namespace) -> None:
    """UserError for values out of range and options that do not go together."""
    for name in ("max_windows", "batch_size"):
        at_least_one(flag(name), getattr(args, name))
    readers = {name: suites for name, (suites, _) in _OPTIONS_OF_SUITES.items()}
    check_mode(args, readers, args.suite, "lsm evaluate --suite")
    if args.folds and args.split:
        raise UserError(f"--split {args.split}: --folds {args.folds} scores everyone; leave out one of them.")
    if args.curve and (args.step is not None or args.suite != "generative"):
        raise UserError("--curve scores every checkpoint of the generative suite: leave out --step or --curve.")


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the suite that were given."""
    settings = given(args, ("split", "max_windows", "batch_size", "seed", *_OPTIONS_OF_SUITES))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def at_least_one(option: str, value: int | None) -> None:
    """UserError for a count below 1."""
    if value is not None and value < 1:
        raise UserError(f"{option} {value}: give a whole number of at least 1.")


def held_out_datasets(run: Run, workdir: Path, split: str, data: Sequence[Path] | None = None) -> list[Dataset]:
    """The datasets to score on; UserError where the run was trained on a person of the split.

    Args:
      data: datasets to take instead of the run's own.
    """
    from lsm_jax.data.spec import open_datasets
    from lsm_jax.data.store import open_dataset
    from lsm_jax.evals.suite import check_never_trained_on

    datasets = [open_dataset(path) for path in data] if data else list(open_datasets(run.config.data))
    if not check_never_trained_on(workdir, datasets, split):
        print(f"{workdir} does not say whom the run was trained on: not checked against the people scored on.")
    return datasets
