"""The folder of a run: its files, and which changes of configuration and data a resumed run may have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsm_jax.config import Config, flatten, from_json, to_json
from lsm_jax.data.faults import CORRUPT_RECORDS
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import Dataset
from lsm_jax.data.text import CaptionTokens
from lsm_jax.errors import UserError

CONFIG = "config.json"
SPEC = "spec.json"
DATA = "data.json"
METRICS = "metrics.jsonl"
CLOCK = "clock.json"
TOKENIZER = "tokenizer.json"
CHECKPOINTS = "checkpoints"
EVALUATIONS = "eval"
TENSORBOARD = "tensorboard"
TRAINED_ON = "trained_on.json"

# What a resumed run may change: its length, hardware and monitoring, and how its batches are read and divided, but
# nothing that it learns from. The learning rate follows `train.duration`. The data at `data.paths` and the file
# `language.tokenizer` are compared themselves.
MAY_CHANGE = (
    "train.duration", "train.log_every", "train.trackers", "train.profile_steps", "train.peak_flops",
    "train.max_bad_steps", "train.on_bad_steps", "train.hang_timeout", "train.lost_timeout",
    "train.sdc_check_every", "checkpoint.",
    "evaluate.", "mesh.", "data.workers", "data.threads", "data.prefetch", "data.max_corrupt", "data.paths",
    "language.tokenizer", "model.remat", "model.attention", "rows.eval_max_tokens",
)  # fmt: skip

# Why nothing else may change, by the beginning of a key; the first that fits.
REASONS = {
    "seed": "it seeds parameters, masks and the data order",
    "data.weights": "the data order mixes the datasets by it",
    "data.people_share": "the data order counts the windows of these people",
    "data.": "it is the shape of the model's input",
    "tokens.": "the saved parameters are for these tokens",
    "masking.": "the masks of the remaining steps follow it",
    "rows.": "which tokens share a row, are left out or are sampled follows it",
    "model.encoder_from": "the run has begun from that encoder, which is not read again",
    "model.": "the saved parameters are those of this network",
    "language.": "captions, or the parameters of the text model, follow it",
    "objective.": "it is what the run minimises",
    "supervised.": "it is what the run learns to predict",
    "optimizer.": "the saved state of the optimizer and the learning rate follow it",
    "train.batch_size": "the data position counts batches of this size",
    "train.grad_accum_steps": "with several windows to a row, the windows of a row and their masks follow it",
    "train.ema_decay": "the saved average follows it",
    "train.": "the updates of the remaining steps follow it",
}


def replace_text(file: Path, text: str) -> None:
    """Writes a file in one step, so that a crash leaves the old or the new one."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def keep_aside(workdir: Path) -> Path | None:
    """Moves what a run has made into the new folder `earlier-N`, so that it begins again; None if it has made nothing.

    Raises:
      UserError: this user may not.
    """
    parts = (CHECKPOINTS, METRICS, EVALUATIONS, TENSORBOARD, CLOCK, CORRUPT_RECORDS.replace(".", "*."))
    made = [file.name for part in parts for file in sorted(workdir.glob(part))]
    if not made:
        return None
    number = 0
    while (folder := workdir / f"earlier-{number}").exists():
        number += 1
    try:
        folder.mkdir()
        for name in made:
            (workdir / name).rename(folder / name)
    except OSError as error:
        raise UserError(f"{workdir} cannot be cleared for a new start: {error}.") from error
    return folder


def check_same(workdir: Path, config: Config) -> None:
    """UserError if the folder holds a run of another configuration; names the keys that differ."""
    file = workdir / CONFIG
    if not file.is_file():
        if (workdir / CHECKPOINTS).is_dir():
            raise UserError(f"{workdir} has checkpoints but no {CONFIG} that says whose. Use another --workdir.")
        return
    earlier = read_config(workdir)
    before, now = flatten(earlier), flatten(config)
    may_change: tuple[str, ...] = MAY_CHANGE
    if earlier.rows.windows_per_row == config.rows.windows_per_row == 1:
        may_change += ("train.grad_accum_steps",)  # micro-batches give the gradient of the whole batch
    for paths in (before, now):
        paths["model.encoder_from"] = str(paths["model.encoder_from"]).rstrip("/")
    different = [key for key in now if before[key] != now[key] and not key.startswith(may_change)]
    if different:
        listed = "; ".join(f"{key} was {before[key]!r}, is {now[key]!r} ({_reason(key)})" for key in different)
        raise UserError(
            f"{workdir} holds a run of another configuration: {listed}. Use another --workdir, or the earlier values."
        )


def _reason(key: str) -> str:
    return next(reason for beginning, reason in REASONS.items() if key.startswith(beginning))


def check_same_data(workdir: Path, config: Config, spec: DataSpec, datasets: Sequence[Dataset]) -> None:
    """UserError if the data have changed since the run began. They are told by their fingerprints: paths may change."""
    if not (workdir / SPEC).is_file():
        return
    if (workdir / DATA).is_file():
        _check_fingerprints(workdir, datasets)
    else:
        paths = read_config(workdir).data.paths
        if [*map(Path, paths)] != [*map(Path, config.data.paths)]:
            raise UserError(
                f"{workdir} holds a run on data.paths={list(paths)}, from before runs kept fingerprints of their data. "
                "Give these paths once; they may change from then on."
            )
    before = DataSpec.load(workdir / SPEC)
    same = (before.channels, before.window_minutes) == (spec.channels, spec.window_minutes) and all(
        np.array_equal(getattr(before, name), getattr(spec, name)) for name in ("mean", "sd", "observed_share")
    )
    if not same:
        raise UserError(
            f"{workdir / SPEC} has other channels, normalisation or missingness than the datasets have now: they "
            "have changed since the run began. Restore them, or use another --workdir."
        )


