"""One self-contained page of a run, made of whatever the run's folder holds by now."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from markupsafe import Markup

import lsm_jax
from lsm_jax.config import Config, to_json
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import open_dataset
from lsm_jax.errors import UserError
from lsm_jax.report.charts import goodput, interval_bar, learning_curves, png_address, throughput
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.workdir import SPEC, read_config

_Shown = TypeVar("_Shown")
_TILES = (
    ("random_imputation", "80%"),
    ("temporal_interpolation", "60min"),
    ("temporal_extrapolation", "60min"),
    ("sensor_imputation", "50%"),
)
_MOST_CHANNELS_NAMED = 14
_LOSSES = {
    "masked_reconstruction": "masked MSE (z)",
    "clip": "contrastive loss (nats / pair)",
    "siglip": "sigmoid loss (nats / window)",
    "cap": "captioning loss (nats / token)",
    "coca": "contrastive + captioning loss",
}
_SUITES = {
    "masked_reconstruction": ("generative",),
    "clip": ("zeroshot", "fewshot", "retrieval"),
    "siglip": ("zeroshot", "fewshot", "retrieval"),
    "cap": ("captioning",),
    "coca": ("zeroshot", "fewshot", "retrieval", "captioning"),
}
_WORD_SUITES = _SUITES["coca"]


def write_report(workdir: Path, out: Path) -> Path:
    """Writes the page and returns its path. Parts that do not exist yet are named with the command that makes them.

    Raises:
      UserError: `workdir` is not the folder of a run.
    """
    config, spec, metrics = read_config(workdir), DataSpec.load(workdir / SPEC), read_metrics(workdir)
    step = max((record["step"] for record in metrics), default=0)
    evaluation = _read(workdir / "eval" / "generative.json", lambda content: _shown(content, step))
    objective = config.objective.name
    others = list(_others(workdir / "eval", step))
    done = {other["suite"] for other in others} | ({"generative"} if evaluation else set())
    data, data_missing = _data(config)
    page = _template().render(
        title=workdir.resolve().name,
        folder=workdir.name,
        subtitle=_subtitle(config, spec, step),
        tiles=list(_tiles(evaluation, metrics, step)),
        evaluation=evaluation,
        others=others,
        not_evaluated=[suite for suite in _SUITES.get(objective, ()) if suite not in done],
        reconstructs="generative" in _SUITES.get(objective, ()),
        pictures=_pictures(workdir / "eval" / "figures"),
        curves=_curves(metrics, _LOSSES.get(objective, "loss")),
        data=data,
        data_missing=data_missing,
        config=to_json(config),
        made=f"Made by lsm_jax {lsm_jax.__version__}, {time.strftime('%Y-%m-%d %H:%M')}. "
        "Everything on this page is in this file; nothing is fetched.",
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(out)
    return out


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lsm_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _subtitle(config: Config, spec: DataSpec, step: int) -> str:
    tokens = config.tokens
    return (
        f"{config.objective.name.replace('_', ' ')} · size {config.model.size}, decoder {config.model.decoder} · "
        f"{len(spec.channels)} channels in windows of {spec.window_minutes} minutes · tokens of "
        f"{tokens.patch_minutes} minutes × {tokens.patch_channels} · step {step:,}"
    )


def _tiles(
    evaluation: Mapping[str, Any] | None, metrics: Sequence[Mapping[str, Any]], step: int
) -> Iterator[dict[str, str]]:
    """The headline: how far ahead, or how far training has come."""
    for task, setting in _TILES:
        row = (evaluation or {}).get("totals", {}).get((task, setting))
        if row:
            ahead = row["improvement"] > 0
            interval = f" ({100 * row['ci95'][0]:+.0f} to {100 * row['ci95'][1]:+.0f})" if row["ci95"] else ""
            yield {
                "label": f"{_plain(task)}, {_plain(setting)}",
                "value": f"{abs(row['improvement']):.0%} {'lower' if ahead else 'higher'}",
                "tone": "good" if ahead else "bad",
                "note": f"error than {_plain(row['baseline'])}{interval}",
            }
    seconds = sum(_last(metrics, "time", {}).values())
    if seconds:
        speed = _last(metrics, "windows_per_second", None)
        yield {
            "label": "trained for",
            "value": _duration(seconds),
            "tone": "",
            "note": f"{step:,} steps" + (f", {speed:,.0f} windows / s" if speed else ""),
        }


def _others(folder: Path, step: int) -> Iterator[dict[str, Any]]:
    """The suites about words and classes that have been run, whose tables are files of their own."""
    for suite in _WORD_SUITES:
        scored = _read(folder / f"{suite}.json", lambda content: int(content["provenance"]["step"]))
        if scored is not None:
            yield {
                "suite": suite,
                "file": f"{folder.name}/{suite}.md",
                "step": f"{scored:,}",
                "stale": _stale(scored, step),
            }


def _read(file: Path, shown: Callable[[Mapping[str, Any]], _Shown]) -> _Shown | None:
    """What is shown of an evaluation's file; None where there is none."""
    if not file.is_file():
        return None
    try:
        return shown(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({error!r}); run `lsm evaluate` again.") from None


def _shown(content: Mapping[str, Any], step: int) -> dict[str, Any]:
    provenance = content["provenance"]
    totals = {(row["task"], row["setting"]): row for row in content["comparisons"] if row["channel"] == "all"}
    scale = max([0.1, *(abs(row["improvement"]) for row in totals.values())])
    methods = list(dict.fromkeys(row["method"] for row in content["results"]))
    who = ", ".join(f"{name} ({n['people']} people)" for name, n in provenance["datasets"].items())
    natural = {
        (row["task"], row["setting"], row["channel"]): row for row in content["results"] if row["method"] == "model"
    }
    return {
        "methods": [_plain(method) for method in methods],
        "who": f"people of the {provenance['split']} split of {who}; step {provenance['step']:,}",
        "stale": _stale(provenance["step"], step),
        "totals": totals,
        "rows": list(_rows(content["results"], totals, methods, scale)),
        "by_dataset": [_comparison(row, scale) for row in content["by_dataset"]],
        "by_channel": [
            _comparison(row, scale) | _in_units(natural[row["task"], row["setting"], row["channel"]])
            for row in content["comparisons"]
            if row["channel"] != "all"
        ],
    }


def _rows(
    results: Sequence[Mapping[str, Any]],
    totals: Mapping[tuple[str, str], Mapping[str, Any]],
    methods: Sequence[str],
    scale: float,
) -> Iterator[dict[str, Any]]:
    """A row of the main table per task and setting."""
    errors: dict[tuple[str, str], dict[str, float]] = {}
    for row in results:
        if row["channel"] == "all":
            errors.setdefault((row["task"], row["setting"]), {})[row["method"]] = row["mse"]
    before = ""
    for (task, setting), by_method in errors.items():
        lowest = min(by_method.values())
        yield _comparison(totals[task, setting], scale) | {
            "first": task != before,
            "cells": [
                {"text": f"{by_method[m]:.3f}", "best": by_method[m] == lowest, "model": m == "model"} for m in methods
            ],
        }
        before = task


def _comparison(row: Mapping[str, Any], scale: float) -> dict[str, Any]:
    interval = f" ({100 * row['ci95'][0]:+.1f} to {100 * row['ci95'][1]:+.1f})" if row["ci95"] else ""
    return {
        "task": _plain(row["task"]),
        "setting": _plain(row["setting"]),
        "channel": _plain(row["channel"]),
        "dataset": row.get("dataset", ""),
        "baseline": _plain(row["baseline"]),
        "model": f"{row['model_mse']:.3f}",
        "error": f"{row['baseline_mse']:.3f}",
        "gain": f"{row['improvement']:+.1%}{interval}",
        "bar": Markup(interval_bar(row["improvement"], row["ci95"], scale)),
        "people": row["people"],
        "windows": row["windows"],
    }


def _in_units(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"natural": f"{row['mae_natural']:.3g}", "unit": row["unit"]}


def _pictures(folder: Path) -> list[dict[str, str]]:
    return [
        {"name": file.stem.replace("-", " "), "address": png_address(file.read_bytes())}
        for file in sorted(folder.glob("*.png"))
    ]


def _stale(scored: int, step: int) -> str:
    return f"Training has since gone on to step {step:,}." if step > scored else ""


def _curves(metrics: Sequence[Mapping[str, Any]], loss: str) -> dict[str, str | None]:
    seconds = _last(metrics, "time", {})
    total = sum(seconds.values())
    return {
        "loss": learning_curves(metrics, loss),
        "speed": throughput(metrics),
        "goodput": goodput(seconds),
        "goodput_text": ", ".join(f"{name} {part / total:.1%}" for name, part in seconds.items()) if total else "",
    }


def _data(config: Config) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per data set, and a sentence per data set that cannot be opened any more."""
    rows, missing = [], []
    for path in config.data.paths:
        try:
            card = open_dataset(path).card
            rows.append(_card_row(card))
        except (UserError, KeyError, TypeError) as error:
            missing.append(f"Data set {Path(path).name} is not at hand: {error}")
    return rows, missing


def _card_row(card: Mapping[str, Any]) -> dict[str, Any]:
    people, names = card["people_by_split"], [_plain(name) for name in card["channels"]]
    more = f" and {len(names) - _MOST_CHANNELS_NAMED} more" if len(names) > _MOST_CHANNELS_NAMED else ""
    return {
        "name": card["name"],
        "people": f"{card['people']:,}",
        "days": f"{card['days']:,}",
        "splits": " / ".join(f"{people[split]:,}" for split in ("train", "validation", "test")),
        "missing": f"{card['missing_share']:.1%}",
        "channels": ", ".join(names[:_MOST_CHANNELS_NAMED]) + more,
    }


def _last(metrics: Sequence[Mapping[str, Any]], name: str, otherwise: Any) -> Any:
    return next((record[name] for record in reversed(metrics) if record.get(name)), otherwise)


def _plain(name: str) -> str:
    """An identifier as people write it."""
    return (
        name.replace("_", " ").replace("min", " min").replace("%", " %")
        if name[:1].isdigit()
        else name.replace("_", " ")
    )


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
