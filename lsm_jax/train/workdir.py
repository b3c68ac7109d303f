"""The folder of a run: whose configuration it belongs to, and how a later start may differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lsm_jax.config import Config, flatten, from_json, to_json
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import Dataset
from lsm_jax.data.text import CaptionTokens
from lsm_jax.errors import UserError

CONFIG = "config.json"
SPEC = "spec.json"
METRICS = "metrics.jsonl"
REACHED = "wall_seconds.json"
TOKENIZER = "tokenizer.json"
CHECKPOINTS = "checkpoints"
TENSORBOARD = "tensorboard"
TRAINED_ON = "trained_on.json"

# What a later start may change: how long, where and how watched a run is, not what it learns. The learning rate
# follows `train.duration`.
MAY_CHANGE = (
    "train.duration", "train.log_every", "train.profile_steps", "train.peak_flops", "train.max_nonfinite_steps",
    "checkpoint.", "evaluate.", "mesh.", "data.workers", "data.threads", "data.prefetch", "model.remat",
)  # fmt: skip


def check_same(workdir: Path, config: Config) -> None:
    """Refuses a folder that holds a run of another configuration.

    Raises:
      UserError: the keys that differ are named.
    """
    file = workdir / CONFIG
    if not file.is_file():
        if (workdir / CHECKPOINTS).is_dir():
            raise UserError(f"{workdir} has checkpoints but no {CONFIG} that says whose. Use another --workdir.")
        return
    before, now = flatten(read_config(workdir)), flatten(config)
    different = [key for key in now if before[key] != now[key] and not key.startswith(MAY_CHANGE)]
    if different:
        told = "; ".join(f"{key} was {before[key]!r}, is {now[key]!r}" for key in different)
        raise UserError(
            f"{workdir} holds a run of another configuration: {told}. Use another --workdir, or the earlier values."
        )


def check_same_data(workdir: Path, spec: DataSpec) -> None:
    """Refuses to go on with data whose channels or normalisation have changed; UserError."""
    if not (workdir / SPEC).is_file():
        return
    before = DataSpec.load(workdir / SPEC)
    same = (before.channels, before.window_minutes) == (spec.channels, spec.window_minutes) and all(
        np.array_equal(getattr(before, name), getattr(spec, name)) for name in ("mean", "sd", "observed_share")
    )
    if not same:
        raise UserError(
            f"{workdir / SPEC} has other channels, normalisation or missingness than the datasets have now: they "
            "have changed since the run began. Restore them, or use another --workdir."
        )


def run_captions(workdir: Path, config: Config) -> CaptionTokens | None:
    """What puts captions into the batches of a run; None where its configuration asks for none.

    A run that has begun reads with the tokenizer in its folder; one named by the configuration may be gone by then.

    Raises:
      UserError: no tokenizer, a damaged one, or another than the run began with.
    """
    if not config.language.levels:
        return None
    given, kept = Path(config.language.tokenizer), workdir / TOKENIZER
    if not kept.is_file():
        return CaptionTokens.from_config(config.language, given)
    if given.is_file() and given.read_bytes() != kept.read_bytes():
        raise UserError(
            f"{given} is another tokenizer than {kept}, which the run began with: its ids would mean other words. Name "
            "that one, or use another --workdir."
        )
    return CaptionTokens.from_config(config.language, kept)


def write_config(workdir: Path, config: Config, spec: DataSpec, captions: CaptionTokens | None = None) -> None:
    """Writes what `load_run` needs, each file whole or not at all."""
    workdir.mkdir(parents=True, exist_ok=True)
    if captions:
        captions.tokenizer.save(workdir / f"{TOKENIZER}.new")
        (workdir / f"{TOKENIZER}.new").replace(workdir / TOKENIZER)
    spec.save(workdir / f"{SPEC}.new")
    (workdir / f"{SPEC}.new").replace(workdir / SPEC)
    (workdir / f"{CONFIG}.new").write_text(to_json(config), encoding="utf-8")
    (workdir / f"{CONFIG}.new").replace(workdir / CONFIG)


def write_trained_on(workdir: Path, datasets: Sequence[Dataset]) -> None:
    """Adds the people (pseudonyms, as the datasets have them) of the training splits to those the run has met.

    Splits are made anew when a dataset is; an evaluation looks here for people it must not call held out.
    """
    file = workdir / TRAINED_ON
    met = {name: {*people} for name, people in read_trained_on(workdir).items()}
    for dataset in datasets:
        met.setdefault(dataset.name, set()).update(dataset.source("train").participants)
    text = json.dumps({"participants": {name: sorted(people) for name, people in met.items()}})
    file.with_name(f"{TRAINED_ON}.new").write_text(text, encoding="utf-8")
    file.with_name(f"{TRAINED_ON}.new").replace(file)


def read_trained_on(workdir: Path) -> dict[str, list[str]]:
    """The people a run was trained on, by dataset; empty where its folder does not say (runs from before it did).

    Raises:
      UserError: the file is damaged.
    """
    file = workdir / TRAINED_ON
    if not file.is_file():
        return {}
    try:
        people = json.loads(file.read_text(encoding="utf-8"))["participants"]
        return {str(name): [str(each) for each in met] for name, met in people.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is damaged; it says whom the run was trained on. Restore it, or delete it.") from None


def read_config(workdir: Path) -> Config:
    """The configuration of a run; UserError where the folder has none."""
    file = workdir / CONFIG
    if not file.is_file():
        raise UserError(f"{workdir} is not the folder of a run: it has no {CONFIG}. `lsm train` makes such folders.")
    return from_json(file.read_text(encoding="utf-8", errors="replace"), str(file))
