"""The training state, and the jitted functions that initialise, update and evaluate it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt32

from lsm_jax.config import Config, TrainConfig
from lsm_jax.errors import UserError
from lsm_jax.objectives import Objective
from lsm_jax.sharding import mirrored_shardings, parameter_shardings
from lsm_jax.train.mesh import batch_sharding, check_batch, replicated
from lsm_jax.train.optimizer import LearningRate, freeze, make_learning_rate, make_optimizer
from lsm_jax.train.schedule import TrainSchedule

Metrics = dict[str, Float[Array, ""]]
Batch = Mapping[str, Array]
Loss = Callable[[Any, Batch, PRNGKeyArray], tuple[Float[Array, ""], Metrics]]

# Metric with the number of cells or tokens that the loss is a mean over. Micro-batches are weighted by it.
LOSS_WEIGHT = "loss_weight"

_LIKE_LOSS = {"loss", "accuracy", "mean_absolute_error"}  # means over what LOSS_WEIGHT counts

_FEWEST_TYPICAL = 5  # steps before a loss or gradient can be an outlier
_NEWEST_WEIGHT = 0.02  # of the newest step in the running means


def is_sum(metric: str) -> bool:
    """Whether a metric is a sum over the global batch. All others are means (docs/explanation/architecture.md)."""
    return metric in {LOSS_WEIGHT, "useful_flops"} or metric.startswith("tokens_")


def is_weighted(metric: str) -> bool:
    """Whether a metric is a mean over what `LOSS_WEIGHT` counts, so that parts of a batch are weighted by it."""
    return metric in _LIKE_LOSS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The arrays of a run that a checkpoint holds.

    Attributes:
      step: steps taken, skipped ones included.
      skipped: steps without an update, because loss or gradient was not finite or an outlier.
      typical: running means of log(1 + loss) and of log(gradient norm) over the steps that were not skipped.
      params: float32 parameters, a nested dict.
      opt_state: of the optimizer.
      ema: averaged parameters; an empty dict where none are kept.
      rng: key data. Each step folds its number in, so that its random numbers depend on seed and step only.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    typical: dict[str, Float[Array, ""]]
    params: Any
    opt_state: Any
    ema: Any
    rng: UInt32[Array, " k"]


@dataclasses.dataclass(frozen=True)
class Program:
    """The jitted functions of a run on a mesh. The loop runs them and `lsm plan` compiles them.

    Attributes:
      shapes: the state as `jax.ShapeDtypeStruct`s with shardings.
      init: () -> State, initialised sharded.
      step: (state, batch) -> (state, metrics); the state is donated.
      evaluate: (params, batch) -> metrics, with the same masks at every call.
      learning_rate: by step.
    """

    mesh: Mesh
    shapes: State
    init: Callable[[], State]
    step: Any
    evaluate: Callable[[Any, Batch], Metrics]
    learning_rate: LearningRate


def make_program(config: Config, objective: Objective, mesh: Mesh, schedule: TrainSchedule) -> Program:
    """Builds the program of a configuration.

    Raises:
      UserError: a setting of the optimizer is refused, the batch does not divide among the devices, or the objective
        does not allow gradient accumulation.
    """
    check_batch(mesh, config)
    if config.train.grad_accum_steps > 1 and objective.compares_windows:
        by_person = config.objective.person_weight > 0
        what = "the person loss" if by_person else f"objective {config.objective.name}"
        raise UserError(
            f"train.grad_accum_steps={config.train.grad_accum_steps}: {what} compares all windows of a batch with each "
            "other, which micro-batches cannot. Set train.grad_accum_steps=1 and a smaller train.batch_size, or "
            "model.remat=full" + ("; or --config.objective.person_weight=0." if by_person else ".")
        )
    learning_rate = make_learning_rate(config.optimizer, schedule)
    optimizer = freeze(make_optimizer(config.optimizer, learning_rate), objective.frozen)
    init = functools.partial(_init, objective, optimizer, config.train.ema_decay > 0, config.seed)
    shapes = jax.eval_shape(init)
    shardings = mirrored_shardings(mesh, shapes, shapes.params, parameter_shardings(mesh, shapes.params))
    shapes = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
    whole, by_windows = replicated(mesh), batch_sharding(mesh)
    loss = _on_mesh(mesh, objective.loss)
    step = functools.partial(_step, loss, optimizer, learning_rate, config.train)
    return Program(
        mesh=mesh,
        shapes=shapes,
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(step, in_shardings=(shardings, by_windows), out_shardings=(shardings, whole), donate_argnums=(0,)),
        evaluate=jax.jit(
            functools.partial(_evaluate, loss, _on_mesh(mesh, objective.representation), config.seed),
            in_shardings=(shardings.params, by_windows),
            out_shardings=whole,
        ),
        learning_rate=learning_rate,
    )


def batch_shapes(mesh: Mesh, batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the global batch, from one process's part of it."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *part.shape[1:]), part.dtype, sharding=batch_sharding(mesh))
        for name, part in batch.items()
    }


def averaged(state: State) -> Any:
    """The parameters to evaluate and export: the averaged ones if the run keeps them."""
    return state.ema or state.params


def on_first_device(params: Any, mesh: Mesh) -> Any:
    """Sharded parameters, whole, on this process's first device. All processes must call this."""
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(params)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), whole)


