"""The content of a model card: what was trained, on which data and channels, and how good it is."""

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
    "These parameters were made from the datasets named above; whoever shares them answers to the terms of those "
    "datasets. The code that made them, lsm_jax, is under the Apache License 2.0, which says nothing about parameters."
)
_LIMITS = (
    "A research model of wearable signals. Not a medical device: do not diagnose, treat or decide about a person "
    "with it. It knows the devices and people it was trained on; others may be served worse."
)


def card_of(run: Run, config: Config, tensors: Mapping[str, np.ndarray], workdir: Path) -> dict[str, Any]:
    """The card as a dictionary for JSON; `tensors` are the exported parameters."""
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


def _training_data(run: Run) -> list[dict[str, Any]]:
    """People and windows of the training splits, or only the names of datasets that cannot be opened any more."""
    try:
        return [
            {
                "name": dataset.name,
                "people": len({*dataset.source("train").participants}),
                "windows": len(dataset.source("train")),
                "channels": [name for name in dataset.channels if name in run.spec.channels],
            }
            for dataset in open_datasets(run.config.data)
        ]
    except (UserError, KeyError, TypeError):
        return [{"name": Path(path).name} for path in run.config.data.paths]


def _last_metrics(workdir: Path, step: int) -> dict[str, float]:
    """The last value of every loss up to `step`."""
    return {
        name: value
        for record in read_metrics(workdir)
        if record["step"] <= step
        for name, value in record.items()
        if name.endswith("loss") and isinstance(value, float)
    }


def _evaluation(file: Path) -> dict[str, Any] | None:
    """The rows over all channels of the generative evaluation; None if it was not run."""
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
