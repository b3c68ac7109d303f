"""The state of a run and the one jitted, pure step that changes it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from lsm_jax.config import Config
from lsm_jax.errors import UserError
from lsm_jax.objectives import Objective
from lsm_jax.sharding import mirrored_shardings, parameter_shardings
from lsm_jax.train.duration import Schedule
from lsm_jax.train.mesh import batch_sharding, check_batch, replicated
from lsm_jax.train.optimizer import LearningRate, but_frozen, make_learning_rate, make_optimizer

Metrics = dict[str, Float[Array, ""]]
Batch = Mapping[str, Array]
Loss = Callable[[Any, Batch, PRNGKeyArray], tuple[Float[Array, ""], Metrics]]

# The batch the loss is a mean over, in whatever unit; micro-batches are weighted by it where an objective tells it.
LOSS_WEIGHT = "loss_weight"


def is_sum(metric: str) -> bool:
    """Whether a metric is a sum over the global batch; all others are means (docs/architecture.md)."""
    return metric in {LOSS_WEIGHT, "useful_flops"} or metric.startswith("tokens_")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Everything on the devices that must survive.

    Attributes:
      step: steps taken, skipped ones included.
      skipped: steps whose gradient was not finite; they change nothing else.
      params: float32 parameters, a nested dict.
      opt_state: of the optimizer.
      ema: averaged parameters, or an empty dict.
      rng: key data; every step folds its number in, so that randomness is a function of seed and step.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    params: Any
    opt_state: Any
    ema: Any
    rng: UInt32[Array, " k"]


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's jitted pieces on a mesh; what `lsm plan` lowers is what the loop runs.

    Attributes:
      shapes: the state as `jax.ShapeDtypeStruct`s with their shardings.
      init: () -> State, born sharded.
      step: (state, batch) -> (state, metrics); the state is donated.
      evaluate: (params, batch) -> metrics, the same masks at every call on the same batch.
      learning_rate: by step.
    """

    mesh: Mesh
    shapes: State
    init: Callable[[], State]
    step: Any
    evaluate: Callable[[Any, Batch], Metrics]
    learning_rate: LearningRate


def make_program(config: Config, objective: Objective, mesh: Mesh, schedule: Schedule) -> Program:
    """Builds the program of a configuration.

    Raises:
      UserError: a setting of the optimizer is unknown, the batch does not divide among the devices, or gradients
        cannot be accumulated.
    """
    check_batch(mesh, config)
    if config.train.grad_accum_steps > 1 and getattr(objective, "compares_windows", False):
        raise UserError(
            f"train.grad_accum_steps={config.train.grad_accum_steps}: objective {config.objective.name} compares all "
            "windows of a batch with each other, which micro-batches cannot. Set train.grad_accum_steps=1 and a "
            "smaller train.batch_size, or model.remat=full."
        )
    learning_rate = make_learning_rate(config.optimizer, schedule)
    optimizer = but_frozen(make_optimizer(config.optimizer, learning_rate), getattr(objective, "frozen", ()))
    init = functools.partial(_init, objective, optimizer, config.train.ema_decay > 0, config.seed)
    shapes = _with_shardings(mesh, jax.eval_shape(init))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    everywhere, spread = replicated(mesh), batch_sharding(mesh)
    settings = config.train.grad_accum_steps, config.train.ema_decay
    loss = _on(mesh, objective.loss)
    step = functools.partial(_step, loss, optimizer, learning_rate, *settings)
    return Program(
        mesh=mesh,
        shapes=shapes,
        init=jax.jit(init, out_shardings=shardings),
        step=jax.jit(
            step, in_shardings=(shardings, spread), out_shardings=(shardings, everywhere), donate_argnums=(0,)
        ),
        evaluate=jax.jit(
            functools.partial(_evaluate, loss, config.seed),
            in_shardings=(shardings.params, spread),
            out_shardings=everywhere,
        ),
        learning_rate=learning_rate,
    )


