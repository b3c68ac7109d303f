"""The result of an evaluation suite: JSON for programs, Markdown tables for people."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

import lsm_jax
from lsm_jax.errors import UserError
from lsm_jax.train.run import Run

Row = dict[str, Any]
_LIBRARIES = ("jax", "jaxlib", "flax", "numpy")
_INDEX = ("dataset", "task", "setting", "class", "unit", "metric", "removal")
_SWAPPED = "model_swapped_encoder"
_REFERENCES = ("class_prior", "statistics_probe")  # AUROC methods that do not use the model


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The numbers of a suite.

    Attributes:
      results: generative suite: rows of {task, setting, channel, method, mse, mae, ci95, windows, people, cells,
        mse_natural, mae_natural, unit}; `mse`, `mae`, `ci95` (of `mse`) are z-scored; channel `all` is the total.
        `probe`: rows of {dataset, task, unit, metric, method, value, ci95, examples, people}; `robustness`: also
        {removal, kind, full_value, drop}, and `ci95` is of `drop`.
        Other suites: rows of {dataset, method, task, class, score, ci95, windows, people, ...}.
        `ci95` is over people, None with fewer than two.
      provenance: what made these numbers.
      notes: sentences for the reader: what was scored, and what was left out and why.
      comparisons: the model against the best baseline of each task: rows of {task, setting, channel, baseline,
        model_mse, baseline_mse, improvement, ci95, ...}; improvement is 1 - model / baseline, paired by person.
        `probe`: the pre-trained encoder against each method: rows of {dataset, task, unit, metric, method, difference,
        ci95, above, sure, ...}; a difference above 0 is better.
      encoder: as `comparisons`, the model against itself with another day's encoder output and without any.
      by_dataset: `comparisons` of channel `all` within each dataset.
      details: rows of single windows.
      by_person: what `lsm compare` pairs runs by: rows of {dataset, participant, scores}; `scores` are the model's sum
        of squared errors and the scored cells of each task, `{"random_imputation 80%": [error, cells]}`.
    """

    suite: str
    results: Sequence[Row]
    provenance: Mapping[str, Any]
    notes: Sequence[str] = ()
    comparisons: Sequence[Row] = ()
    encoder: Sequence[Row] = ()
    by_dataset: Sequence[Row] = ()
    details: Sequence[Row] = ()
    by_person: Sequence[Row] = ()

    def scalars(self) -> dict[str, float]:
        """The headline numbers by name, for a training run's metrics: the model's totals, and no single classes."""
        named = {}
        for row, value in own_scores(self._totals()):
            parts = [row["dataset"]] if len({each.get("dataset") for each in self.results}) > 1 else []
            setting = row.get("setting") or row.get("class") or row["metric"]
            removal = [row["removal"]] if "removal" in row else []
            parts += [row["task"], setting, *removal, *[row["method"]] * (row["task"] == "auroc")]
            named["_".join(parts).replace(" ", "_")] = value
        return named

    def write(self, folder: Path) -> Path:
        """Writes `SUITE.json` and `SUITE.md`; returns the path of the JSON."""
        return self.write_json(folder / f"{self.suite}.json")

    def write_json(self, path: Path) -> Path:
        """Writes `path`, a .json file, and the .md file beside it, each whole or not at all."""
        write_whole(path, json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False))
        write_whole(path.with_suffix(".md"), self.markdown())
        return path

    def markdown(self) -> str:
        """All tables, notes and the command."""
        made_with = self.provenance
        parts = [
            f"# {self.suite}, step {made_with['step']}, split `{made_with['split']}`",
            self.table(),
            "\n".join(f"- {note}" for note in self.notes),
            *self._compared(),
            f"Made with `{made_with['command']}`, seed {made_with['seed']}.",
        ]
        return "\n\n".join(parts) + "\n"

    def table(self) -> str:
        """The Markdown table of totals: a line per task and setting or class, a column per method.

        Of several metrics of a task it shows the first; so do `scalars`.
        """
        totals = self._totals()
        if not totals:
            return "Nothing could be scored."
        index = [key for key in _INDEX if totals and key in totals[0] and (key != "unit" or "metric" in totals[0])]
        lowest: dict[tuple[str, ...], float] = {}
        for row in totals:
            line = tuple(row[key] for key in index)
            lowest[line] = min(row.get("mse", 0.0), lowest.get(line, float("inf")))
        cells = [(row, row["method"], _cell(row, lowest[tuple(row[key] for key in index)])) for row in totals]
        cells += [(row, "ahead", _improvement(row)) for row in self.comparisons if row.get("channel") == "all"]
        cells += [(row, "encoder", _improvement(row)) for row in self.encoder if row["baseline"] == _SWAPPED]
        sizes = [key for key in ("windows", "examples", "people") if key in totals[0]]
        index += sizes
        frame = pl.DataFrame(
            [{key: row[key] for key in index} | {"method": method, "cell": cell} for row, method, cell in cells]
        )
        wide = frame.pivot("method", index=index, values="cell").fill_null("-")
        return _markdown(wide.select(pl.exclude(sizes), *sizes))

    def _totals(self) -> list[Row]:
        """The rows over all channels, of the first metric of each task."""
        first = {(row.get("dataset"), row["task"]): row.get("metric") for row in reversed(self.results)}
        return [
            row
            for row in self.results
            if row.get("channel", "all") == "all" and row.get("metric") == first[row.get("dataset"), row["task"]]
        ]

    def _compared(self) -> list[str]:
        """The section of comparisons; nothing where there are none."""
        if not self.comparisons:
            return []
        if "channel" in self.comparisons[0]:
            return ["## By channel, model against the best baseline", self._by_channel()]
        keys = [*(key for key in _INDEX if key in self.comparisons[0]), "people"]
        lines = [{key: row[key] for key in keys} | _difference(row) for row in self.comparisons]
        wide = pl.DataFrame(lines).pivot("method", index=keys, values="difference").fill_null("-")
        heading = (
            "The drop of each method minus that of the pre-trained encoder, above 0 where the encoder loses less"
            if "removal" in keys
            else "The pre-trained encoder minus each method, above 0 where it is better"
        )
        return [f"## {heading}", _markdown(wide)]

    def _by_channel(self) -> str:
        keys = ("task", "setting", "channel")
        model = {tuple(row[key] for key in keys): row for row in self.results if row["method"] == "model"}
        lines = []
        for row in self.comparisons:
            own = model[tuple(row[key] for key in keys)]
            if row["channel"] != "all":
                lines.append(
                    {key: row[key] for key in keys}
                    | {"unit": own["unit"], "MAE (unit)": f"{own['mae_natural']:.3g}"}
                    | {"MSE (z)": f"{row['model_mse']:.3f}", "best baseline": row["baseline"]}
                    | {"its MSE (z)": f"{row['baseline_mse']:.3f}", "ahead": _improvement(row), "people": row["people"]}
                )
        return _markdown(pl.DataFrame(lines))


