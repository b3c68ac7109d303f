"""`lsm export`: a run in files that others can use, checked while they are written."""

from __future__ import annotations

import argparse

from lsm_jax.cli.places import output, run_folder

HELP = "write a run's parameters, configuration and card for others to use"
EXAMPLE = "lsm export --workdir runs/lsm2 --format safetensors --out exports/lsm2"

FORMATS = ("safetensors",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm export`."""
    parser.add_argument("--workdir", type=run_folder, required=True, metavar="W", help="the run's folder")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="what to write (safetensors)")
    parser.add_argument("--out", type=output, metavar="DIR", help="folder to write (W/export/safetensors)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; the newest where left out")


def run(args: argparse.Namespace) -> int:
    """Writes the folder and prints what was checked."""
    import json

    from lsm_jax.export.safetensors import export_safetensors
    from lsm_jax.report.render import model_card
    from lsm_jax.train.run import load_run

    out = args.out or args.workdir / "export" / args.format
    export_safetensors(load_run(args.workdir, args.step), args.workdir, out, model_card)
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    print(f"{out}: {card['parameters'] / 1e6:.2f}M parameters of step {card['step']}, card in README.md")
    print("\n".join(f"checked: {check}" for check in card["checked"]))
    return 0