def batch_shapes(mesh: Mesh, batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The global batch of a process's share, as shapes to lower with."""
    return {
        name: jax.ShapeDtypeStruct((batch_size, *part.shape[1:]), part.dtype, sharding=batch_sharding(mesh))
        for name, part in batch.items()
    }


def averaged(state: State) -> Any:
    """The parameters that leave a run: averaged where that is kept."""
    return state.ema or state.params


def _on(mesh: Mesh, loss: Loss) -> Loss:
    """The loss, traced where kernels see the mesh and its platform and so work on their own shard."""

    def entered(params: Any, batch: Batch, rng: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return loss(params, batch, rng)

    return entered


def _init(objective: Objective, optimizer: optax.GradientTransformation, keeps_ema: bool, seed: int) -> State:
    for_parameters, for_steps = jax.random.split(jax.random.key(seed))
    params = objective.init(for_parameters)
    return State(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        # A copy: the state is donated, and a buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, params) if keeps_ema else {},
        rng=jax.random.key_data(for_steps),
    )


def _with_shardings(mesh: Mesh, shapes: State) -> State:
    shardings = mirrored_shardings(mesh, shapes, shapes.params, parameter_shardings(mesh, shapes.params))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def _step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    learning_rate: LearningRate,
    accumulate: int,
    decay: float,
    state: State,
    batch: Batch,
) -> tuple[State, Metrics]:
    rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
    gradient, metrics = gradient_of(loss, state.params, batch, rng, accumulate)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
    taken = state.step - state.skipped  # what the optimizer has counted
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # A young average follows quickly, else it would keep the initial parameters for 1 / (1 - decay) steps.
    kept = jnp.minimum(decay, (1.0 + taken) / (10.0 + taken))
    ema = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, state.ema, params) if state.ema else {}
    changed, unchanged = (params, opt_state, ema), (state.params, state.opt_state, state.ema)
    params, opt_state, ema = jax.tree.map(functools.partial(jnp.where, finite), changed, unchanged)
    skipped = state.skipped + ~finite
    metrics |= {"gradient_norm": norm, "learning_rate": learning_rate(taken), "skipped": skipped.astype(jnp.float32)}
    return State(state.step + 1, skipped, params, opt_state, ema, state.rng), metrics


def gradient_of(loss: Loss, params: Any, batch: Batch, rng: PRNGKeyArray, accumulate: int) -> tuple[Any, Metrics]:
    """Gradient and metrics (`loss` among them) of a batch, in `accumulate` micro-batches one after the other.

    Equal to those of the whole batch where the loss is a mean over windows, or over what the metric `loss_weight`
    counts. A loss that compares windows with each other, such as a contrastive one, is not such a mean.
    """

    def part(batch: Batch) -> tuple[Any, Metrics]:
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, rng)
        return gradient, {"loss": value, **metrics}

    if accumulate == 1:
        return part(batch)

    def weighted(batch: Batch) -> tuple[Any, Metrics, Float[Array, ""]]:
        gradient, metrics = part(batch)
        weight = metrics.get(LOSS_WEIGHT, jnp.ones(()))
        sums = {name: value * weight if name == "loss" else value for name, value in metrics.items()}
        return jax.tree.map(lambda leaf: leaf * weight, gradient), sums, weight

    # Neighbouring windows go to different micro-batches, so that each stays on the devices it lies on.
    split = jax.tree.map(
        lambda leaf: jnp.swapaxes(leaf.reshape(leaf.shape[0] // accumulate, accumulate, *leaf.shape[1:]), 0, 1), batch
    )
    shapes = jax.eval_shape(weighted, jax.tree.map(lambda leaf: leaf[0], split))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    add = lambda total, batch: (jax.tree.map(jnp.add, total, weighted(batch)), None)  # noqa: E731
    (gradient, sums, weight), _ = jax.lax.scan(add, zeros, split)
    weight = jnp.where(weight > 0, weight, 1.0)
    metrics = {name: value if is_sum(name) else value / accumulate for name, value in sums.items()}
    metrics["loss"] = sums["loss"] / weight
    return jax.tree.map(lambda leaf: leaf / weight, gradient), metrics


def _evaluate(loss: Loss, seed: int, params: Any, batch: Batch) -> Metrics:
    value, metrics = loss(params, batch, jax.random.fold_in(jax.random.key(seed), 2**31 - 1))
    return {"loss": value, **metrics}
