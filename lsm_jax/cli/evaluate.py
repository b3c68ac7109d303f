"""`lsm evaluate`: a run against every baseline, on people it was never trained on."""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lsm_jax.errors import UserError

if TYPE_CHECKING:  # importing these takes seconds, and help must come at once
    from lsm_jax.data.store import Dataset
    from lsm_jax.evals.results import Results
    from lsm_jax.train.run import Run

HELP = "score a run on the papers' tasks against the baselines, on held-out people"
EXAMPLE = "lsm evaluate --workdir runs/lsm2 --suite generative"

# Of sensor-text runs; `fewshot` takes LSM-2 as well.
WORD_SUITES = {
    "zeroshot": "lsm_jax.evals.zeroshot",
    "fewshot": "lsm_jax.evals.fewshot",
    "retrieval": "lsm_jax.evals.retrieval",
    "captioning": "lsm_jax.evals.captioning",
}
SUITES = ("generative", *WORD_SUITES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm evaluate`."""
    parser.add_argument("--workdir", type=Path, required=True, metavar="W", help="the run's folder")
    parser.add_argument("--suite", choices=SUITES, default="generative", help="which tasks (generative)")
    parser.add_argument(
        "--data", type=Path, nargs="+", metavar="DIR", help="datasets to score on; the run's own where left out"
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="whose windows (test)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; the newest where left out")
    parser.add_argument(
        "--curve", action="store_true", help="score every checkpoint kept and draw error over minutes of training"
    )
    parser.add_argument(
        "--max-windows", type=int, metavar="N", help="at most N windows of each dataset, of whole people: a quick look"
    )
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="windows per model call (32)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of hidden tokens and bootstrap (0)")
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE.toml", help="of zeroshot; a shipped file that fits the data if left out"
    )
    parser.add_argument("--decode", default="greedy", metavar="D", help="of captioning: greedy, beam, nucleus (greedy)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (W/eval)")


def run(args: argparse.Namespace) -> int:
    """Writes `SUITE.json` and `SUITE.md`, with the generative suite `figures/`, and prints the table of totals."""
    for name, value in (("--max-windows", args.max_windows), ("--batch-size", args.batch_size)):
        at_least_one(name, value)
    if args.curve and (args.step is not None or args.suite != "generative"):
        raise UserError("--curve scores every checkpoint of the generative suite: leave out --step or --curve.")
    if args.suite in WORD_SUITES:
        return run_word_suite(args)
    from lsm_jax.evals.results import totals
    from lsm_jax.report.charts import error_over_minutes
    from lsm_jax.report.reconstructions import PNG, write_reconstructions
    from lsm_jax.train.loop import use_compile_cache
    from lsm_jax.train.run import load_run, whole_steps

    use_compile_cache()
    started = time.perf_counter()
    out = args.out or args.workdir / "eval"
    if args.curve:
        points, objective, datasets = [], None, None
        for step in whole_steps(args.workdir):
            loaded = load_run(args.workdir, step, objective)
            objective, datasets = loaded.objective, datasets or held_out_datasets(args, loaded)
            points.append(score(args, loaded, datasets))
            points[-1].write(out / f"step-{step}")
        path = out / "learning_curve.png"
        error_over_minutes(points).savefig(path, **PNG)
        print(f"{path} and step-*/ beside it, in {time.perf_counter() - started:.0f} s")
        return 0
    loaded = load_run(args.workdir, args.step)
    datasets = held_out_datasets(args, loaded)
    results = score(args, loaded, datasets)
    path = results.write(out)
    write_reconstructions(loaded, datasets, out / "figures", args.split, args.seed, args.batch_size)
    print("\n".join(totals(results)))
    print(f"\n{path} and its .md and figures, in {time.perf_counter() - started:.0f} s")
    return 0


def run_word_suite(args: argparse.Namespace) -> int:
    """One of the suites about words and classes: its table, and `SUITE.json` with `SUITE.md`."""
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.evals.findings import Settings
    from lsm_jax.train.loop import use_compile_cache
    from lsm_jax.train.run import load_run

    use_compile_cache()
    started = time.perf_counter()
    evaluate = getattr(importlib.import_module(WORD_SUITES[args.suite]), f"evaluate_{args.suite}")
    loaded = load_run(args.workdir, args.step)
    datasets = held_out_datasets(args, loaded)
    with progress_bar(f"{args.suite}, step {loaded.step}: windows") as tell:
        settings = Settings(args.split, args.max_windows, args.batch_size, args.seed, args.prompts, args.decode, tell)
        findings = evaluate(loaded, datasets, settings)
    path = findings.write((args.out or args.workdir / "eval") / f"{args.suite}.json")
    print("\n".join([*findings.table(), "", *findings.notes]))
    print(f"\n{path} and its .md, in {time.perf_counter() - started:.0f} s")
    return 0


def at_least_one(option: str, value: int | None) -> None:
    """UserError for a count below 1."""
    if value is not None and value < 1:
        raise UserError(f"{option} {value}: give a whole number of at least 1.")


def held_out_datasets(args: argparse.Namespace, loaded: Run) -> dict[str, Dataset]:
    """The datasets to score on, by name; UserError where the run was trained on someone of the split."""
    from lsm_jax.data.spec import open_datasets
    from lsm_jax.data.store import open_dataset
    from lsm_jax.evals.generative import named

    datasets = named([open_dataset(path) for path in args.data] if args.data else open_datasets(loaded.config.data))
    check_people(args.workdir, datasets.values(), args.split)
    return datasets


def check_people(workdir: Path, datasets: Iterable[Dataset], split: str) -> None:
    """UserError where a run was trained on someone of a split; one line where its folder does not say on whom."""
    from lsm_jax.evals.people import check_never_trained_on, trained_people

    trained = trained_people(workdir)
    if not trained:
        print(f"{workdir} does not say whom the run was trained on: not checked against the people scored on.")
    for dataset in datasets:
        check_never_trained_on(trained, dataset.held_out(split), split)


def score(args: argparse.Namespace, loaded: Run, datasets: Mapping[str, Dataset]) -> Results:
    """One checkpoint's results."""
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.evals.generative import evaluate_generative

    with progress_bar(f"{args.suite}, step {loaded.step}: windows") as tell:
        return evaluate_generative(
            loaded,
            datasets,
            split=args.split,
            max_windows=args.max_windows,
            seed=args.seed,
            batch_size=args.batch_size,
            progress=tell,
        )
