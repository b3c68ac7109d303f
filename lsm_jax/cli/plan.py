"""`lsm plan`: what a pod will do with a configuration, before it is booked."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

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


def run(args: argparse.Namespace) -> int:
    """Writes `plan.json` and prints it as a table."""
    import os

    # The devices planned for need no device here; asking for one would wait for hardware.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from rich.console import Console
    from rich.table import Table

    from lsm_jax.config import load_config
    from lsm_jax.planning.plan import make_plan, write_plan

    plan = make_plan(load_config(args.config, args.overrides), args.topology)
    file = write_plan(plan, args.out)
    table = Table(title=f"{args.config} on {args.topology}", show_header=False)
    for name, value in plan.items():
        table.add_row(name, _text(value))
    Console().print(table)
    print(file)
    return 0


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return "\n".join(map(_text, value)) or "none"
    return str(value)
