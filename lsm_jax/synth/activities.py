"""The 20 activity classes, and how each affects heart, wrist and skin.

The papers publish the number of classes and examples (running, skiing, kayaking, golf), not the list. This one is ours:
activities that a watch lets its wearer log.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Activity:
    """One class.

    Attributes:
      name: as in events; popularity: relative frequency in the population.
      minutes: median duration of a session; hours: preferred starts, local time.
      heart: fraction of the heart-rate reserve in steady state.
      cadence: steps per minute.
      motion: of the wrist, 0 still to 1 running; rhythm: periodicity of the motion, -1 erratic to 1 metronomic.
      pitch, jolt: speed and impulsiveness of the motion, 0 to 1.
      tilt, turn: posture of the wrist, in standard deviations of everyday postures.
      stop_go: depth of the alternation of effort and rest, 0 to 1, and its `period` in minutes.
      climb: vertical movement in metres per minute, the scale of the altimeter feature.
      sweat: rise of skin conductance; cooling: degrees that wind, water or snow cool the wrist.
    """

    name: str
    popularity: float
    minutes: float
    hours: tuple[float, ...]
    heart: float
    cadence: float
    motion: float
    rhythm: float
    pitch: float
    jolt: float
    tilt: float
    turn: float
    stop_go: float
    period: float
    climb: float
    sweat: float
    cooling: float


_ANY_TIME = (8.0, 12.5, 17.5, 20.0)
_EARLY_OR_LATE = (7.0, 17.5, 18.5)
_GYM = (6.5, 12.2, 17.5, 19.0)
_OUTING = (9.5, 11.0, 14.5)

# In the order of the fields above.
ACTIVITIES: tuple[Activity, ...] = (
    Activity("walking", 20, 32, _ANY_TIME, 0.28, 104, 0.55, 0.65, 0.40, 0.25, 0.2, 0.0, 0.05, 9, 0.03, 0.3, 1.0),
    Activity("running", 9, 38, _EARLY_OR_LATE, 0.74, 162, 1.05, 0.95, 0.75, 0.45, -0.6, 0.6, 0.05, 8, 0.06, 1.4, 1.4),
    Activity("cycling", 7, 52, (7.5, 10.0, 17.0), 0.58, 6, 0.48, -0.10, 0.85, 0.55, 1.3, -0.9, 0.12, 7, 0.16, 0.8, 2.6),
    Activity("spinning", 4, 45, _GYM, 0.68, 4, 0.30, 0.35, 0.55, 0.10, 1.4, -1.1, 0.20, 5, 0.00, 1.7, -0.6),
    Activity("hiking", 4, 115, _OUTING, 0.46, 92, 0.60, 0.45, 0.35, 0.40, 0.0, 0.3, 0.12, 16, 0.45, 0.8, 1.6),
    Activity("swimming", 4, 38, _GYM, 0.57, 3, 0.78, 0.60, 0.20, 0.15, -1.6, -0.6, 0.22, 6, 0.00, -0.5, 4.0),
    Activity("elliptical", 4, 34, _GYM, 0.57, 128, 0.62, 0.90, 0.45, 0.05, 0.7, 0.9, 0.05, 9, 0.00, 1.2, -0.4),
    Activity("rowing", 3, 28, _GYM, 0.66, 9, 0.80, 0.85, 0.15, 0.20, 0.4, -1.7, 0.08, 6, 0.00, 1.2, 0.0),
    Activity("strength training", 6, 48, _GYM, 0.40, 12, 0.45, -0.30, 0.25, 0.65, 0.3, 0.8, 0.65, 4, 0.00, 0.7, 0.0),
    Activity("weightlifting", 4, 55, _GYM, 0.36, 7, 0.38, -0.45, 0.12, 0.90, -0.4, 1.4, 0.85, 6, 0.00, 0.6, 0.0),
    Activity("hiit", 4, 26, _GYM, 0.72, 58, 0.82, 0.15, 0.70, 0.75, -0.2, 0.2, 0.55, 3, 0.00, 1.6, -0.2),
    Activity("yoga", 6, 45, (6.5, 9.0, 19.5), 0.15, 1, 0.22, -0.35, 0.08, 0.25, -1.1, 1.6, 0.25, 8, 0.00, 0.1, -0.4),
    Activity("pilates", 3, 45, (9.0, 12.0, 18.0), 0.22, 2, 0.32, 0.20, 0.15, 0.40, -1.5, 0.6, 0.30, 5, 0.00, 0.2, -0.3),
    Activity("dancing", 4, 55, (19.0, 20.5), 0.50, 74, 0.74, 0.40, 0.60, 0.45, -0.8, -0.9, 0.25, 5, 0.00, 1.1, -0.5),
    Activity("aerobics", 3, 42, _GYM, 0.56, 88, 0.76, 0.70, 0.55, 0.55, -0.3, -0.3, 0.12, 7, 0.00, 1.2, -0.3),
    Activity("tennis", 4, 68, (10.0, 15.5, 18.0), 0.55, 48, 0.70, -0.25, 0.65, 0.95, 0.2, 0.9, 0.45, 5, 0.01, 1.0, 0.8),
    Activity("golf", 3, 140, (8.5, 13.0), 0.25, 54, 0.42, 0.05, 0.35, 0.80, 0.6, -0.3, 0.55, 9, 0.07, 0.3, 1.2),
    Activity("stair climbing", 3, 18, _GYM, 0.62, 84, 0.50, 0.80, 0.25, 0.30, 0.5, 0.4, 0.05, 7, 0.75, 1.0, -0.1),
    Activity("skiing", 2, 125, _OUTING, 0.44, 5, 0.58, -0.15, 0.50, 0.50, -0.5, -1.5, 0.75, 14, 0.90, 0.0, 3.6),
    Activity("kayaking", 2, 75, _OUTING, 0.43, 2, 0.66, 0.75, 0.30, 0.35, -0.1, -2.0, 0.10, 11, 0.00, 0.2, 2.4),
)  # fmt: skip

NAMES: tuple[str, ...] = tuple(activity.name for activity in ACTIVITIES)
NO_ACTIVITY = len(ACTIVITIES)


def per_class(attribute: str) -> np.ndarray:
    """float32[21]: one attribute of every class, then 0 for no activity."""
    return np.array([getattr(activity, attribute) for activity in ACTIVITIES] + [0.0], np.float32)
