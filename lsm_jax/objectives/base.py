"""The objective protocol and the objectives by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError, nearest
from lsm_jax.objectives.masked import MaskedReconstruction

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
        """Loss over the global batch, and metrics (see docs/architecture.md)."""
        ...


OBJECTIVES: Mapping[str, Callable[[ConfigDict, DataSpec], Objective]] = {
    "masked_reconstruction": MaskedReconstruction.from_config,
}


def build(config: ConfigDict, spec: DataSpec) -> Objective:
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
