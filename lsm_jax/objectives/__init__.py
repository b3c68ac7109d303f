"""What is learnt: small objects with `init` and `loss`, trained by the one loop."""

from lsm_jax.objectives.base import Objective, build

__all__ = ["Objective", "build"]
