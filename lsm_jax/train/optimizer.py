"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lsm_jax.config import OptimizerConfig
from lsm_jax.errors import UserError, nearest
from lsm_jax.sharding import Axes, axes_of, path_name
from lsm_jax.train.duration import Schedule

LearningRate = Callable[[Int[Array, ""]], Float[Array, ""]]

SCHEDULES = ("constant", "cosine", "linear", "rsqrt")
OPTIMIZERS = ("adamw", "muon")


def make_learning_rate(config: OptimizerConfig, schedule: Schedule) -> LearningRate:
    """The learning rate by step: a curve by name, times a linear warm-up, times a linear cool-down.

    Args:
      config: the section `optimizer`.
      schedule: knows the total number of steps.

    Raises:
      UserError: unknown schedule, or warm-up and cool-down longer than the run.
    """
    if config.schedule not in SCHEDULES:
        hint = nearest(config.schedule, SCHEDULES)
        raise UserError(f"optimizer.schedule={config.schedule!r} is unknown.{hint} Known: {', '.join(SCHEDULES)}.")
    total = schedule.total or 1
    warmup, cooldown, timescale = (
        schedule.steps(f"optimizer.{key}", getattr(config, key)) for key in ("warmup", "cooldown", "rsqrt_timescale")
    )
    if warmup + cooldown > total:
        raise UserError(f"optimizer.warmup and cooldown take {warmup + cooldown} of {total} steps: shorten them.")

    def learning_rate(step: Int[Array, ""]) -> Float[Array, ""]:
        done = jnp.asarray(step, jnp.float32)
        after = jnp.clip((done - warmup) / max(total - warmup, 1), 0.0, 1.0)
        curve = {
            "constant": jnp.ones(()),
            "cosine": config.final_lr_fraction + (1 - config.final_lr_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * after)),
            "linear": config.final_lr_fraction + (1 - config.final_lr_fraction) * (1 - after),
            "rsqrt": jnp.sqrt(timescale / jnp.maximum(timescale, done - warmup + timescale)),
        }[config.schedule]
        # The first step of a warm-up of n is at 1/n: at 0 it would be wasted.
        rise = jnp.minimum(1.0, (done + 1) / warmup) if warmup else 1.0
        fall = jnp.clip((total - done) / cooldown, 0.0, 1.0) if cooldown else 1.0
        return config.learning_rate * curve * rise * fall

    return learning_rate


def make_optimizer(config: OptimizerConfig, learning_rate: LearningRate) -> optax.GradientTransformation:
    """Clipping by global norm, then the optimizer named in the section `optimizer`.

    Weight decay is decoupled and reaches kernels only (sharding.py says what those are); with Muon, those of
    blocks.

    Raises:
      UserError: unknown optimizer.
    """
    if len(config.betas) != 2:
        raise UserError(f"optimizer.betas={config.betas} must be two numbers, as in --config.optimizer.betas=0.9,0.95.")
    first, second = config.betas
    if config.name == "adamw":
        optimizer = optax.adamw(
            learning_rate, first, second, config.epsilon, weight_decay=config.weight_decay, mask=decayed
        )
    elif config.name == "muon":
        optimizer = optax.contrib.muon(
            learning_rate,
            weight_decay=config.weight_decay,
            weight_decay_mask=decayed,
            adam_b1=first,
            adam_b2=second,
            eps=config.epsilon,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,  # updates as large as AdamW's, so that one learning rate serves both (Muon is Scalable)
        )
    else:
        hint = nearest(config.name, OPTIMIZERS)
        raise UserError(f"optimizer.name={config.name!r} is unknown.{hint} Known: {', '.join(OPTIMIZERS)}.")
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity()
    return optax.chain(clip, optimizer)


def but_frozen(optimizer: optax.GradientTransformation, frozen: Sequence[str]) -> optax.GradientTransformation:
    """The optimizer of all parameters but those under the names in `frozen`, which nothing changes, decay included."""
    if not frozen:
        return optimizer

    def labels(parameters: Any) -> Any:
        return {
            name: jax.tree.map(lambda _, label="frozen" if name in frozen else "trained": label, part)
            for name, part in parameters.items()
        }

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def decayed(parameters: Any) -> Any:
    """True for kernels."""
    return _map_axes(lambda _, axes: axes.is_kernel, parameters)


def matrices(parameters: Any) -> Any:
    """Muon's view of the kernels inside blocks; None for what AdamW keeps: ends, tables, biases and scales."""

    def view(path: str, axes: Axes) -> optax.contrib.MuonDimensionNumbers | None:
        if not axes.is_kernel or "/blocks/" not in path:
            return None
        return optax.contrib.MuonDimensionNumbers(axes.inputs, axes.outputs)

    return _map_axes(view, parameters)


def _map_axes(what: Callable[[str, Axes], Any], parameters: Any) -> Any:
    def visit(keys: tuple[Any, ...], leaf: Any) -> Any:
        # Optax passes trees whose left-out parameters are empty MaskedNodes.
        return what(path := path_name(keys), axes_of(path, leaf.shape))

    return jax.tree_util.tree_map_with_path(visit, parameters)
