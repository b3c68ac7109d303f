"""Every objective learns the same on every mesh, and the sharding of each of its parameters is known and said.

Each objective runs on one device and on meshes of eight, with the same global batches. These are the fewest pairs with
which every objective meets every axis, and every shape of mesh is met: LSM-2 `data` alone, LSM-1 `fsdp` alone, both
with micro-batches; CoCa `data` with either of the others; the rest, and LSM-1 and LSM-2, all three axes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from short_training import LANGUAGE, short_config

from lsm_jax import objectives
from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import load_config, with_changes
from lsm_jax.data.spec import DataSpec, data_spec, open_datasets
from lsm_jax.objectives.sensor_language import VARIANTS
from lsm_jax.sharding import axes_of, named_parameters, replicated_sentences, sharding_table
from lsm_jax.train.batches import DeviceBatches
from lsm_jax.train.loop import make_schedule
from lsm_jax.train.mesh import make_mesh
from lsm_jax.train.state import make_program
from lsm_jax.train.workdir import run_captions

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STEPS = 20
TOLERANCE = 1e-5

# Mesh (data, fsdp, tensor) and micro-batches, by variant of short_training; PACKED is LSM-2 with CHANGES of its own.
PACKED = "packed rows, Muon"
CASES: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "": ((8, 1, 1, 1), (2, 2, 2, 2)),
    "imputed_reconstruction": ((1, 8, 1, 2), (2, 2, 2, 1)),
    "clip": ((2, 2, 2, 1),),
    "siglip": ((2, 2, 2, 1),),
    "coca": ((4, 2, 1, 1), (2, 1, 4, 1)),
    PACKED: ((2, 2, 2, 1),),
}
KEYS = ("mesh.data", "mesh.fsdp", "mesh.tensor", "train.grad_accum_steps")
CHANGES = (
    "train.batch_size=16", f"train.duration={STEPS} steps", "train.ema_decay=0", "optimizer.warmup=0 steps",
    "optimizer.schedule=constant", "rows.windows_per_row=1", "rows.encoder_length=9", "rows.decoder_length=9",
)  # fmt: skip
OWN_CHANGES = {
    PACKED: ("optimizer.name=muon", "rows.windows_per_row=2", "rows.encoder_length=18", "rows.decoder_length=18")
}
STACK = "1x16x4x32"  # as many heads as the largest axis `tensor`


def trained(
    dataset: Path, variant: str, mesh: Sequence[int], initial: Any = None
) -> tuple[Any, np.ndarray, dict[str, np.ndarray]]:
    """The initial state, losses and gradient norms of all steps, and the final parameters."""
    axes = [f"{key}={size}" for key, size in zip(KEYS, mesh, strict=True)]
    size = "+".join([STACK] * (3 if variant in LANGUAGE else 2))
    changes = (*CHANGES, *OWN_CHANGES.get(variant, ()), f"model.size={size}", *axes)
    config = short_config(dataset, *changes, variant="" if variant in OWN_CHANGES else variant)
    datasets = open_datasets(config.data)
    spec, schedule = data_spec(config.data, datasets), make_schedule(config, datasets)
    devices = jax.devices()[: int(np.prod(mesh[:3]))]
    program = make_program(config, objectives.build(config, spec), make_mesh(config.mesh, devices), schedule)
    batches = DeviceBatches(
        config, datasets, spec, program, schedule, run_captions(Path("none"), config), position=0
    )  # fmt: skip
    initial = initial or jax.device_get(program.init())
    state = jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), initial, program.shapes)
    records = []
    for _ in range(STEPS):
        state, metrics = program.step(state, batches.next_training()[0])
        records.append([metrics["loss"], metrics["gradient_norm"]])
    batches.close()
    return initial, np.array(jax.device_get(records)), dict(named_parameters(jax.device_get(state.params)))


def differences(dataset: Path) -> dict[str, dict[str, float]]:
    """How far each mesh ends from one device: the steps' losses, and each parameter relative to its norm."""
    found = {}
    for variant, meshes in CASES.items():
        initial, expected, expected_parameters = trained(dataset, variant, (1, 1, 1, 1))
        assert expected[-1, 0] < 0.9 * expected[0, 0]
        for mesh in meshes:
            _, records, parameters = trained(dataset, variant, mesh, initial)
            loss, norm = np.abs(records / expected - 1).max(axis=0).tolist()
            found[f"{variant} {mesh}"] = {"loss": loss, "gradient norm": norm}
            for path, value in expected_parameters.items():
                distance = np.linalg.norm(parameters[path] - value) / max(np.linalg.norm(value), 1e-3)
                found[f"{variant} {mesh}"][path] = float(distance)
    return found