def own_scores(results: Iterable[Row]) -> Iterator[tuple[Row, float]]:
    """The rows of `EvalResult.results` that score the model as a whole, with their values."""
    for row in results:
        uses_model = row["method"] in ("model", "pretrained")
        uses_model |= row["task"] == "auroc" and row["method"] not in _REFERENCES
        is_total = row.get("channel", "all") == "all" and "positives" not in row
        value = row.get("mse", row.get("score", row.get("value")))
        if uses_model and is_total and value is not None:
            yield row, value


def channels_of_other_units(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Channels that two provenances of the generative suite z-score differently, so that errors do not compare.

    Evaluations made before `normalisation` was kept say nothing and are taken to agree.
    """
    units, others = (made.get("normalisation", {}) for made in (one, other))
    return [name for name in units if others.get(name, units[name]) != units[name]]


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


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all, and makes its folder; UserError where it cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --out.") from None


def _cell(row: Row, lowest: float) -> str:
    if row.get("skill") is not None:
        interval = row["ci95_skill"]
        return f"{row['skill']:+.1%}" + (f" ({interval[0]:+.1%} to {interval[1]:+.1%})" if interval else "")
    if "mse" in row:
        return f"**{row['mse']:.3f}**" if row["mse"] == lowest else f"{row['mse']:.3f}"
    value = row.get("drop", row.get("score", row.get("value")))
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({row['ci95'][0]:.3f} to {row['ci95'][1]:.3f})" if row["ci95"] else "")


def _difference(row: Row) -> Row:
    interval = f" ({row['ci95'][0]:+.3f} to {row['ci95'][1]:+.3f})" if row["ci95"] else ""
    text = f"{row['difference']:+.3f}{interval}"
    return {"method": row["method"], "difference": f"**{text}**" if row["sure"] else text}


def _improvement(row: Row) -> str:
    return f"{row['improvement']:+.1%}" + (f" ({row['ci95'][0]:+.1%} to {row['ci95'][1]:+.1%})" if row["ci95"] else "")


def _markdown(frame: pl.DataFrame) -> str:
    with pl.Config(
        tbl_formatting="MARKDOWN", tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True,
        tbl_rows=-1, tbl_cols=-1, tbl_width_chars=-1, fmt_str_lengths=1000,
    ):  # fmt: skip
        return str(frame)
