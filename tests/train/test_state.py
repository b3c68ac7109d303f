"""The step of LSM-2: what it computes, what it skips, and that meshes do not change it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_training import program_and_batches, short_config

from lsm_jax import objectives
from lsm_jax.data.spec import DataSpec, data_spec, open_datasets
from lsm_jax.errors import UserError
from lsm_jax.sharding import axes_of, named_parameters
from lsm_jax.train.loop import validate
from lsm_jax.train.mesh import make_mesh
from lsm_jax.train.state import gradient_of, is_sum


def test_accumulated_gradients_are_those_of_the_whole_batch(half_hours: Path) -> None:
    _, (batch,) = program_and_batches(half_hours, count=1)
    config = short_config(half_hours, "rows.windows_per_row=1", "rows.encoder_length=9", "rows.decoder_length=9")
    objective = objectives.build(config, data_spec(config.data, open_datasets(config.data)))
    params = objective.init(jax.random.key(1))
    # Micro-batches of very different weight: the mean of their means is not the mean.
    batch = dict(batch, observed=batch["observed"].at[::2, 5:].set(False))
    rng = jax.random.key(2)
    compute = jax.jit(gradient_of, static_argnums=(0, 4))
    whole, whole_metrics = compute(objective.loss, params, batch, rng, 1)
    parts, metrics = compute(objective.loss, params, batch, rng, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)
    for name in {"loss", *filter(is_sum, whole_metrics)}:
        np.testing.assert_allclose(whole_metrics[name], metrics[name], rtol=1e-5, err_msg=name)


# A batch, or a micro-batch, may have few examples or none.
PARTS = ({"loss": 2.0, "accuracy": 1.0, "row_fill": 0.5, "loss_weight": 3.0},) + 3 * (
    {"loss": 0.0, "accuracy": 0.0, "row_fill": 0.7, "loss_weight": 0.0},
)
WHOLE = {"loss": 2.0, "accuracy": 1.0, "row_fill": pytest.approx(0.65)}


def test_validation_is_a_mean_over_examples() -> None:
    batches: Any = SimpleNamespace(validation=lambda: PARTS)
    step: Any = lambda _, batch: batch  # noqa: E731
    assert validate(step, None, batches) == {f"validation_{name}": value for name, value in WHOLE.items()}


def test_metrics_of_micro_batches_are_means_over_examples() -> None:
    def loss(scale: Any, batch: Any, _: Any) -> Any:
        metrics = {name: part[0] for name, part in batch.items()}
        return scale * metrics.pop("loss"), metrics

    batch = {name: jnp.array([part[name] for part in PARTS]) for name in PARTS[0]}
    gradient, metrics = gradient_of(loss, jnp.ones(()), batch, jax.random.key(0), len(PARTS))
    assert {name: float(metrics[name]) for name in WHOLE} == WHOLE
    assert (float(gradient), float(metrics["loss_weight"])) == (2.0, 3.0)


def test_ema_follows_its_formula(half_hours: Path) -> None:
    program, batches = program_and_batches(half_hours)
    state = program.init()
    expected = jax.device_get(state.params)
    for taken, batch in enumerate(batches):
        state, _ = program.step(state, batch)
        kept = min(0.9, (1 + taken) / (10 + taken))
        expected = jax.tree.map(
            lambda old, new, kept=kept: kept * old + (1 - kept) * np.asarray(new), expected, state.params
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), expected, state.ema)


def test_a_gradient_that_is_not_finite_changes_nothing_but_is_counted(half_hours: Path) -> None:
    program, (good, bad, after) = program_and_batches(half_hours)
    bad = dict(bad, values=jnp.where(bad["observed"], jnp.inf, bad["values"]))
    state, _ = program.step(program.init(), good)
    kept = jax.device_get(state)
    state, metrics = program.step(state, bad)
    assert (int(state.step), int(state.skipped), float(metrics["skipped"])) == (2, 1, 1.0)
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(kept, name), jax.device_get(getattr(state, name)))
    state, metrics = program.step(state, after)
    assert np.isfinite(metrics["loss"])
    assert int(state.skipped) == 1


def test_parameters_are_float32_and_the_step_is_deterministic(half_hours: Path) -> None:
    program, (batch, *_) = program_and_batches(half_hours)
    assert {leaf.dtype for leaf in jax.tree.leaves(program.shapes.params)} == {np.dtype("float32")}
    one, other = (jax.device_get(program.step(program.init(), batch)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "name", ["train.batch_size=9", "train.grad_accum_steps=3", "rows.windows_per_row=3", "train.batch_size=0"]
)
def test_batches_that_do_not_divide_are_refused(half_hours: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"train\.batch_size"):
        program_and_batches(half_hours, name)


def test_a_person_loss_of_micro_batches_is_refused_by_name(half_hours: Path) -> None:
    with pytest.raises(UserError, match=r"the person loss compares .* --config\.objective\.person_weight=0\."):
        program_and_batches(half_hours, "objective.person_weight=0.1")


@pytest.mark.parametrize(
    "axes",
    ["mesh.data=2", "mesh.fsdp=-1", "mesh.tensor=0", "mesh.data=-2", "mesh.slices=0", "mesh.tensor=3", "mesh.slices=2"],
)
def test_meshes_that_do_not_fit_are_refused(half_hours: Path, axes: str) -> None:
    with pytest.raises(UserError, match="mesh of slices"):
        make_mesh(short_config(half_hours, axes).mesh)


def test_every_parameter_of_the_real_models_has_a_rule() -> None:
    channels = ("heart_rate", "steps", "skin_temperature")
    spec = DataSpec(channels, np.zeros(3, np.float32), np.ones(3, np.float32), 1440, np.full(3, 0.5, np.float32))
    for decoder, positions in itertools.product(("all", "observed", "cross"), ("learned", "sincos")):
        config = short_config(Path("unused"), f"model.decoder={decoder}", f"model.positions={positions}")
        shapes = jax.eval_shape(objectives.build(config, spec).init, jax.random.key(0))
        for path, leaf in named_parameters(shapes):
            assert len(axes_of(path, leaf.shape).names) == leaf.ndim


def test_an_uncovered_parameter_is_named() -> None:
    with pytest.raises(ValueError, match=r"no rule .* encoder/strange"):
        axes_of("encoder/strange", (3, 4))
    with pytest.raises(ValueError, match=r"attention/query/kernel has shape \(3, 4\)"):
        axes_of("encoder/blocks/attention/query/kernel", (3, 4))


_ON_EIGHT_DEVICES = """
import sys
from pathlib import Path
import jax
sys.path.insert(0, sys.argv[2])
from short_training import program_and_batches
from lsm_jax.sharding import named_parameters
from lsm_jax.train.state import on_first_device
for overrides in sys.argv[3:]:
    program, batches = program_and_batches(Path(sys.argv[1]), *overrides.split())
    state = program.init()
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(program.shapes)):
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
    moments = dict(named_parameters(state.opt_state))
    kernel = next(leaf for path, leaf in moments.items() if path.endswith("feed_forward/expand/kernel"))
    shards = kernel.addressable_shards[0].data.size
    for batch in batches:
        state, metrics = program.step(state, batch)
    for whole, leaf in zip(jax.tree.leaves(on_first_device(state.params, program.mesh)), jax.tree.leaves(state.params)):
        assert whole.devices() == {jax.devices()[0]} and (jax.device_get(whole) == jax.device_get(leaf)).all()
    print(kernel.size // shards, float(metrics["loss"]), float(metrics["gradient_norm"]))
"""


def test_losses_do_not_depend_on_the_mesh(half_hours: Path, run_with_devices: Callable[..., str]) -> None:
    one_window = "rows.windows_per_row=1"
    meshes = [
        f"{one_window} train.grad_accum_steps=1 mesh.data=2 mesh.fsdp=4",
        f"{one_window} train.grad_accum_steps=2 mesh.data=2 mesh.fsdp=2 mesh.tensor=2",
    ]
    here = str(Path(__file__).parent)
    lines = run_with_devices(_ON_EIGHT_DEVICES, str(half_hours), here, *meshes, devices=8, timeout=900).split("\n")[:2]
    numbers = np.array([line.split() for line in lines], float)
    assert numbers[:, 0].tolist() == [4, 4]
    program, batches = program_and_batches(half_hours, one_window, "train.grad_accum_steps=1")
    state = program.init()
    for batch in batches:
        state, metrics = program.step(state, batch)
    expected = float(metrics["loss"]), float(metrics["gradient_norm"])
    for row in numbers:
        np.testing.assert_allclose(row[1:], expected, rtol=1e-5)
