"""The one attention function over rows and segments."""

from lsm_jax.attention.api import IMPLEMENTATIONS, attention

__all__ = ["IMPLEMENTATIONS", "attention"]
