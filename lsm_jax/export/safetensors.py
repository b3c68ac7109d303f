"""A run as a folder that needs no framework to read: parameters, configuration, normalisation, a card.

    model.safetensors     every parameter, float32, named by its path ("encoder/blocks/attention/query/kernel")
    config.json           the run's configuration
    spec.json             channels, normalisation, window length
    card.json, README.md  the model card: what was trained, on which data and channels, and how good it is

A sensor-text run has `tokenizer.json` as well. The written files are read back. Their model must give bit for bit what
the run gives for real windows: embeddings, and reconstructions, text embeddings and captions where it has them.
"""

from __future__ import annotations

import json
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
from lsm_jax.export.check import CheckWindows
from lsm_jax.objectives import build, masked, sensor_language
from lsm_jax.objectives.sensor_language import SensorLanguage
from lsm_jax.objectives.supervised import Supervised
from lsm_jax.sharding import named_parameters, path_name
from lsm_jax.train.run import Run
from lsm_jax.train.workdir import SPEC, TOKENIZER, read_config, write_config

FILE = "model.safetensors"


def write_safetensors(run: Run, folder: Path, windows: CheckWindows) -> list[str]:
    """Writes the run into the folder, reads it back and compares both; returns what was checked.

    Raises:
      RunError: the written model does not give the run's outputs.
    """
    tensors = {name: np.asarray(jax.device_get(leaf), order="C") for name, leaf in named_parameters(run.params)}
    save_file(tensors, folder / FILE, metadata={"format": "lsm_jax", "step": str(int(run.step))})
    write_config(folder, portable(run.config), run.spec)
    if run.tokenizer:
        run.tokenizer.save(folder / TOKENIZER)
    return check_export(run, load_exported(folder), windows)


def load_exported(path: Path | str) -> Run:
    """Opens an export as a run, ready to reconstruct and embed.

    Raises:
      UserError: a file is missing or damaged, or the parameters do not fit the configuration.
    """
    folder = Path(path)
    config, spec = read_config(folder), DataSpec.load(folder / SPEC)
    file = folder / FILE
    try:
        tensors = load_file(file)
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        step = int(header["__metadata__"]["step"])
    except FileNotFoundError:
        raise UserError(f"{folder} is not an export: {FILE} is missing.") from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error}). Export the run again.") from None
    objective = build(config, spec)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    tokenizer = Tokenizer.load(folder / TOKENIZER) if config.language.levels else None
    return Run(config, spec, objective, _fit(tensors, shapes, file), step, tokenizer=tokenizer)


def check_export(run: Run, exported: Run, windows: CheckWindows) -> list[str]:
    """Compares the outputs of both on the windows and returns what was equal; RunError if an output differs."""
    equal = []
    for name, output in _outputs(run, windows).items():
        ours, theirs = np.asarray(output(run)), np.asarray(output(exported))
        if not np.isfinite(ours).all():
            raise RunError(
                f"the run's `{name}` is not finite on {windows.summary} at step {run.step}; nothing is exported."
            )
        if not np.array_equal(ours, theirs):
            worst = float(np.abs(ours - theirs).max())
            raise RunError(f"the export's `{name}` differs from the run's by up to {worst:.3g} on {windows.summary}.")
        equal.append(f"{name}: {ours.size} values equal bit for bit")
    return equal


def _outputs(run: Run, windows: CheckWindows) -> dict[str, Callable[[Run], Any]]:
    """What a run of this objective is for, as functions of a run; to reconstruct, a third of the tokens is hidden."""
    objective, batch = run.objective, windows.batch
    outputs: dict[str, Callable[[Run], Any]] = {"embed": lambda each: each.objective.embed(each.params, batch)}
    if isinstance(objective, SensorLanguage):
        texts = jnp.asarray(run.words.encode(["The wearer slept.", ""], run.config.language.text_length).ids)
        if objective.compares_windows:
            outputs["embed_text"] = lambda each: sensor_language(each.objective).embed_text(each.params, texts)
        if objective.captions:
            words = run.words.vocabulary
            outputs["generate"] = lambda each: sensor_language(each.objective).generate(each.params, batch, words)
    elif isinstance(objective, Supervised):
        spans = jnp.broadcast_to(jnp.array([0, run.spec.window_minutes], jnp.int32), (len(windows.values), 1, 2))
        outputs["predict"] = lambda each: _supervised(each).predict(each.params, {**batch, "spans": spans})
    elif masked(objective).reconstructs:
        shape = len(windows.values), masked(objective).tokens.size
        hidden = jnp.asarray(np.random.default_rng(0).random(shape) < 1 / 3)
        outputs["reconstruct"] = lambda each: masked(each.objective).reconstruct(each.params, batch, hidden)
    return outputs


def _supervised(run: Run) -> Supervised:
    assert isinstance(run.objective, Supervised)
    return run.objective


def portable(config: Config) -> Config:
    """The configuration without paths of this machine: of a dataset or run only the name is left."""
    changes: dict[str, Any] = {"data.paths": [Path(path).name for path in config.data.paths]}
    changes |= {"language.tokenizer": Path(config.language.tokenizer).name}
    changes |= {"model.encoder_from": Path(config.model.encoder_from).name}
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
