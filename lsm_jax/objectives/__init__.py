"""What is learnt: objectives with `init` and `loss`, trained by the one loop. They are chosen by `objective.name`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError, nearest
from lsm_jax.objectives.base import MaskedObjective, Objective, check_packed
from lsm_jax.objectives.imputed import ImputedReconstruction
from lsm_jax.objectives.masked import MaskedReconstruction
from lsm_jax.objectives.sensor_language import VARIANTS, SensorLanguage
from lsm_jax.objectives.simclr import SimCLR
from lsm_jax.objectives.supervised import Supervised

__all__ = ["OBJECTIVES", "MaskedObjective", "Objective", "build", "check_new_run", "masked", "sensor_language"]

OBJECTIVES: Mapping[str, Callable[[Config, DataSpec], Objective]] = {
    "masked_reconstruction": MaskedReconstruction,
    "imputed_reconstruction": ImputedReconstruction,
    "simclr": SimCLR,
    "supervised": Supervised,
    **dict.fromkeys(VARIANTS, SensorLanguage),
}


def build(config: Config, spec: DataSpec) -> Objective:
    """The objective that a configuration names, for data of this spec.

    Raises:
      UserError: an unknown objective, or a setting that it refuses.
    """
    name = config.objective.name
    if name not in OBJECTIVES:
        raise UserError(
            f"objective.name={name!r} is unknown.{nearest(name, OBJECTIVES)} Known: {', '.join(OBJECTIVES)}."
        )
    if config.objective.person_weight and OBJECTIVES[name] not in (MaskedReconstruction, ImputedReconstruction):
        raise UserError(
            f"objective.person_weight: the person loss is beside masked or imputed reconstruction, not {name}."
        )
    objective = OBJECTIVES[name](config, spec)
    if config.model.freeze_encoder and not objective.frozen:
        raise UserError(
            f"model.freeze_encoder: objective {name} trains its encoder. Leave it out, or use configs/finetune.py or "
            "configs/sensorlm.py."
        )
    return objective


def check_new_run(config: Config) -> None:
    """UserError for settings that a run should not begin with. Runs that did still resume and open."""
    if config.model.freeze_encoder and not config.model.encoder_from:
        raise UserError(
            "model.freeze_encoder: this encoder is not pre-trained. Name the run that has one with "
            "--config.model.encoder_from, or leave freeze_encoder out."
        )
    if OBJECTIVES[config.objective.name] in (SensorLanguage, Supervised):
        check_packed(config)


def masked(objective: Objective) -> MaskedObjective:
    """The objective, if it can reconstruct and embed windows; UserError otherwise."""
    if not isinstance(objective, MaskedObjective):
        raise UserError(
            f"the objective {type(objective).__name__} does not reconstruct windows; use a run of LSM-1 or LSM-2."
        )
    return objective


def sensor_language(objective: Objective) -> SensorLanguage:
    """The objective, if it is a sensor-text model; UserError otherwise."""
    if not isinstance(objective, SensorLanguage):
        raise UserError(f"the objective {type(objective).__name__} knows no text; use a run of configs/sensorlm.py.")
    return objective
