"""The one attention function over rows and segments."""

from lsm_jax.nn.attention.api import attention, attention_ranges
from lsm_jax.nn.attention.cost import Visits, visits
from lsm_jax.nn.attention.pieces import Pieces
from lsm_jax.nn.attention.platforms import interpreted
from lsm_jax.nn.attention.ranges import Ranges
from lsm_jax.nn.attention.registry import AUTO, IMPLEMENTATIONS, available, resolved

__all__ = [
    "AUTO",
    "IMPLEMENTATIONS",
    "Pieces",
    "Ranges",
    "Visits",
    "attention",
    "attention_ranges",
    "available",
    "interpreted",
    "resolved",
    "visits",
]
