"""Chooses the channels that a caption describes: fixed ones in every caption, and random extras.

SensorLM (arXiv 2506.09108) describes fixed features of the groups heart, activity, sleep and EDA, plus random extras
(heart 2, activity 1, EDA 1). It does not publish which features are fixed, so the lists here are ours, as are the
channels beyond the 26 minutely features. Channels that a device lacks are not described.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool

from lsm_jax.channels import REGISTRY

# By group: the fixed channels, and the number of random extras.
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
# Category codes have no mean, and a sensor's signal quality and the warmth of its housing say nothing about the wearer.
_NOT_CAPTIONED = frozenset({"sleep_state", "spo2_confidence", "spo2_coverage", "device_temperature"})


def group_of(name: str) -> str | None:
    """The group of a channel; None if captions do not describe it."""
    if name in _NOT_CAPTIONED:
        return None
    return "sleep" if name == "sleep_coefficient" else _GROUP_OF_SENSOR.get(REGISTRY[name].sensor)


def choose_channels(
    channels: tuple[str, ...], supported: Bool[np.ndarray, " c"], random: np.random.Generator
) -> list[list[int]]:
    """Columns to describe, for each group in the order of `GROUPS`: fixed channels, then random extras.

    Args:
      channels: canonical names of the window's columns.
      supported: columns with enough observed cells; no other is chosen.
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
    """For each group: columns of its fixed channels, columns of its other channels, number of extras."""
    index = {name: column for column, name in enumerate(channels)}
    return [
        (
            [index[name] for name in fixed if name in index],
            [column for name, column in index.items() if group_of(name) == group and name not in fixed],
            extras,
        )
        for group, (fixed, extras) in _FIXED.items()
    ]
