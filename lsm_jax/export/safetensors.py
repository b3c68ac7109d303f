"""A run as a folder that needs no framework to read: parameters, configuration, normalisation, a card.

    model.safetensors     every parameter, float32, named by its path ("encoder/blocks/attention/query/kernel")
    config.json           the run's configuration
    spec.json             channels, normalisation, window length
    card.json, README.md  the model card: what was trained, on which data and channels, and how good it is

The written files are read back. Their model must reconstruct and embed a probe batch bit for bit as the run does.
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

from lsm_jax.config import Config, with_changes
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import RunError, UserError
from lsm_jax.export.card import card_of
from lsm_jax.objectives import MaskedObjective, build, masked
from lsm_jax.sharding import named_parameters, path_name
from lsm_jax.train.run import Run
from lsm_jax.train.workdir import SPEC, read_config, write_config

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
        tensors = {name: np.ascontiguousarray(jax.device_get(leaf)) for name, leaf in named_parameters(run.params)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "lsm_jax", "step": str(int(run.step))})
        config = _portable(run.config)
        write_config(folder, config, run.spec)
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
    return Run(config=config, spec=spec, objective=objective, params=_fit(tensors, shapes, file), step=step)


def check_export(run: Run, exported: Run) -> list[str]:
    """Compares the outputs of both on a probe batch and returns what was equal; RunError if an output differs."""
    batch, hidden = _probe_batch(run.spec, masked(run.objective))
    outputs: dict[str, Callable[[Run], Any]] = {
        "embed": lambda each: masked(each.objective).embed(each.params, batch),
    }
    if masked(run.objective).reconstructs:
        outputs["reconstruct"] = lambda each: masked(each.objective).reconstruct(each.params, batch, hidden)
    equal = []
    for name, output in outputs.items():
        ours, theirs = np.asarray(output(run)), np.asarray(output(exported))
        if not np.isfinite(ours).all():
            raise RunError(
                f"the run's `{name}` is not finite on a probe batch at step {run.step}; nothing is exported."
            )
        if not np.array_equal(ours, theirs):
            worst = float(np.abs(ours - theirs).max())
            raise RunError(f"the export's `{name}` differs from the run's by up to {worst:.3g} on a probe batch.")
        equal.append(f"{name}: {ours.size} values of {len(ours)} probe windows equal bit for bit")
    return equal


def _probe_batch(spec: DataSpec, objective: MaskedObjective) -> tuple[dict[str, jax.Array], jax.Array]:
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
    hidden = rng.random((_PROBE_WINDOWS, objective.tokens.size)) < 1 / 3
    return jax.tree.map(jnp.asarray, batch), jnp.asarray(hidden)


def _portable(config: Config) -> Config:
    """The configuration without paths of this machine: of a dataset only the name is left."""
    return with_changes(config, {"data.paths": [Path(path).name for path in config.data.paths]})


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