def gradient_of(loss: Loss, params: Any, batch: Batch, rng: PRNGKeyArray, accumulate: int) -> tuple[Any, Metrics]:
    """Gradient and metrics (with `loss`) of a batch that is split into `accumulate` micro-batches.

    They equal those of the whole batch if the loss is a mean over windows, or over what the metric `loss_weight`
    counts. A contrastive loss compares windows with each other and is no such mean.
    """

    def micro_batch(batch: Batch) -> tuple[Any, Metrics]:
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, rng)
        return gradient, {"loss": value, **metrics}

    if accumulate == 1:
        return micro_batch(batch)

    def weighted(batch: Batch) -> tuple[Any, Metrics, Float[Array, ""]]:
        gradient, metrics = micro_batch(batch)
        weight = metrics.get(LOSS_WEIGHT, jnp.ones(()))
        sums = {name: value * weight if is_weighted(name) else value for name, value in metrics.items()}
        return jax.tree.map(lambda leaf: leaf * weight, gradient), sums, weight

    # Micro-batch i takes the windows i, i + accumulate, ..., so that every window stays on its device.
    split = jax.tree.map(
        lambda leaf: jnp.swapaxes(leaf.reshape(leaf.shape[0] // accumulate, accumulate, *leaf.shape[1:]), 0, 1), batch
    )
    shapes = jax.eval_shape(weighted, jax.tree.map(lambda leaf: leaf[0], split))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    add = lambda total, batch: (jax.tree.map(jnp.add, total, weighted(batch)), None)  # noqa: E731
    (gradient, sums, weight), _ = jax.lax.scan(add, zeros, split)
    weight = jnp.where(weight > 0, weight, 1.0)
    parts = lambda name: 1 if is_sum(name) else weight if is_weighted(name) else accumulate  # noqa: E731
    metrics = {name: value / parts(name) for name, value in sums.items()}
    return jax.tree.map(lambda leaf: leaf / weight, gradient), metrics


def _on_mesh(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function traced with the mesh set: attention kernels choose by its platform and work on their own shard."""

    def with_mesh(*arguments: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments)

    return with_mesh


def _init(objective: Objective, optimizer: optax.GradientTransformation, keeps_ema: bool, seed: int) -> State:
    params_rng, steps_rng = jax.random.split(jax.random.key(seed))
    params = objective.init(params_rng)
    return State(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        typical={"loss": jnp.zeros(()), "gradient_norm": jnp.zeros(())},
        params=params,
        opt_state=optimizer.init(params),
        # A copy, because the state is donated and a buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, params) if keeps_ema else {},
        rng=jax.random.key_data(steps_rng),
    )


def _step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    learning_rate: LearningRate,
    settings: TrainConfig,
    state: State,
    batch: Batch,
) -> tuple[State, Metrics]:
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    gradient, metrics = gradient_of(loss, state.params, batch, rng, settings.grad_accum_steps)
    norm = optax.tree.norm(gradient)
    good, typical = _check_step(state, metrics["loss"], norm, settings.outlier_factor)
    updates_before = state.step - state.skipped  # the optimizer's own count
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # A lower decay at first: otherwise the initial parameters would weigh on the average for 1 / (1 - decay) steps.
    decay = jnp.minimum(settings.ema_decay, (1.0 + updates_before) / (10.0 + updates_before))
    ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.ema, params) if state.ema else {}
    new, old = (params, opt_state, ema), (state.params, state.opt_state, state.ema)
    params, opt_state, ema = jax.tree.map(functools.partial(jnp.where, good), new, old)
    skipped = state.skipped + ~good
    metrics |= {f"gradient_norm_{part}": optax.tree.norm(gradient[part]) for part in gradient}
    metrics |= {
        "gradient_norm": norm,
        "typical_gradient_norm": jnp.exp(typical["gradient_norm"]),
        "learning_rate": learning_rate(updates_before),
        "skipped": skipped.astype(jnp.float32),
    }
    return State(state.step + 1, skipped, typical, params, opt_state, ema, state.rng), metrics


def _check_step(
    state: State, loss: Float[Array, ""], norm: Float[Array, ""], factor: float
) -> tuple[Bool[Array, ""], dict[str, Float[Array, ""]]]:
    """Whether a step with this loss and gradient norm is to be taken, and the running means after it.

    The means are of logarithms, so that one outlier among the first steps does not hide those that follow. Losses count
    from 1, because contrastive losses come close to 0, where ratios mean little. A batch without targets has a gradient
    of 0, which says nothing. Until `_FEWEST_TYPICAL` steps have been taken nothing is an outlier.
    """
    logs = {"loss": jnp.log1p(jnp.abs(loss)), "gradient_norm": jnp.log(norm)}
    good = jnp.isfinite(norm) & jnp.isfinite(loss)
    taken = state.step - state.skipped
    if factor > 0:
        outlier = jnp.array([logs[name] > mean + math.log(factor) for name, mean in state.typical.items()]).any()
        good &= ~(outlier & (taken >= _FEWEST_TYPICAL))
    weight = jnp.maximum(1.0 / (1.0 + taken), _NEWEST_WEIGHT)
    counts = good & (norm > 0)
    return good, {
        name: jnp.where(counts, mean + weight * (logs[name] - mean), mean) for name, mean in state.typical.items()
    }


def _evaluate(loss: Loss, representation: Callable[..., Metrics], seed: int, params: Any, batch: Batch) -> Metrics:
    # No training step folds in this number.
    value, metrics = loss(params, batch, jax.random.fold_in(jax.random.key(seed), 2**31 - 1))
    return {"loss": value, **metrics, **representation(params, batch)}
