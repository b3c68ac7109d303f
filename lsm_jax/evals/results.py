"""What an evaluation found, as JSON for programs and as a Markdown table for people."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lsm_jax
from lsm_jax.errors import UserError
from lsm_jax.evals.scores import METHODS
from lsm_jax.train.run import Run

_LIBRARIES = ("jax", "jaxlib", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class Results:
    """A suite's results.

    Attributes:
      results: rows of {task, setting, channel, method, mse, mae, ci95, windows, people, cells, mse_natural,
        mae_natural, unit}; `mse`, `mae` and the interval of `mse` are z-scored, channel `all` is the total.
      comparisons: rows of {task, setting, channel, baseline, model_mse, baseline_mse, improvement, ci95, ...}:
        the model against the best baseline; improvement is 1 - model / baseline, its interval paired by person.
      by_dataset: `comparisons` of channel `all` within each data set.
      provenance: what made these numbers.
    """

    suite: str
    results: list[dict[str, Any]]
    comparisons: list[dict[str, Any]]
    by_dataset: list[dict[str, Any]]
    provenance: Mapping[str, Any]

    def write(self, folder: Path) -> Path:
        """Writes `SUITE.json` and `SUITE.md` into `folder`, each whole or not at all; returns the JSON's path."""
        path = folder / f"{self.suite}.json"
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False))
        write_whole(path.with_suffix(".md"), markdown(self))
        return path


def provenance(run: Run) -> dict[str, Any]:
    """Configuration, step, command and versions behind a result."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        "command": " ".join(["lsm", *sys.argv[1:]]),
        "step": int(run.step),
        "minutes": run.minutes,
        "config": dataclasses.asdict(run.config),
        "versions": {"lsm_jax": lsm_jax.__version__, "python": platform.python_version(), **versions},
    }


def markdown(results: Results) -> str:
    """The tables: every method by task, the model against the best baseline by task and by channel."""
    scored = results.provenance
    datasets = ", ".join(
        f"{name} ({counts['windows']} windows, {counts['people']} people)"
        for name, counts in scored["datasets"].items()
    )
    return "\n".join(
        [
            f"# {results.suite} evaluation, step {scored['step']}",
            "",
            f"Split `{scored['split']}`: {datasets}.",
            "Mean squared error of z-scored values over every recorded cell of hidden tokens; the lowest is bold.",
            "*Ahead* is 1 - model / best baseline, with its 95 % interval over people.",
            "",
            *totals(results),
            "",
            "## By channel, model against the best baseline",
            "",
            *_by_channel(results),
            "",
            f"Made with `{scored['command']}`, seed {scored['seed']}.",
            "",
        ]
    )


def totals(results: Results) -> list[str]:
    """The Markdown table of channel `all`: every method by task, the model against the best baseline."""
    ahead = {(row["task"], row["setting"]): row for row in results.comparisons if row["channel"] == "all"}
    table: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in results.results:
        if row["channel"] == "all":
            table.setdefault((row["task"], row["setting"]), {})[row["method"]] = row
    lines = [
        f"| task | setting | {' | '.join(METHODS)} | ahead | windows | people |",
        f"|---|---|{'---:|' * (len(METHODS) + 3)}",
    ]
    for (task, setting), methods in table.items():
        lowest = min(methods.values(), key=lambda row: row["mse"])["method"]
        cells = [f"**{methods[m]['mse']:.3f}**" if m == lowest else f"{methods[m]['mse']:.3f}" for m in METHODS]
        model = methods["model"]
        gain = _gain(ahead.get((task, setting)))
        lines.append(f"| {task} | {setting} | {' | '.join(cells)} | {gain} | {model['windows']} | {model['people']} |")
    return lines


def _by_channel(results: Results) -> list[str]:
    lines = [
        "| task | setting | channel | unit | MAE (unit) | MSE (z) | best baseline | its MSE (z) | ahead | people |",
        "|---|---|---|---|---:|---:|---|---:|---:|---:|",
    ]
    model = {(row["task"], row["setting"], row["channel"]): row for row in results.results if row["method"] == "model"}
    for row in results.comparisons:
        if row["channel"] == "all":
            continue
        own = model[row["task"], row["setting"], row["channel"]]
        lines.append(
            f"| {row['task']} | {row['setting']} | {row['channel']} | {own['unit']} | {own['mae_natural']:.3g} "
            f"| {row['model_mse']:.3f} | {row['baseline']} | {row['baseline_mse']:.3f} | {_gain(row)} "
            f"| {row['people']} |"
        )
    return lines


def _gain(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    interval = f" ({row['ci95'][0]:+.1%} to {row['ci95'][1]:+.1%})" if row["ci95"] else ""
    return f"{row['improvement']:+.1%}{interval}"


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all, its folder made where there is none; UserError where it cannot be."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out.") from None
