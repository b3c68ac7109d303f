"""Learning-rate schedules and optimizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lsm_jax.config import OptimizerConfig
from lsm_jax.errors import UserError
from lsm_jax.sharding import Axes, axes_of, path_name
from lsm_jax.train.schedule import TrainSchedule

LearningRate = Callable[[Int[Array, ""]], Float[Array, ""]]


def make_learning_rate(config: OptimizerConfig, schedule: TrainSchedule) -> LearningRate:
    """The learning rate by step: the curve `config.schedule`, times a linear warm-up, times a linear cool-down.

    Raises:
      UserError: warm-up and cool-down are longer than the run.
    """
    total = max(schedule.total, 1)
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
        # A warm-up of n steps begins at 1/n: a first step at 0 would change nothing.
        rise = jnp.minimum(1.0, (done + 1) / warmup) if warmup else 1.0
        fall = jnp.clip((total - done) / cooldown, 0.0, 1.0) if cooldown else 1.0
        return config.learning_rate * curve * rise * fall

    return learning_rate


def make_optimizer(config: OptimizerConfig, learning_rate: LearningRate) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW or Muon.

    Weight decay is decoupled and applies to kernels only (see `sharding.RULES`). Muon updates the kernels of blocks,
    AdamW everything else. With Muon, only the kernels of blocks decay: optax gives its AdamW no decay, and the recipes
    were measured so.

    Raises:
      UserError: `config.betas` are not two numbers.
    """
    if len(config.betas) != 2:
        raise UserError(f"optimizer.betas={config.betas} must be two numbers, as in --config.optimizer.betas=0.9,0.95.")
    first, second = config.betas
    if config.name == "adamw":
        optimizer = optax.adamw(
            learning_rate, first, second, config.epsilon, weight_decay=config.weight_decay, mask=kernel_mask
        )
    else:
        optimizer = optax.contrib.muon(
            learning_rate,
            weight_decay=config.weight_decay,
            weight_decay_mask=kernel_mask,
            adam_b1=first,
            adam_b2=second,
            eps=config.epsilon,
            muon_weight_dimension_numbers=muon_dimensions,
            # Updates as large as AdamW's, so that both use one learning rate ("Muon is Scalable for LLM Training").
            consistent_rms=0.2,
        )
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity()
    return optax.chain(clip, optimizer)


def freeze(optimizer: optax.GradientTransformation, frozen: Sequence[str]) -> optax.GradientTransformation:
    """The optimizer without updates or weight decay for the top-level parameter groups named in `frozen`."""
    if not frozen:
        return optimizer

    def labels(parameters: Any) -> Any:
        return {
            name: jax.tree.map(lambda _, label="frozen" if name in frozen else "trained": label, part)
            for name, part in parameters.items()
        }

    return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)


def kernel_mask(parameters: Any) -> Any:
    """True for kernels, the parameters with weight decay."""
    return _map_axes(lambda _, axes: axes.is_kernel, parameters)


def muon_dimensions(parameters: Any) -> Any:
    """Input and output dimensions of the kernels in blocks; None for parameters that AdamW updates."""

    def dimensions(path: str, axes: Axes) -> optax.contrib.MuonDimensionNumbers | None:
        if not axes.is_kernel or "/blocks/" not in path:
            return None
        return optax.contrib.MuonDimensionNumbers(axes.inputs, axes.outputs)

    return _map_axes(dimensions, parameters)


def _map_axes(function: Callable[[str, Axes], Any], parameters: Any) -> Any:
    def visit(keys: tuple[Any, ...], leaf: Any) -> Any:
        return function(path := path_name(keys), axes_of(path, leaf.shape))

    return jax.tree_util.tree_map_with_path(visit, parameters)
