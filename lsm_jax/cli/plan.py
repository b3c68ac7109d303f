"""`lsm plan`: memory, FLOPs and speed of a configuration on a TPU or GPU pod, without the pod."""

from __future__ import annotations

import argparse
from pathlib import Path

from lsm_jax.cli.options import check_needed
from lsm_jax.cli.places import check_writable, local_path, output

HELP = "compile the real training step for a TPU or GPU pod that is not here: memory, FLOPs, least time of a step"
EXAMPLE = "lsm plan --config configs/lsm2.py:base --topology v5e:16x16 --out plans/base"
ACCEPTS_OVERRIDES = True

_SECONDS = 900.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm plan`."""
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="configuration, as of `lsm train`")
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="v5e:16x16 (chips along each axis), h100:2x8 (hosts x GPUs)"
    )
    parser.add_argument("--out", type=output, default=Path(), metavar="DIR", help="where plan.json goes (.)")
    parser.add_argument(
        "--keep", type=local_path, metavar="DIR",
        help="keep the compiled step, for `lsm train` on such a pod with JAX_COMPILATION_CACHE_DIR=DIR",
    )  # fmt: skip
    parser.add_argument(
        "--search",
        action="store_true",
        help="try other meshes, batches and rematerialisation; keep the fastest that fits",
    )
    parser.add_argument(
        "--seconds", type=float, help=f"of --search: it begins no trial later than this ({_SECONDS:.0f})"
    )


def run(args: argparse.Namespace) -> int:
    """Writes `plan.json` and prints it as a table."""
    check_needed(args, "search", ["seconds"])
    import os

    # Planning needs no accelerator; asking for one would wait for it.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # JAX sets this on a TPU host. The key of a compiled program in the cache depends on it.
    os.environ.setdefault("LIBTPU_INIT_ARGS", "--xla_tpu_use_enhanced_launch_barrier=true")
    import jax
    from rich.console import Console

    from lsm_jax.cli.tables import print_table
    from lsm_jax.config import load_config
    from lsm_jax.tools.plan.plan import make_plan, write_plan
    from lsm_jax.tools.plan.search import search

    if args.keep:
        jax.config.update("jax_compilation_cache_dir", str(args.keep))
    console, config = Console(), load_config(args.config, args.overrides)
    check_writable(args.out / "plan.json")
    with console.status(f"compiling for {args.topology}"):
        if args.search:
            seconds = _SECONDS if args.seconds is None else args.seconds
            plan, trials = search(config, args.topology, seconds, console.print)
        else:
            plan, trials = make_plan(config, args.topology), []
    file = write_plan(plan | ({"search": trials} if trials else {}), args.out)
    if trials:
        print_table("Trials, fastest first", list(trials[0]), [list(trial.values()) for trial in trials])
    print_table(f"{args.config} on {args.topology}", (), plan.items())
    print(file)
    return 0
