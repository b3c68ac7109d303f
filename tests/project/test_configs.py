"""Shipped configurations: they load, their gradients trace, and their docstrings say what to expect."""

from __future__ import annotations

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import load_config
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.targets import Targets
from lsm_jax.objectives import build

REPOSITORY = Path(__file__).resolve().parents[2]


def locations() -> list[str]:
    """`configs/X.py` and each `configs/X.py:variant`."""
    files = sorted((REPOSITORY / "configs").glob("*.py"))
    return [
        location
        for file in files
        for location in (str(file), *(f"{file}:{name}" for name in runpy.run_path(str(file))["VARIANTS"]))
    ]


@pytest.mark.parametrize("file", sorted((REPOSITORY / "configs").glob("*.py")), ids=lambda file: file.name)
def test_a_variants_docstring_says_data_machine_time_and_what_to_expect(file: Path) -> None:
    module = runpy.run_path(str(file))
    assert f"lsm train --config configs/{file.name}:VARIANT" in module["__doc__"]
    for name, variant in module["VARIANTS"].items():
        for part in ("Data:", "Machine:", "Time:", "Expect:"):
            assert part in variant.__doc__, f"{file.name}:{name} does not say {part}"


@pytest.mark.parametrize("location", locations(), ids=lambda location: Path(location).name)
def test_a_shipped_configuration_loads_and_its_gradient_traces(location: str) -> None:
    task = ("supervised.task=age", "supervised.mean=40", "supervised.sd=10") if "finetune" in location else ()
    config = load_config(location, task)
    channels = tuple(config.data.channels) or MINUTELY_26
    moments = np.zeros(len(channels), np.float32)
    objective = build(config, DataSpec(channels, moments, moments + 1, config.data.window_minutes, moments + 0.5))
    windows = 2 * config.rows.windows_per_row
    cells = (windows, config.data.window_minutes, len(channels))
    integers = jax.ShapeDtypeStruct((windows,), np.int32)
    batch = {
        "values": jax.ShapeDtypeStruct(cells, np.float32),
        "observed": jax.ShapeDtypeStruct(cells, np.bool_),
        "start_minute": integers, "weekday": integers, "window_id": integers,
    }  # fmt: skip
    if config.objective.person_weight:
        batch["person"] = integers
    if config.language.levels:
        batch["text"] = jax.ShapeDtypeStruct((windows, config.language.text_length), np.int32)
    if targets := Targets.from_config(config):
        batch |= {name: jax.ShapeDtypeStruct(part.shape, part.dtype) for name, part in targets.empty(windows).items()}
    params = jax.eval_shape(objective.init, jax.random.key(0))
    (loss, metrics), gradient = jax.eval_shape(
        jax.value_and_grad(objective.loss, has_aux=True), params, batch, jax.random.key(1)
    )
    assert loss.shape == ()
    assert all(value.shape == () for value in metrics.values())
    assert jax.tree.map(np.shape, gradient) == jax.tree.map(np.shape, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
