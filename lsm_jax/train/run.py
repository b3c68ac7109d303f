"""A run opened from its folder: for evaluation, embedding and export, and as the start of another run."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm_jax import objectives
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.config import Config, flatten
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.objectives import Objective
from lsm_jax.sharding import named_parameters
from lsm_jax.storage import is_url
from lsm_jax.train.checkpoints import restore_clock, restore_parameters, saved_steps, verify
from lsm_jax.train.mirror import fetched_run
from lsm_jax.train.state import State
from lsm_jax.train.workdir import CHECKPOINTS, SPEC, TRAINED_ON, read_config, read_trained_on, run_captions

_ENCODER = "encoder"
# Under another value of these an encoder's parameters mean something else. Other sizes are found by the shapes.
_ENCODER_KEYS = (
    "model.positions", "model.patch_input", "model.asinh_inputs", "model.rotary", "tokens.patch_minutes",
    "tokens.min_observed_share",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """A run at one step.

    Attributes:
      config, spec: what was trained, on which channels, with which normalisation.
      objective: as in training.
      params: float32, on this process's first device; averaged (EMA) where the run keeps averages.
      step: training steps behind the parameters.
      minutes: wall time up to that step, compilation and evaluation included; 0 for an export.
      tokenizer: of captions; None for a run without text.
    """

    config: Config
    spec: DataSpec
    objective: Objective
    params: Any
    step: int
    minutes: float = 0.0
    tokenizer: Tokenizer | None = None

    @property
    def words(self) -> Tokenizer:
        """The tokenizer; UserError for a run without text."""
        if self.tokenizer is None:
            raise UserError(
                f"a run of objective {self.config.objective.name!r} knows no text; use one of configs/sensorlm.py."
            )
        return self.tokenizer


def load_run(workdir: Path | str, step: int | None = None, objective: Objective | None = None) -> Run:
    """Opens a run at a checkpoint, by default the newest undamaged one. Changes nothing in its folder or store.

    Args:
      objective: of the same run at another step, to reuse what it has compiled.

    Raises:
      UserError: not a run, or no such checkpoint, or it is damaged.
    """
    workdir = fetched_run(workdir, step) if isinstance(workdir, str) and is_url(workdir) else Path(workdir)
    config = read_config(workdir)
    spec = DataSpec.load(workdir / SPEC)
    objective = objective or objectives.build(config, spec)
    step = _find_step(workdir / CHECKPOINTS, step)
    checkpoint = workdir / CHECKPOINTS / str(step)
    first_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=first_device),
        jax.eval_shape(objective.init, jax.random.key(0)),
    )
    params = restore_parameters(checkpoint, shapes)
    captions = run_captions(workdir, config)
    minutes = sum(restore_clock(checkpoint).values()) / 60
    return Run(config, spec, objective, params, step, minutes, captions.tokenizer if captions else None)


def whole_steps(workdir: Path | str) -> list[int]:
    """Steps of the undamaged checkpoints of a run, in order; UserError if there is none."""
    folder = Path(workdir) / CHECKPOINTS
    found = [step for step in sorted(saved_steps(folder)) if verify(folder / str(step)) is None]
    if not found:
        raise UserError(f"{folder} has no whole checkpoint.")
    return found


def _find_step(folder: Path, step: int | None) -> int:
    """The given step, or the newest undamaged one; UserError if there is none."""
    saved = sorted(saved_steps(folder), reverse=True)
    if step is not None and step not in saved:
        listed = ", ".join(map(str, saved[::-1])) or "none"
        raise UserError(f"{folder} has no checkpoint of step {step}; it has {listed}.")
    faults: list[str] = []
    for candidate in saved if step is None else [step]:
        fault = verify(folder / str(candidate))
        if fault is None:
            if faults:
                print(f"{folder}: checkpoint {'; '.join(faults)}; {candidate} is taken.", file=sys.stderr)
            return candidate
        faults.append(f"{candidate} is damaged ({fault})")
    raise UserError(f"{folder} has no whole checkpoint" + (f": {'; '.join(faults)}." if faults else " yet."))


def keep_normalisation(spec: DataSpec, workdir: Path, config: Config) -> DataSpec:
    """The spec with the moments that the pre-trained encoder saw, for the channels it was trained on.

    They are read from `workdir` if it holds a run already, otherwise from `model.encoder_from`, which may be gone
    when the run resumes.
    """
    own = workdir / SPEC
    origin = DataSpec.load(own if own.is_file() else _encoder_folder(config) / SPEC)
    column_of = {name: column for column, name in enumerate(origin.channels)}
    shared = [name in column_of for name in spec.channels]
    columns = [column_of.get(name, 0) for name in spec.channels]
    return dataclasses.replace(
        spec, mean=np.where(shared, origin.mean[columns], spec.mean), sd=np.where(shared, origin.sd[columns], spec.sd)
    )


def encoder_trained_on(workdir: Path, config: Config) -> dict[str, list[str]]:
    """The people that the encoder of `model.encoder_from` was trained on, by dataset.

    Empty without one, and where the run in `workdir` has begun: then its own list has them.
    """
    if not config.model.encoder_from or (workdir / TRAINED_ON).is_file():
        return {}
    return read_trained_on(_encoder_folder(config))


def _encoder_folder(config: Config) -> Path:
    encoder = config.model.encoder_from
    return fetched_run(encoder) if is_url(encoder) else Path(encoder)


def with_encoder_of(state: State, workdir: str, config: Config) -> State:
    """The state with the encoder of the run in `workdir` in place of its own.

    Args:
      config: of this run.

    Raises:
      UserError: no such run, or one of LSM-1, or its encoder has other settings or shapes; names those that differ.
    """
    origin = load_run(workdir)
    if origin.config.objective.name == "imputed_reconstruction":
        raise UserError(
            f"model.encoder_from={workdir!r}: the encoder of LSM-1 knows windows without gaps only, and this run does "
            "not impute. Use a run of LSM-2, or fine-tune that one as it is: lsm evaluate "
            f"--workdir {workdir} --suite probe --methods fine_tuned."
        )
    before, now = flatten(origin.config), flatten(config)
    changed = [name for name in _ENCODER_KEYS if before[name] != now[name]]
    # Learned positions of later patches have not been trained.
    if config.model.positions == "learned" and config.data.window_minutes > origin.config.data.window_minutes:
        changed.append("data.window_minutes")
    if changed:
        settings = " ".join(f"--config.{name}={before[name]}" for name in changed)
        raise UserError(
            f"model.encoder_from={workdir!r}: that encoder was trained with other settings; give {settings}."
        )
    loaded = origin.params.get(_ENCODER, {})
    ours, theirs = (dict(named_parameters(tree)) for tree in (state.params[_ENCODER], loaded))
    for path in sorted({*ours, *theirs}):
        shapes = [str(tree[path].shape) if path in tree else "nothing" for tree in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"model.encoder_from={workdir!r}: its encoder has {shapes[1]} at {path}, this model {shapes[0]}. "
                "Choose the same model.size of encoder and tokens as that run."
            )
    encoder = jax.tree.map(
        lambda old, new: jax.device_put(np.asarray(new), old.sharding), state.params[_ENCODER], loaded
    )
    ema = {**state.ema, _ENCODER: jax.tree.map(jnp.copy, encoder)} if state.ema else {}
    return dataclasses.replace(state, params={**state.params, _ENCODER: encoder}, ema=ema)
