"""`lsm plan`: what a pod will do with a configuration, before it is booked."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

HELP = "compile the real training step for a TPU or GPU pod nobody has here, and say what it will do"
EXAMPLE = "lsm plan --config configs/lsm2.py:base --topology v5e:16x16 --out plans/base"
ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm plan`."""
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="configuration, as of `lsm train`")
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="v5e:16x16 (chips along each axis), h100:2x8 (hosts x GPUs)"
    )
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where plan.json goes (.)")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR",
        help="keep the compiled step, for `lsm train` on such a pod with JAX_COMPILATION_CACHE_DIR=DIR to start with",
    )  # fmt: skip
    parser.add_argument(
        "--search", action="store_true", help="try other meshes, batches and rematerialisation as well; keep the best"
    )
    parser.add_argument(
        "--seconds", type=float, default=900.0, help="of the search, after which no other trial begins (900)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes `plan.json` and prints it as a table."""
    import os

    # The devices planned for need no device here; asking for one would wait for hardware.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # What JAX tells the TPU's compiler on a TPU host; a program kept here is only found there if it was told the same.
    os.environ.setdefault("LIBTPU_INIT_ARGS", "--xla_tpu_use_enhanced_launch_barrier=true")
    import jax
    from rich.console import Console

    from lsm_jax.config import load_config
    from lsm_jax.tools.plan.plan import make_plan, write_plan
    from lsm_jax.tools.plan.search import search

    if args.keep:
        jax.config.update("jax_compilation_cache_dir", str(args.keep))
    console, config = Console(), load_config(args.config, args.overrides)
    with console.status(f"compiling for {args.topology}"):
        if args.search:
            plan, trials = search(config, args.topology, args.seconds, console.print)
            plan = plan | {"search": trials}
        else:
            plan = make_plan(config, args.topology)
    file = write_plan(plan, args.out)
    if "search" in plan:
        trials = plan["search"]
        console.print(_table("Trials, fastest first", list(trials[0]), [list(trial.values()) for trial in trials]))
    shown = [(name, value) for name, value in plan.items() if name != "search"]
    console.print(_table(f"{args.config} on {args.topology}", None, shown))
    print(file)
    return 0


def _table(title: str, columns: Sequence[str] | None, rows: Iterable[Sequence[Any]]) -> Table:
    from rich.table import Table

    table = Table(*columns or (), title=title, show_header=columns is not None)
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return "\n".join(map(_text, value)) or "none"
    return str(value)