def _check_fingerprints(workdir: Path, datasets: Sequence[Dataset]) -> None:
    before = read_data(workdir)
    digests = [entry["fingerprint"] for entry in before], [dataset.fingerprint for dataset in datasets]
    if digests[0] == digests[1]:
        return
    if sorted(digests[0]) == sorted(digests[1]):
        raise UserError(
            f"data.paths names the datasets of the run in {workdir} in another order, which the data order follows: "
            f"they were {', '.join(entry['path'] for entry in before)}."
        )
    if len(before) != len(datasets):
        raise UserError(f"data.paths names {len(datasets)} datasets; the run in {workdir} began with {len(before)}.")
    for entry, dataset in zip(before, datasets, strict=True):
        changed = [part for part, digest in dataset.fingerprints.items() if entry["parts"].get(part) != digest]
        if changed:
            raise UserError(
                f"{dataset.path} does not hold what the run in {workdir} began with, at {entry['path']}: its "
                f"{' and '.join(changed)} differ. Restore it, name the folder that has it, or use another --workdir."
            )


def write_data(workdir: Path, datasets: Sequence[Dataset]) -> None:
    """Writes where the datasets of a run are, with their fingerprints."""
    entries = [
        {"name": each.name, "path": str(each.path), "fingerprint": each.fingerprint, "parts": dict(each.fingerprints)}
        for each in datasets
    ]
    replace_text(workdir / DATA, json.dumps({"datasets": entries}, indent=1))


def read_data(workdir: Path) -> list[dict[str, Any]]:
    """What `write_data` wrote; UserError if it is damaged."""
    file = workdir / DATA
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["datasets"]
        return [
            {**{key: str(entry[key]) for key in ("name", "path", "fingerprint")}, "parts": dict(entry["parts"])}
            for entry in entries
        ]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise UserError(f"{file} is damaged; it tells the run's data from others. Restore it, or delete it.") from None


def run_captions(workdir: Path, config: Config) -> CaptionTokens | None:
    """What adds captions to the batches of a run; None if its configuration has no caption levels.

    A run keeps a copy of its tokenizer, which is used from then on; the original may be gone.

    Raises:
      UserError: no tokenizer, a damaged one, or another than the run began with.
    """
    if not config.language.levels:
        return None
    original, kept = Path(config.language.tokenizer), workdir / TOKENIZER
    if not kept.is_file():
        return CaptionTokens.from_config(config.language, original)
    if original.is_file() and original.read_bytes() != kept.read_bytes():
        raise UserError(
            f"{original} is another tokenizer than {kept}, which the run began with: its ids would mean other words. "
            "Name that one, or use another --workdir."
        )
    return CaptionTokens.from_config(config.language, kept)


def write_config(workdir: Path, config: Config, spec: DataSpec, captions: CaptionTokens | None = None) -> None:
    """Writes what `load_run` needs beside a checkpoint, each file in one step."""
    workdir.mkdir(parents=True, exist_ok=True)
    if captions:
        captions.tokenizer.save(workdir / f"{TOKENIZER}.new")
        (workdir / f"{TOKENIZER}.new").replace(workdir / TOKENIZER)
    spec.save(workdir / f"{SPEC}.new")
    (workdir / f"{SPEC}.new").replace(workdir / SPEC)
    replace_text(workdir / CONFIG, to_json(config))


def write_trained_on(
    workdir: Path, datasets: Sequence[Dataset], encoder: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Adds the (hashed) people of the training splits to those the run has been trained on.

    Writing a dataset again may move people between splits. Evaluations refuse people who are listed here.

    Args:
      workdir: of the run.
      datasets: that the run trains on.
      encoder: the people that its pre-trained encoder was trained on, by dataset.
    """
    people = {name: {*listed} for name, listed in read_trained_on(workdir).items()}
    for name, listed in (encoder or {}).items():
        people.setdefault(name, set()).update(listed)
    for dataset in datasets:
        people.setdefault(dataset.name, set()).update(dataset.source("train").participants)
    content = {"participants": {name: sorted(listed) for name, listed in people.items()}}
    replace_text(workdir / TRAINED_ON, json.dumps(content))


def read_trained_on(workdir: Path) -> dict[str, list[str]]:
    """The people a run was trained on, by dataset; empty if its folder has no such list.

    Raises:
      UserError: the file is damaged.
    """
    file = workdir / TRAINED_ON
    if not file.is_file():
        return {}
    try:
        people = json.loads(file.read_text(encoding="utf-8"))["participants"]
        return {str(name): [str(person) for person in listed] for name, listed in people.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged; it says whom the run was trained on. Restore it, or delete it.") from None


def read_config(workdir: Path) -> Config:
    """The configuration of a run; UserError if the folder has none."""
    file = workdir / CONFIG
    if not file.is_file():
        raise UserError(f"{workdir} is not the folder of a run: it has no {CONFIG}. `lsm train` makes such folders.")
    return from_json(file.read_text(encoding="utf-8", errors="replace"), str(file))
