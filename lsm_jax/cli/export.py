"""`lsm export`: a run in files that others can use, checked while they are written."""

from __future__ import annotations

import argparse

from lsm_jax.cli.places import data_folder, output, run_folder
from lsm_jax.errors import UserError

HELP = "write a run's parameters or embedding function for others to use, checked on real windows"
EXAMPLE = "lsm export --workdir runs/lsm2 --format safetensors --out exports/lsm2"

FORMATS = ("safetensors", "stablehlo", "onnx")  # of export.folder, whose import would slow help down


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm export`."""
    parser.add_argument("--workdir", type=run_folder, required=True, metavar="W", help="the run's folder")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="what to write (safetensors)")
    parser.add_argument("--out", type=output, metavar="DIR", help="folder to write (W/export/FORMAT)")
    parser.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step; the newest where left out")
    parser.add_argument(
        "--data", type=data_folder, action="append", default=[], metavar="DIR",
        help="a dataset to check the export on; the run's own where left out",
    )  # fmt: skip
    parser.add_argument(
        "--push-to-hub", metavar="NAME/MODEL",
        help="then upload it to this repository of the Hugging Face Hub, which is made, private, if it does not exist",
    )  # fmt: skip


def _check_store(url: str) -> None:
    """UserError where the place in the store holds something else than an earlier export."""
    from lsm_jax.export.folder import CARD, check_replaceable
    from lsm_jax.storage import Store

    store = Store(url)
    check_replaceable(url, store.files(), store.read(CARD))


def _check_push(args: argparse.Namespace) -> None:
    """UserError where the Hub could not take the export, or where it would go to a store as well."""
    from lsm_jax.export.hub import check_hub

    if args.urls.get("out") or (not args.out and args.urls.get("workdir")):
        raise UserError(
            "--push-to-hub uploads a folder of this machine: name one in --out, and copy it to the store afterwards."
        )
    check_hub(args.push_to_hub)


def run(args: argparse.Namespace) -> int:
    """Writes the folder and prints what was checked."""
    from lsm_jax.export.folder import export_run
    from lsm_jax.export.hub import push_to_hub
    from lsm_jax.report.render import model_card
    from lsm_jax.train.run import load_run

    if args.push_to_hub:
        _check_push(args)
    out = args.out or args.workdir / "export" / args.format
    if url := args.urls.get("out"):
        _check_store(url)
    card = export_run(load_run(args.workdir, args.step), args.workdir, out, args.format, model_card, args.data)
    print(f"{out}: {card['parameters'] / 1e6:.2f}M parameters of step {card['step']}, card in README.md")
    print("\n".join(f"checked: {check}" for check in card["checked"]))
    if args.push_to_hub:
        print(f"uploaded to {push_to_hub(out, args.push_to_hub)}")
    return 0
