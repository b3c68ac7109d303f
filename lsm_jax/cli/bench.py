"""`lsm bench`: speed, side by side with baselines."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lsm_jax.errors import UserError

HELP = "measure attention, the input or the training step against baselines, in turns in one run"
EXAMPLE = "lsm bench step --variant base --decoder all --missing 0,0.5 --dtype float32,bfloat16"
ACCEPTS_OVERRIDES = True

KINDS = ("attention", "input", "step")
_DTYPES = ("float32", "bfloat16")
# What options belong to, beside --out, --repeats, --budget and --seed; None stands for "not given".
_OPTIONS = {
    "only": ("attention", "step"),
    "dtype": ("attention", "step"),
    "tokens": ("attention",),
    "visible": ("attention",),
    "heads": ("attention",),
    "head_size": ("attention",),
    "rows": ("attention",),
    "batch_size": ("step", "input"),
    "config": ("step",),
    "variant": ("step",),
    "decoder": ("step",),
    "missing": ("step",),
    "data": ("input",),
    "workers": ("input",),
    "batches": ("input",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm bench`."""
    parser.add_argument("kind", choices=KINDS, help="what to measure")
    parser.add_argument("--out", type=Path, default=Path("bench"), metavar="DIR", help="writes DIR/KIND.json (bench)")
    parser.add_argument("--repeats", type=_positive, metavar="N", help="times each contender is timed (10)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no round that would end later")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of data and masks (0)")
    both = parser.add_argument_group("attention and step")
    both.add_argument(
        "--only", type=_list(str), metavar="A,B", help="contenders by name; all that run here if left out"
    )
    both.add_argument("--dtype", type=_list(_dtype), metavar="A,B", help="float32, bfloat16 or both (float32)")
    alone = parser.add_argument_group("attention")
    alone.add_argument("--tokens", type=_list(_positive), metavar="N,N", help="positions; several are a sweep (3744)")
    alone.add_argument("--visible", type=_list(_share), metavar="X,X", help="shares that were observed (1,0.5,0.2)")
    alone.add_argument("--heads", type=_positive, metavar="H", help="heads (6)")
    alone.add_argument("--head-size", type=_positive, metavar="D", help="width of a head (64)")
    alone.add_argument("--rows", type=_positive, metavar="R", help="rows of a batch (1)")
    step = parser.add_argument_group("step", "--config.section.key=value changes a key.")
    step.add_argument("--config", metavar="FILE", help="configuration (configs/lsm2.py)")
    step.add_argument("--variant", metavar="NAME", help="its variant (base)")
    step.add_argument(
        "--decoder", choices=("all", "cross", "observed"), help="model.decoder; the variant's if left out"
    )
    step.add_argument(
        "--missing", type=_list(_share), metavar="X,X", help="shares of cells; baselines at the last (0,0.5)"
    )
    windows = parser.add_argument_group("input and step")
    windows.add_argument("--batch-size", type=_positive, metavar="B", help="windows of a batch (step 4, input 32)")
    reading = parser.add_argument_group("input")
    reading.add_argument("--data", type=Path, metavar="DIR", help="a dataset; 400 synthetic days if left out")
    reading.add_argument("--workers", type=_list(_whole), metavar="N,N", help="processes that read ahead (0,1,2)")
    reading.add_argument("--batches", type=_positive, metavar="N", help="batches a round takes (32)")


def run(args: argparse.Namespace) -> int:
    """Measures, prints a table and writes the JSON file."""
    for name, kinds in _OPTIONS.items():
        if getattr(args, name) is not None and args.kind not in kinds:
            raise UserError(f"--{name.replace('_', '-')} is for `lsm bench {' or '.join(kinds)}`, not {args.kind}.")
    if args.overrides and args.kind != "step":
        raise UserError(f"{args.overrides[0]}: only `lsm bench step` reads a configuration.")
    out = args.out / f"{args.kind}.json"
    results = {"attention": _attention, "input": _input, "step": _step}[args.kind](args, out)
    print(out)
    return 0 if results else 1


