"""What is learnt: small objects with `init` and `loss`, trained by the one loop."""

from lsm_jax.objectives.base import MaskedObjective, Objective, build, masked, sensor_language

__all__ = ["MaskedObjective", "Objective", "build", "masked", "sensor_language"]
