"""`lsm retrieve`: days found by words, and words found by days."""

from __future__ import annotations

import argparse
import json

from lsm_jax.cli.evaluate import at_least_one
from lsm_jax.cli.places import data_folder, output, run_folder
from lsm_jax.errors import UserError

HELP = "find days by words, or the words for days"
EXAMPLE = 'lsm retrieve --workdir runs/sensorlm --data data/synth --text "The wearer did some hiking."'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm retrieve`."""
    parser.add_argument(
        "--workdir", type=run_folder, required=True, metavar="W", help="the folder of a sensor-text run"
    )
    parser.add_argument("--data", type=data_folder, required=True, metavar="DIR", help="the dataset that is searched")
    parser.add_argument("--text", nargs="+", default=(), metavar="TEXT", help="find days for each of these texts")
    parser.add_argument(
        "--window", nargs="+", type=int, default=(), metavar="ID", help="find captions for these windows of the split"
    )
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test", help="whose days (test)")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="how many are shown (5)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; the newest where left out")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="windows per model call (32)")
    parser.add_argument("--out", type=output, metavar="FILE.json", help="what was found, as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints what was found for each query, and writes it where asked to."""
    if not args.text and not args.window:
        raise UserError('nothing to look for: give --text "..." or --window ID.')
    for name, value in (("--top", args.top), ("--batch-size", args.batch_size)):
        at_least_one(name, value)
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.data.store import open_dataset
    from lsm_jax.evals.result import write_whole
    from lsm_jax.evals.retrieval import Retrieval
    from lsm_jax.train.loop import use_compile_cache
    from lsm_jax.train.run import load_run

    use_compile_cache()
    loaded, dataset = load_run(args.workdir, args.step), open_dataset(args.data)
    with progress_bar(f"days of {dataset.name}") as progress:
        suite = Retrieval(batch_size=args.batch_size, progress=progress)
        source = dataset.nonempty_source(args.split)
        found = suite.search(loaded, source, texts=args.text, windows=args.window, top=args.top)
    for query in found:
        print(f"\n{query.get('text') or 'window ' + str(query['example'])}")
        for rank, hit in enumerate(query["found"], start=1):
            print(f"{rank:3}  {hit['similarity']:+.3f}  window {hit['example']}, {hit['date']}: {hit['caption']}")
    if args.out:
        content = {"dataset": dataset.name, "split": args.split, "step": loaded.step, "queries": found}
        write_whole(args.out, json.dumps(content, indent=1, ensure_ascii=False))
        print(args.out)
    return 0