def _attention(args: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.tools.bench.attention import Settings, measure
    from lsm_jax.train.mesh import cores_for, use_cores

    settings = Settings(**_given(args, "tokens", "visible", "heads", "head_size", "rows", "only", dtype="dtypes"))
    use_cores(cores_for(settings.heads))
    with progress_bar("attention: comparisons") as tell:
        results = measure(settings, out, tell)
    _show(results, ("name", "direction", "tokens", "visible", "dtype", "seconds", "gflops"))
    return results


def _step(args: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.config import load_config
    from lsm_jax.tools.bench.step import Settings, measure
    from lsm_jax.train.mesh import cores_for, use_cores

    decoder = [f"--config.model.decoder={args.decoder}"] if args.decoder else []
    location = f"{args.config or 'configs/lsm2.py'}:{args.variant or 'base'}"
    config = load_config(location, [*args.overrides, *decoder])
    settings = Settings(**_given(args, "missing", "batch_size", "only", dtype="dtypes"))
    use_cores(cores_for(settings.batch_size))
    with progress_bar("step: runs") as tell:
        results = measure(config, settings, out, tell)
    columns = "name", "missing", "dtype", "windows_per_second", "gflops", "share_of_matrix_product", "peak_bytes"
    _show(results, columns)
    return results


def _input(args: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    from lsm_jax.cli.progress import progress_bar
    from lsm_jax.tools.bench.input import Settings, measure

    settings = Settings(**_given(args, "workers", "batch_size", "batches"))
    with _dataset(args.data) as data, progress_bar("input: runs") as tell:
        results = measure(data, settings, out, tell)
    columns = "name", "workers", "windows_per_second", "windows_per_cpu_second", "bytes_per_second"
    _show(results, columns)
    return results


@contextlib.contextmanager
def _dataset(given: Path | None) -> Iterator[Path]:
    """The dataset given, or a synthetic one for the time being."""
    if given:
        yield given
        return
    from lsm_jax.channels import MINUTELY_26
    from lsm_jax.data.store import write_dataset
    from lsm_jax.synth.cohort import windows

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "synthetic"
        write_dataset(data, "synth", MINUTELY_26, windows(people=50, days=8))
        yield data


def _given(args: argparse.Namespace, *names: str, **renamed: str) -> dict[str, Any]:
    """The options that were given, by the name the settings have for them."""
    names_of = {**{name: name for name in names}, "repeats": "rounds", "budget": "budget", "seed": "seed", **renamed}
    return {name: getattr(args, option) for option, name in names_of.items() if getattr(args, option) is not None}


def _show(results: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """A table of the medians, and how many times faster each is than its baselines."""
    compared = ["times faster than"] if any("times_faster_than" in result for result in results) else []
    lines = [[column.replace("_", " ") for column in columns] + compared]
    for result in results:
        faster = (f"{name} {value['ratio']:.2f}" for name, value in result.get("times_faster_than", {}).items())
        lines.append([_cell(result.get(column)) for column in columns] + ([", ".join(faster)] if compared else []))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and abs(value) >= 1e6:
        return f"{value / 1e6:,.0f}M"
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _list(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """A reader of `a,b,c`."""

    def read(text: str) -> tuple[Any, ...]:
        return tuple(kind(part.strip()) for part in text.split(","))

    return read


def _positive(text: str) -> int:
    return _number(text, int, lambda value: value >= 1, "a whole number of at least 1")


def _whole(text: str) -> int:
    return _number(text, int, lambda value: value >= 0, "a whole number of at least 0")


def _share(text: str) -> float:
    return _number(text, float, lambda value: 0 <= value <= 1, "a share from 0 to 1")


def _dtype(text: str) -> str:
    if text not in _DTYPES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(_DTYPES)}")
    return text


def _number(text: str, kind: Callable[[str], Any], allowed: Callable[[Any], bool], what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not allowed(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value
