"""A run's embeddings as one file of StableHLO, which `jax.export` runs on CPUs, GPUs and TPUs without this package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from lsm_jax.export.check import CheckWindows, check_embeddings
from lsm_jax.export.function import EmbeddingFunction, check_fits
from lsm_jax.train.run import Run

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write_stablehlo(run: Run, folder: Path, windows: CheckWindows) -> list[str]:
    """Writes `model.stablehlo` into the folder, reads it back and compares it with the run; returns what was checked.

    The number of windows is free, and so is their length, up to a week in whole patches; a run of LSM-1 has its own.

    Raises:
      UserError: the parameters are too many for one file.
      RunError: the file does not give the run's embeddings.
    """
    check_fits(run, "A StableHLO")
    function = EmbeddingFunction(run)
    patch, longest = function.patch_minutes, function.max_minutes // function.patch_minutes
    minutes, limits = f"{patch}*p", [f"p <= {longest}"]
    if function.fixed_length:
        minutes, limits = str(function.window_minutes), []
    shape = export.symbolic_shape(f"b, {minutes}, {len(function.channels)}", constraints=limits)
    values = jax.ShapeDtypeStruct(shape, jnp.float32)
    with _without_locations():
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(values)
    (folder / FILE).write_bytes(exported.serialize())
    read = export.deserialize(bytearray((folder / FILE).read_bytes()))
    # One window after the other: scores take tokens x tokens numbers for every head of every window.
    each = [jax.tree.map(np.asarray, read.call(window[None])) for window in windows.values]
    return check_embeddings(
        run, windows, function, {name: np.concatenate([one[name] for one in each]) for name in each[0]}
    )


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Lowers without the files and lines of the source: they are paths of this machine, which name its user."""
    name = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, before)
