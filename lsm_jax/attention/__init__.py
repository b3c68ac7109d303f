"""The one attention function over rows and segments."""

from lsm_jax.attention.api import attention, attention_ranges
from lsm_jax.attention.cost import Flops, flops, worst_case_flops
from lsm_jax.attention.platforms import interpreted
from lsm_jax.attention.ranges import Ranges
from lsm_jax.attention.registry import AUTO, IMPLEMENTATIONS, available, resolved

__all__ = [
    "AUTO",
    "IMPLEMENTATIONS",
    "Flops",
    "Ranges",
    "attention",
    "attention_ranges",
    "available",
    "flops",
    "interpreted",
    "resolved",
    "worst_case_flops",
]
