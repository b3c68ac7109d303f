"""Which channels a caption speaks of: some always, some by the luck of the epoch.

SensorLM (arXiv 2506.09108) describes fixed features of the groups heart, activity, sleep and EDA plus random extras
(heart 2, activity 1, EDA 1). Which features are fixed is not published; the lists are ours, and so are the channels
beyond the 26 features: a device that has none of them is simply not described by them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool

from lsm_jax.channels import REGISTRY

# By group: channels always described, and how many of the others are drawn.
_FIXED: Mapping[str, tuple[tuple[str, ...], int]] = MappingProxyType(
    {
        "heart": (("heart_rate", "rmssd"), 2),
        "activity": (("steps",), 1),
        "sleep": (("sleep_coefficient",), 1),
        "skin": (("skin_conductance_level", "skin_temperature"), 1),
        "blood": (("glucose", "spo2"), 0),
    }
)
GROUPS = tuple(_FIXED)
_GROUP_OF_SENSOR = {
    "PPG": "heart",
    "ACC": "activity",
    "ENERGY": "activity",
    "ALT": "activity",
    "SLEEP": "sleep",
    "EDA": "skin",
    "TEMP": "skin",
    "SPO2": "blood",
    "GLUCOSE": "blood",
}
# Codes have no mean, and how well a sensor could see is no news about the wearer.
_SILENT = frozenset({"sleep_state", "spo2_confidence", "spo2_coverage"})


def group_of(name: str) -> str | None:
    """The group a channel is described under; None where captions do not speak of it."""
    if name in _SILENT:
        return None
    return "sleep" if name == "sleep_coefficient" else _GROUP_OF_SENSOR.get(REGISTRY[name].sensor)


def choose_channels(
    channels: tuple[str, ...], supported: Bool[np.ndarray, " c"], random: np.random.Generator
) -> list[list[int]]:
    """Columns to describe, by group in the order of `GROUPS`: the fixed ones, then the extras drawn.

    Args:
      channels: canonical names of the window's columns.
      supported: columns observed enough to be spoken of; no other is chosen.
    """
    chosen = []
    for fixed, others, extras in _columns(channels):
        group = [column for column in fixed if supported[column]]
        candidates = [column for column in others if supported[column]]
        if len(candidates) > extras:
            candidates = sorted(random.permutation(candidates)[:extras].tolist())
        chosen.append(group + candidates)
    return chosen


@functools.lru_cache(maxsize=64)
def _columns(channels: tuple[str, ...]) -> Sequence[tuple[list[int], list[int], int]]:
    """By group: columns of the fixed channels, of the others, and how many of those to draw."""
    place = {name: column for column, name in enumerate(channels)}
    return [
        (
            [place[name] for name in fixed if name in place],
            [column for name, column in place.items() if group_of(name) == group and name not in fixed],
            extras,
        )
        for group, (fixed, extras) in _FIXED.items()
    ]
