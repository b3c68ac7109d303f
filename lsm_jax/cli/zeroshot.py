"""`lsm zeroshot`: which activities each day holds, by sentences instead of a trained classifier."""

from __future__ import annotations

import argparse

from lsm_jax.cli.evaluate import at_least_one, held_out_datasets
from lsm_jax.cli.options import whole_number
from lsm_jax.cli.places import data_folder, local_path, output, run_folder

HELP = "name what days show by sentences: a prompt file's classes against every day"
EXAMPLE = "lsm zeroshot --workdir runs/sensorlm --data data/synth --prompts configs/prompts/activities.toml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm zeroshot`."""
    parser.add_argument(
        "--workdir", type=run_folder, required=True, metavar="W", help="the folder of a sensor-text run"
    )
    parser.add_argument(
        "--data", type=data_folder, required=True, metavar="DIR", help="the dataset whose days are named"
    )
    parser.add_argument(
        "--prompts", type=local_path, required=True, metavar="FILE.toml", help="classes and their sentences"
    )
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test", help="whose days (test)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; the newest where left out")
    parser.add_argument("--batch-size", type=int, default=32, metavar="B", help="windows per model call (32)")
    parser.add_argument("--seed", type=whole_number, default=0, metavar="S", help="of the bootstrap (0)")
    parser.add_argument("--out", type=output, metavar="FILE.json", help="where results go (W/zeroshot.json)")


def run(args: argparse.Namespace) -> int:
    """Writes the AUROC of each class and every day's scores, and prints the table."""
    at_least_one("--batch-size", args.batch_size)
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.evals.zeroshot import ZeroShot
    from lsm_jax.train.loop import use_compile_cache
    from lsm_jax.train.run import load_run

    use_compile_cache()
    loaded = load_run(args.workdir, args.step)
    (dataset,) = held_out_datasets(loaded, args.workdir, args.split, [args.data])
    with progress_bar(f"days of {dataset.name}") as progress:
        shared = {"split": args.split, "batch_size": args.batch_size, "seed": args.seed, "progress": progress}
        result = ZeroShot(**shared, prompts=args.prompts, probes=False).run(loaded, [dataset])
    path = result.write_json(args.out or args.workdir / "zeroshot.json")
    print("\n".join([result.table(), "", *result.notes, str(path)]))
    return 0
