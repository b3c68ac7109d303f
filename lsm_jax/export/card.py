"""The card of an export: what is trained, on what, for which channels, how well."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import lsm_jax
from lsm_jax.channels import channel
from lsm_jax.config import Config
from lsm_jax.data.spec import open_datasets
from lsm_jax.errors import UserError
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.run import Run

_TERMS = (
    "These parameters were made from the data sets named above; whoever shares them answers to the terms of those "
    "data sets. The code that made them, lsm_jax, is under the Apache License 2.0, which says nothing about parameters."
)
_LIMITS = (
    "A research model of wearable signals. Not a medical device: do not diagnose, treat or decide about a person "
    "with it. It knows the devices and people it was trained on; others may be served worse."
)


def card_of(run: Run, config: Config, tensors: Mapping[str, np.ndarray], workdir: Path) -> dict[str, Any]:
    """The card's content, ready for JSON."""
    return {
        "format": "lsm_jax safetensors 1",
        "made_with": f"lsm_jax {lsm_jax.__version__}",
        "objective": config.objective.name,
        "step": int(run.step),
        "parameters": sum(tensor.size for tensor in tensors.values()),
        "model": dataclasses.asdict(config.model),
        "tokens": dataclasses.asdict(config.tokens),
        "window_minutes": int(run.spec.window_minutes),
        "channels": [
            {
                "name": name,
                "unit": channel(name).unit,
                "mean": float(run.spec.mean[column]),
                "sd": float(run.spec.sd[column]),
                "observed_share": float(run.spec.observed_share[column]),
            }
            for column, name in enumerate(run.spec.channels)
        ],
        "training_data": _training_data(run),
        "training_metrics": _last_metrics(workdir, int(run.step)),
        "evaluation": _evaluation(workdir / "eval" / "generative.json"),
        "limits": _LIMITS,
        "terms": _TERMS,
    }


def markdown(card: Mapping[str, Any]) -> str:
    """The card as a README."""
    lines = [
        f"# {card['objective']}, {card['model'].get('size', '')} ({card['parameters'] / 1e6:.2f}M parameters)",
        "",
        f"Trained for {card['step']} steps with {card['made_with']}. A window is {card['window_minutes']} minutes on",
        f"{len(card['channels'])} channels; a token is {card['tokens']['patch_minutes']} x "
        f"{card['tokens']['patch_channels']} (minutes x channels). Values go in as `(value - mean) / sd`.",
        "",
        "## Use",
        "",
        "```python",
        "from lsm_jax.export.safetensors import load_exported",
        "",
        'run = load_exported("FOLDER")  # run.objective.embed(run.params, batch), run.objective.reconstruct(...)',
        "```",
        "",
        "## Channels",
        "",
        "| channel | unit | mean | sd | observed in training |",
        "|---|---|---:|---:|---:|",
        *(
            f"| {c['name']} | {c['unit']} | {c['mean']:.6g} | {c['sd']:.6g} | {c['observed_share']:.1%} |"
            for c in card["channels"]
        ),
        "",
        "## Trained on",
        "",
        *(_dataset_line(one) for one in card["training_data"]),
        "",
        "## How well",
        "",
        *_evaluation_lines(card["evaluation"]),
        "",
        "## Checked on the way out",
        "",
        *(f"- {check}" for check in card["checked"]),
        f"- SHA-256 of `model.safetensors`: `{card['sha256']['model.safetensors']}`",
        "",
        "## Limits and terms",
        "",
        card["limits"],
        "",
        card["terms"],
        "",
    ]
    return "\n".join(lines)


def _training_data(run: Run) -> list[dict[str, Any]]:
    """People and windows of the training splits; the names alone where the data sets have moved."""
    try:
        return [
            {
                "name": dataset.name,
                "people": dataset.card["people_by_split"]["train"],
                "windows": dataset.card["windows_by_split"]["train"],
                "channels": [name for name in dataset.channels if name in run.spec.channels],
            }
            for dataset in open_datasets(run.config.data)
        ]
    except (UserError, KeyError, TypeError):
        return [{"name": Path(path).name} for path in run.config.data.paths]


def _last_metrics(workdir: Path, step: int) -> dict[str, float]:
    """The newest value of every loss up to `step`."""
    return {
        name: value
        for record in read_metrics(workdir)
        if record["step"] <= step
        for name, value in record.items()
        if name.endswith("loss") and isinstance(value, float)
    }


def _evaluation(file: Path) -> dict[str, Any] | None:
    """The totals of the generative evaluation, if it was run."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            "step": content["provenance"]["step"],
            "split": content["provenance"]["split"],
            "against_best_baseline": [row for row in content["comparisons"] if row["channel"] == "all"],
        }
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error!r}); run `lsm evaluate` again.") from None


def _dataset_line(dataset: Mapping[str, Any]) -> str:
    if "people" not in dataset:
        return f"- {dataset['name']}"
    channels = ", ".join(dataset["channels"])
    return f"- {dataset['name']}: {dataset['people']} people, {dataset['windows']} windows ({channels})"


def _evaluation_lines(evaluation: Mapping[str, Any] | None) -> list[str]:
    if evaluation is None:
        return ["`lsm evaluate` had not been run when this was exported."]
    lines = [
        f"Split `{evaluation['split']}`, step {evaluation['step']}; mean squared error of z-scored values on people "
        "never trained on.",
        "",
        "| task | setting | model | best baseline | its error | ahead (95 % interval over people) |",
        "|---|---|---:|---|---:|---:|",
    ]
    for row in evaluation["against_best_baseline"]:
        interval = f" ({row['ci95'][0]:+.1%} to {row['ci95'][1]:+.1%})" if row["ci95"] else ""
        lines.append(
            f"| {row['task']} | {row['setting']} | {row['model_mse']:.3f} | {row['baseline']} "
            f"| {row['baseline_mse']:.3f} | {row['improvement']:+.1%}{interval} |"
        )
    return lines
