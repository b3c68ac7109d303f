"""The one attention function over rows and segments."""

from lsm_jax.attention.api import attention, attention_ranges
from lsm_jax.attention.cost import Visits, visits
from lsm_jax.attention.pieces import Pieces
from lsm_jax.attention.platforms import interpreted
from lsm_jax.attention.ranges import Ranges
from lsm_jax.attention.registry import AUTO, IMPLEMENTATIONS, available, resolved

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