_ON_EIGHT_DEVICES = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_meshes
print(json.dumps(test_meshes.differences(Path(sys.argv[1]))))
"""


def test_losses_and_parameters_do_not_depend_on_the_mesh(
    half_hours: Path, run_with_devices: Callable[..., str]
) -> None:
    arguments = str(half_hours), str(Path(__file__).parent)
    found = json.loads(run_with_devices(_ON_EIGHT_DEVICES, *arguments, timeout=1800).splitlines()[-1])
    far = [
        f"{case}: {name} by {difference}"
        for case, each in found.items()
        for name, difference in each.items()
        if not difference < TOLERANCE
    ]
    assert len(found) == sum(map(len, CASES.values())) and not far


def shapes_of(location: str, **changes: object) -> Any:
    """The parameters' shapes of a configuration for 26 channels."""
    config = with_changes(load_config(location), changes)
    zeros = np.zeros(26, np.float32)
    spec = DataSpec(MINUTELY_26, zeros, zeros + 1, config.data.window_minutes, zeros + 0.5)
    return jax.eval_shape(objectives.build(config, spec).init, jax.random.key(0))


@pytest.mark.parametrize("objective", objectives.OBJECTIVES)
def test_the_table_covers_every_parameter_of_every_objective(objective: str) -> None:
    file = "sensorlm.py" if objective in VARIANTS else "lsm2.py"
    task = {"supervised.task": "sex", "supervised.classes": ("F", "M")}
    shapes = shapes_of(str(CONFIGS / file), **{"objective.name": objective, "model.size": "tiny", **task})
    for path, leaf in named_parameters(shapes):
        assert len(axes_of(path, leaf.shape).names) == leaf.ndim


@pytest.mark.parametrize("name", ["lsm2.py:base", "lsm1.py:328m", "sensorlm.py:xl"])
def test_no_large_parameter_of_the_pods_configurations_is_whole_on_every_device(name: str) -> None:
    shapes = shapes_of(str(CONFIGS / name))
    for fsdp, tensor in (8, 1), (4, 2):
        assert not replicated_sentences({"data": 2, "fsdp": fsdp, "tensor": tensor}, shapes)


def test_a_large_parameter_that_no_axis_splits_is_said() -> None:
    shapes = {"encoder": {"odd_table": {"embedding": jax.ShapeDtypeStruct((1001, 1049), np.float32)}}}
    (sentence,) = replicated_sentences({"data": 2, "fsdp": 4, "tensor": 2}, shapes)
    assert (
        "all 1,050,049 values of encoder/odd_table/embedding (rows 1001, embed 1049): the mesh has fsdp 4 and"
        in sentence
    )
    assert not replicated_sentences({"data": 8, "fsdp": 1, "tensor": 1}, shapes)


def test_the_table_says_how_each_parameter_is_split() -> None:
    path, shape = "encoder/stack/blocks/attention/output/kernel", (3, 4, 8, 32)
    shapes = {path: jax.ShapeDtypeStruct(shape, np.float32)}
    lines = sharding_table({"data": 1, "fsdp": 8, "tensor": 2}, shapes).splitlines()
    assert re.split("  +", lines[1]) == [
        path,
        "3 x 4 x 8 x 32",
        "layers x heads (2 tensor) x head x embed (8 fsdp)",
        "192",
    ]
    assert lines[-1] == "3,072 parameters, 192 on a device"
    assert "(8 fsdp)" not in sharding_table({"data": 1, "fsdp": 5, "tensor": 1}, shapes)
