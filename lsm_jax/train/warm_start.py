"""Starting from the encoder of another run: LSM-2's under SensorLM."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.sharding import named_parameters
from lsm_jax.train.run import load_run
from lsm_jax.train.state import State
from lsm_jax.train.workdir import SPEC

_ENCODER = "encoder"


def normalised_as_before(spec: DataSpec, workdir: Path, config: Config) -> DataSpec:
    """The data's specification with the moments the encoder was trained with, for the channels it knew.

    A run that has begun finds them in its own folder, so that the other run may be gone by then.
    """
    begun = workdir / SPEC
    origin = DataSpec.load(begun if begun.is_file() else Path(config.language.encoder_from) / SPEC)
    place = {name: column for column, name in enumerate(origin.channels)}
    known = [name in place for name in spec.channels]
    before = [place.get(name, 0) for name in spec.channels]
    return dataclasses.replace(
        spec, mean=np.where(known, origin.mean[before], spec.mean), sd=np.where(known, origin.sd[before], spec.sd)
    )


def with_encoder_of(state: State, workdir: str) -> State:
    """The state with the encoder of the run in `workdir` in place of its newborn one.

    Raises:
      UserError: no such run, or its encoder has other shapes; names the first parameter that differs.
    """
    found = load_run(workdir).params.get(_ENCODER, {})
    mine, other = (dict(named_parameters(tree)) for tree in (state.params[_ENCODER], found))
    for path in sorted({*mine, *other}):
        shapes = [str(tree[path].shape) if path in tree else "nothing" for tree in (mine, other)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"language.encoder_from={workdir!r}: its encoder has {shapes[1]} at {path}, this model {shapes[0]}. "
                "Choose the same model.size of encoder, model.patch_input, model.positions and tokens as that run."
            )
    encoder = jax.tree.map(
        lambda old, new: jax.device_put(np.asarray(new), old.sharding), state.params[_ENCODER], found
    )
    ema = {**state.ema, _ENCODER: jax.tree.map(jnp.copy, encoder)} if state.ema else {}
    return dataclasses.replace(state, params={**state.params, _ENCODER: encoder}, ema=ema)
