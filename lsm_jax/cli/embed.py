"""`lsm embed`: embeddings of days, people, hours and tokens, as Parquet."""

from __future__ import annotations

import argparse

from lsm_jax.cli.places import data_folder, output, run_folder
from lsm_jax.errors import UserError

# Of objectives.pooling, whose import would slow help down.
POOLINGS = ("mean", "mean_sd", "channel", "channel_mean_sd", "hour")
LEVELS = ("day", "person", "hour", "token")  # of export.levels, likewise
HELP = "turn days and people into embeddings, as Parquet"
EXAMPLE = "lsm embed --workdir runs/lsm2 --data data/fitabase --out embeddings.parquet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm embed`."""
    parser.add_argument("--workdir", type=run_folder, required=True, metavar="W", help="the run's folder")
    parser.add_argument("--data", type=data_folder, required=True, metavar="DIR", help="the dataset to embed")
    parser.add_argument("--split", choices=("train", "validation", "test"), help="all of them where left out")
    parser.add_argument(
        "--out",
        type=output,
        required=True,
        metavar="FILE.parquet",
        help="a row per day, hour or token; with days FILE.people.parquet, a row per person",
    )
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; the newest where left out")
    parser.add_argument(
        "--level", choices=LEVELS, default="day", help="what has an embedding: day (with people), person, hour or token"
    )
    parser.add_argument(
        "--pooling",
        choices=(*POOLINGS, "text"),
        default="",
        help="how tokens become a day (mean; text for a sensor-text run that compares days with texts)",
    )
    parser.add_argument("--batch-size", type=int, default=256, metavar="B", help="windows packed together (256)")


def run(args: argparse.Namespace) -> int:
    """Writes both files and prints how much is in them."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: give a whole number of at least 1.")
    if args.out.suffix != ".parquet":
        raise UserError(f"--out {args.out}: name a file that ends in .parquet.")
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.data.store import SPLITS, open_dataset
    from lsm_jax.export.embed import write_embeddings
    from lsm_jax.export.levels import check_level
    from lsm_jax.train.loop import use_compile_cache
    from lsm_jax.train.mesh import cores, use_cores
    from lsm_jax.train.run import load_run

    check_level(args.level, args.pooling)
    use_cores(cores())
    splits = (args.split,) if args.split else SPLITS
    use_compile_cache()
    loaded, dataset = load_run(args.workdir, args.step), open_dataset(args.data)
    with progress_bar(f"embedding {dataset.name}: windows") as progress:
        written = write_embeddings(
            loaded, dataset, args.out, splits=splits, batch_size=args.batch_size, pooling=args.pooling,
            level=args.level, progress=progress,
        )  # fmt: skip
    plural = {"day": "days", "person": "people", "hour": "hours", "token": "tokens"}[args.level]
    print(f"{written.file}: {written.rows} {plural}, {written.width} numbers each ({written.empty} had no token)")
    if written.people_file:
        print(f"{written.people_file}: {written.people} people")
    return 0
