"""The content of a model card: what was trained, on which data and channels, and how good it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax

import lsm_jax
from lsm_jax.channels import channel
from lsm_jax.config import Config
from lsm_jax.data.spec import open_datasets
from lsm_jax.errors import UserError
from lsm_jax.nn.channel_tables import CHANNEL_ROW
from lsm_jax.nn.positions import sensor_row
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.run import Run
from lsm_jax.train.workdir import DATA, read_data, read_trained_on

_TERMS = (
    "These parameters were made from the datasets named above; whoever shares them answers to the terms of those "
    "datasets. The code that made them, lsm_jax, is under the Apache License 2.0, which says nothing about parameters."
)
_INTENDED_USE = (
    "Research on minutely signals of wearable devices: embeddings of days and people for probes, clustering and "
    "retrieval, and, where the objective has it, filling of gaps and captions. Check it on people of your own first."
)
_LIMITS = (
    "A research model of wearable signals. Not a medical device: do not diagnose, treat or decide about a person "
    "with it. It knows the devices and people it was trained on; others may be served worse."
)


def card_of(run: Run, config: Config, workdir: Path, file_format: str) -> dict[str, Any]:
    """The card as a dictionary for JSON.

    Args:
      config: the run's, without paths.
      workdir: the run's folder, for its data, people, metrics and evaluation.
      file_format: of the export.
    """
    training_data = _training_data(run, workdir)
    return {
        "format": f"lsm_jax {file_format} 1",
        "made_with": f"lsm_jax {lsm_jax.__version__}",
        "objective": config.objective.name,
        "step": int(run.step),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
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
                # Where the tables of channels and sensors hold it, for readers without the registry.
                "channel_row": CHANNEL_ROW[name],
                "sensor_row": sensor_row(name),
            }
            for column, name in enumerate(run.spec.channels)
        ],
        "training_data": training_data,
        "encoder_data": _encoder_data(config, workdir, {dataset["name"] for dataset in training_data}),
        "trained_on": people_fingerprint(workdir),
        "training_metrics": _last_metrics(workdir, int(run.step)),
        "evaluation": _evaluation(workdir / "eval" / "generative.json"),
        "intended_use": _INTENDED_USE,
        "limits": _LIMITS,
        "terms": _TERMS,
    }


def people_fingerprint(workdir: Path) -> dict[str, Any] | None:
    """How many people a run was trained on, and a digest of their (hashed) ids; None if its folder has no list of them.

    Whoever has the datasets can tell whether two models have seen the same people. The ids themselves are not exported.
    """
    people = sorted({person for listed in read_trained_on(workdir).values() for person in listed})
    if not people:
        return None
    return {"people": len(people), "fingerprint": hashlib.sha256("\n".join(people).encode()).hexdigest()}


def _training_data(run: Run, workdir: Path) -> list[dict[str, Any]]:
    """The datasets that windows were sampled from; people and windows of those that are as they were in training."""
    config = run.config.data
    kept = (workdir / DATA).is_file()
    entries: list[dict[str, Any]] = read_data(workdir) if kept else [{"name": Path(path).name} for path in config.paths]
    weights = config.weights or [1.0] * len(entries)
    return [
        {key: entry[key] for key in ("name", "fingerprint") if key in entry} | _sizes(path, entry, run)
        for entry, path, weight in zip(entries, config.paths, weights, strict=True)
        if weight > 0
    ]


def _sizes(path: str, entry: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """People, windows and channels of a dataset; nothing where it is gone or has changed since the training."""
    try:
        (dataset,) = open_datasets(dataclasses.replace(run.config.data, paths=(path,)))
        if dataset.fingerprint != entry.get("fingerprint"):
            return {}
        source = dataset.source("train")
    except UserError:
        return {}
    channels = [name for name in dataset.channels if name in run.spec.channels]
    return {"people": len({*source.participants}), "windows": len(source), "channels": channels}


def _encoder_data(config: Config, workdir: Path, own: Collection[str]) -> list[dict[str, Any]]:
    """The datasets, other than its own, that the encoder of `model.encoder_from` was trained on."""
    if not config.model.encoder_from:
        return []
    listed = read_trained_on(workdir)
    return [{"name": name, "people": len(people)} for name, people in listed.items() if name not in own]


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
            **{name: content["provenance"][name] for name in ("step", "split", "datasets", "max_windows")},
            "against_best_baseline": [row for row in content["comparisons"] if row["channel"] == "all"],
        }
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error!r}); run `lsm evaluate` again.") from None
