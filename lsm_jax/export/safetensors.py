"""A run as a folder that needs no framework to read: parameters, configuration, normalisation, a card.

    model.safetensors     every parameter, float32, named by its path ("encoder/blocks/attention/query/kernel")
    config.json           the run's configuration
    spec.json             channels, normalisation, window length
    card.json, README.md  the model card: what was trained, on which data and channels, and how good it is

A sensor-text run has `tokenizer.json` as well. The written files are read back. Their model must give bit for bit what
the run gives for a probe batch: embeddings, and reconstructions, text embeddings and captions where it has them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.config import Config, with_changes
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import RunError, UserError
from lsm_jax.export.card import card_of
from lsm_jax.objectives import build, masked, sensor_language
from lsm_jax.objectives.sensor_language import SensorLanguage
from lsm_jax.sharding import named_parameters, path_name
from lsm_jax.train.run import Run
from lsm_jax.train.workdir import SPEC, TOKENIZER, read_config, write_config

_PROBE_WINDOWS = 4


def export_safetensors(run: Run, workdir: Path, out: Path, write_card: Callable[[Mapping[str, Any]], str]) -> Path:
    """Writes a run to the folder `out`, whole or not at all, and returns it.

    Args:
      run: from `load_run`.
      workdir: the run's folder; its evaluation, if any, goes into the card.
      out: must not exist, or be empty or an earlier export.
      write_card: makes the README of the card's content.

    Raises:
      UserError: `out` is in the way.
      RunError: the written model does not give the run's outputs.
    """
    if out.exists() and not (out / "model.safetensors").is_file() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not an export; choose another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.parent) as staging:
        folder = Path(staging) / "export"
        folder.mkdir()
        tensors = {name: np.asarray(jax.device_get(leaf), order="C") for name, leaf in named_parameters(run.params)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "lsm_jax", "step": str(int(run.step))})
        config = _portable(run.config)
        write_config(folder, config, run.spec)
        if run.tokenizer:
            run.tokenizer.save(folder / TOKENIZER)
        checks = check_export(run, load_exported(folder))
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        card = card_of(run, config, tensors, workdir) | {"sha256": {"model.safetensors": digest}, "checked": checks}
        (folder / "card.json").write_text(json.dumps(card, indent=1, allow_nan=False))
        (folder / "README.md").write_text(write_card(card), encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    return out


def load_exported(path: Path | str) -> Run:
    """Opens an export as a run, ready to reconstruct and embed.

    Raises:
      UserError: a file is missing or damaged, or the parameters do not fit the configuration.
    """
    folder = Path(path)
    config, spec = read_config(folder), DataSpec.load(folder / SPEC)
    file = folder / "model.safetensors"
    try:
        tensors = load_file(file)
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        step = int(header["__metadata__"]["step"])
    except FileNotFoundError:
        raise UserError(f"{folder} is not an export: model.safetensors is missing.") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error}). Export the run again.") from None
    objective = build(config, spec)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    tokenizer = Tokenizer.load(folder / TOKENIZER) if config.language.levels else None
    return Run(config, spec, objective, _fit(tensors, shapes, file), step, tokenizer=tokenizer)


def check_export(run: Run, exported: Run) -> list[str]:
    """Compares the outputs of both on a probe batch and returns what was equal; RunError if an output differs."""
    equal = []
    for name, output in _outputs(run).items():
        ours, theirs = np.asarray(output(run)), np.asarray(output(exported))
        if not np.isfinite(ours).all():
            raise RunError(
                f"the run's `{name}` is not finite on a probe batch at step {run.step}; nothing is exported."
            )
        if not np.array_equal(ours, theirs):
            worst = float(np.abs(ours - theirs).max())
            raise RunError(f"the export's `{name}` differs from the run's by up to {worst:.3g} on a probe batch.")
        equal.append(f"{name}: {ours.size} values of {len(ours)} probes equal bit for bit")
    return equal


def _outputs(run: Run) -> dict[str, Callable[[Run], Any]]:
    """What a run of this objective is for, as functions of a run, on a probe batch."""
    objective = run.objective if isinstance(run.objective, SensorLanguage) else masked(run.objective)
    batch, hidden = _probe_batch(run.spec, objective.tokens.size)
    outputs: dict[str, Callable[[Run], Any]] = {"embed": lambda each: each.objective.embed(each.params, batch)}
    if isinstance(objective, SensorLanguage):
        texts = jnp.asarray(run.words.encode(["The wearer slept.", ""], run.config.language.text_length).ids)
        if objective.compares_windows:
            outputs["embed_text"] = lambda each: sensor_language(each.objective).embed_text(each.params, texts)
        if objective.captions:
            words = run.words.vocabulary
            outputs["generate"] = lambda each: sensor_language(each.objective).generate(each.params, batch, words)
    elif objective.reconstructs:
        outputs["reconstruct"] = lambda each: masked(each.objective).reconstruct(each.params, batch, hidden)
    return outputs


def _probe_batch(spec: DataSpec, tokens: int) -> tuple[dict[str, jax.Array], jax.Array]:
    """Noise with the data's shares of missing values and one empty window; a third of the tokens is hidden."""
    rng = np.random.default_rng(0)
    shape = (_PROBE_WINDOWS, spec.window_minutes, len(spec.channels))
    observed = rng.random(shape) < np.clip(spec.observed_share, 0.1, 1.0)
    observed[-1] = False
    batch = {
        "values": np.where(observed, rng.normal(size=shape), 0).astype(np.float32),
        "observed": observed,
        "start_minute": np.zeros(_PROBE_WINDOWS, np.int32),
        "weekday": np.arange(_PROBE_WINDOWS, dtype=np.int32),
        "window_id": np.arange(_PROBE_WINDOWS, dtype=np.int32),
    }
    hidden = rng.random((_PROBE_WINDOWS, tokens)) < 1 / 3
    return jax.tree.map(jnp.asarray, batch), jnp.asarray(hidden)


def _portable(config: Config) -> Config:
    """The configuration without paths of this machine: of a dataset or run only the name is left."""
    changes: dict[str, Any] = {"data.paths": [Path(path).name for path in config.data.paths]}
    changes |= {f"language.{key}": Path(getattr(config.language, key)).name for key in ("tokenizer", "encoder_from")}
    return with_changes(config, changes)


def _fit(tensors: Mapping[str, np.ndarray], shapes: Any, file: Path) -> Any:
    """The tensors in the tree of parameters that the objective expects; UserError names the first that does not fit."""
    expected = dict(named_parameters(shapes))
    different = sorted(tensors.keys() ^ expected.keys())
    if different:
        name, problem = different[0], "lacks" if different[0] in expected else "has an unknown"
        raise UserError(
            f"{file} {problem} parameter {name!r} ({len(different)} differ): it is not of this configuration."
        )
    for name, leaf in expected.items():
        if tensors[name].shape != leaf.shape or tensors[name].dtype != leaf.dtype:
            raise UserError(
                f"{file}: parameter {name!r} is {tensors[name].dtype}{list(tensors[name].shape)}, the configuration "
                f"asks for {leaf.dtype}{list(leaf.shape)}."
            )
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(tensors[path_name(path)]), shapes)
