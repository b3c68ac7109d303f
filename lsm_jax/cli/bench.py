"""`lsm bench`: speed, side by side with baselines."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from lsm_jax.cli.options import check_mode, flag, given
from lsm_jax.cli.places import check_writable, data_folder, output
from lsm_jax.errors import UserError
from lsm_jax.tools.bench.settings import BENCHES, options, parse_option

HELP = "measure attention, the input, the training step or inference against baselines, in turns in one run"
EXAMPLE = "lsm bench step --variant base --decoder all --missing 0,0.5 --dtype float32,bfloat16"
ACCEPTS_OVERRIDES = True

_CONFIG: dict[str, dict[str, Any]] = {
    "config": {
        "metavar": "FILE[:VARIANT]",
        "help": "configuration (configs/lsm2.py); --config.section.key=value changes a key",
    },
    "variant": {"help": "its variant, where --config names none (step base, inference open)"},
}
# Options that are no fields of the settings, by the benchmarks that have them.
_FURTHER_OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "input": {"data": {"type": data_folder, "help": "a dataset; 400 synthetic days if left out"}},
    "step": {
        **_CONFIG,
        "decoder": {"choices": ("all", "cross", "observed"), "help": "model.decoder; the variant's if left out"},
    },
    "inference": _CONFIG,
}
_COLUMNS = {
    "attention": ("name", "direction", "tokens", "visible", "dtype", "seconds", "gflops"),
    "input": ("name", "workers", "windows_per_second", "windows_per_cpu_second", "bytes_per_second"),
    "step": ("name", "missing", "dtype", "windows_per_second", "gflops", "share_of_matrix_product", "peak_bytes"),
    "inference": (
        "name",
        "missing",
        "windows_per_second",
        "windows_per_cpu_second",
        "gflops",
        "share_of_matrix_product",
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm bench`: those of all benchmarks, then those of one or two."""
    parser.add_argument("kind", choices=tuple(BENCHES), help="what to measure")
    parser.add_argument("--out", type=output, default=Path("bench"), metavar="DIR", help="writes DIR/KIND.json (bench)")
    for kinds, names in _options_by_kinds().items():
        group = parser.add_argument_group(" and ".join(kinds))
        for name in names:
            described = _FURTHER_OPTIONS.get(kinds[0], {}).get(name) or _described(name, kinds)
            group.add_argument(flag(name), **described)


def run(args: argparse.Namespace) -> int:
    """Measures, prints a table and writes the JSON file."""
    readers = {name: kinds for kinds, names in _options_by_kinds().items() for name in names}
    check_mode(args, readers, args.kind, "lsm bench")
    if args.overrides and args.kind not in ("step", "inference"):
        raise UserError(f"{args.overrides[0]}: only `lsm bench step` and `lsm bench inference` read a configuration.")
    from lsm_jax.cli.tables import print_table

    out = args.out / f"{args.kind}.json"
    check_writable(out)
    measure = {"attention": _attention, "input": _input, "step": _step, "inference": _inference}[args.kind]
    report = measure(args, BENCHES[args.kind](**given(args, options(args.kind))), out)
    columns = _COLUMNS[args.kind]
    rows = [
        [result.get(column) for column in columns]
        + [{name: faster["ratio"] for name, faster in result["times_faster_than"].items()}]
        for result in report["results"]
    ]
    print_table("", [column.replace("_", " ") for column in (*columns, "times_faster_than")], rows)
    for name, reason in report.get("left_out", {}).items():
        print(f"{name} left out: {reason}")
    devices = report["machine"]["devices"]
    if (used := report.get("devices_used", len(devices))) < len(devices):
        print(f"on {used} of {len(devices)} devices ({devices[0]})")
    print(out)
    return 0


def _attention(_: argparse.Namespace, settings: Any, out: Path) -> dict[str, Any]:
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.tools.bench.attention import measure
    from lsm_jax.train.mesh import cores_for, use_cores

    use_cores(cores_for(settings.heads))
    with progress_bar("attention: comparisons") as progress:
        return measure(settings, out, progress)


def _step(args: argparse.Namespace, settings: Any, out: Path) -> dict[str, Any]:
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.config import load_config
    from lsm_jax.tools.bench.step import measure
    from lsm_jax.train.mesh import cores_for, use_cores

    decoder = [f"--config.model.decoder={args.decoder}"] if args.decoder else []
    config = load_config(_location(args, "base"), [*args.overrides, *decoder])
    use_cores(cores_for(settings.batch_size))
    with progress_bar("step: runs") as progress:
        return measure(config, settings, out, progress)


def _inference(args: argparse.Namespace, settings: Any, out: Path) -> dict[str, Any]:
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.config import load_config
    from lsm_jax.tools.bench.inference import measure
    from lsm_jax.train.mesh import cores, use_cores

    config = load_config(_location(args, "open"), args.overrides)
    use_cores(cores())
    with progress_bar("inference: runs") as progress:
        return measure(config, settings, out, progress)


def _input(args: argparse.Namespace, settings: Any, out: Path) -> dict[str, Any]:
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.tools.bench.input import measure

    with progress_bar("input: runs") as progress:
        return measure(args.data, settings, out, progress)


def _location(args: argparse.Namespace, variant: str) -> str:
    """FILE:VARIANT of the configuration, this variant where none is named. UserError where both options name one."""
    file, _, named = (args.config or "configs/lsm2.py").partition(":")
    if named and args.variant:
        raise UserError(f"--config {args.config} names a variant already: leave out --variant {args.variant}.")
    return f"{file}:{named or args.variant or variant}"


def _options_by_kinds() -> dict[tuple[str, ...], list[str]]:
    """Names of options by the benchmarks that have them; first those that all have."""
    names = {kind: [*options(kind), *_FURTHER_OPTIONS.get(kind, ())] for kind in BENCHES}
    found: dict[tuple[str, ...], list[str]] = {}
    for name in dict.fromkeys(itertools.chain(*names.values())):
        found.setdefault(tuple(kind for kind in BENCHES if name in names[kind]), []).append(name)
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _described(name: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of `add_argument` for a field of the settings. Its default is None, for "not given"."""
    defaults = [options(kind)[name].default for kind in kinds]
    texts = [",".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in defaults]
    text = texts[0]
    if len({*texts}) > 1:
        text = ", ".join(f"{kind} {each}" for kind, each in zip(kinds, texts, strict=True))

    def read(given: str) -> Any:
        try:
            return parse_option(kinds[0], name, given)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    meaning = options(kinds[0])[name].metadata["help"]
    return {"help": f"{meaning} ({text})" if text else meaning, "type": read}
