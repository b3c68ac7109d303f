"""The objective protocol and the objectives by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Bool, Float, PRNGKeyArray

from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError, nearest
from lsm_jax.objectives.masked import MaskedReconstruction
from lsm_jax.objectives.sensor_language import VARIANTS, SensorLanguage
from lsm_jax.objectives.shared import AttentionShape
from lsm_jax.tokens.grid import TokenGrid

Params = Mapping[str, Any]
Batch = Mapping[str, Array]


class Objective(Protocol):
    """What the loop asks of an objective."""

    def init(self, rng: PRNGKeyArray) -> Params:
        """Initial parameters, a nested dict of float32 arrays; pure, so that it can be traced."""
        ...

    def loss(
        self, params: Params, batch: Batch, rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Loss over the global batch, and metrics (see docs/explanation/architecture.md)."""
        ...

    def attention_shapes(self, batch: Batch, rng: PRNGKeyArray) -> list[AttentionShape]:
        """What the stacks whose kernels skip blocks attend to in `loss` with this `rng`, for `lsm plan`."""
        ...


@runtime_checkable
class MaskedObjective(Objective, Protocol):
    """What evaluation, embedding and export ask of LSM-1 and LSM-2 beyond training."""

    tokens: TokenGrid

    @property
    def max_context_tokens(self) -> int:
        """The most visible tokens of a window that the encoder reads to reconstruct it."""
        ...

    def reconstruct(self, params: Params, batch: Batch, hidden: Bool[Array, "b n"]) -> Float[Array, "b t c"]:
        """Predictions (z-scored) at every cell of `hidden` tokens, the input elsewhere."""
        ...

    def embed(self, params: Params, batch: Batch) -> Float[Array, "b d"]:
        """The mean of the encoder's output over observed tokens."""
        ...


def masked(objective: Objective) -> MaskedObjective:
    """The objective, if it can reconstruct and embed windows; UserError otherwise."""
    if not isinstance(objective, MaskedObjective):
        raise UserError(f"the objective {type(objective).__name__} does not reconstruct windows; use a run of LSM-2.")
    return objective


def sensor_language(objective: Objective) -> SensorLanguage:
    """The objective, if it knows both sensors and text; UserError otherwise."""
    if not isinstance(objective, SensorLanguage):
        raise UserError(f"the objective {type(objective).__name__} knows no text; use a run of configs/sensorlm.py.")
    return objective


OBJECTIVES: Mapping[str, Callable[[Config, DataSpec], Objective]] = {
    "masked_reconstruction": MaskedReconstruction.from_config,
    **dict.fromkeys(VARIANTS, SensorLanguage.from_config),
}


def build(config: Config, spec: DataSpec) -> Objective:
    """The objective a configuration names, for data of this spec.

    Raises:
      UserError: unknown objective, or a setting it refuses.
    """
    name = config.objective.name
    if name not in OBJECTIVES:
        raise UserError(
            f"objective.name={name!r} is unknown.{nearest(name, OBJECTIVES)} Known: {', '.join(OBJECTIVES)}."
        )
    return OBJECTIVES[name](config, spec)
