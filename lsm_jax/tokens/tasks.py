"""The masks of evaluation: the generative tasks of LSM-1 and LSM-2, and the mask scenarios of OpenMHC.

Random imputation, temporal interpolation, temporal extrapolation (LSM-1, arXiv 2410.13638; LSM-2, arXiv 2506.05321) and
sensor imputation (LSM-2). Each hides an exact share of the recorded tokens, or a block of exact length. OpenMHC's three
structural scenarios do, too; its three semantic ones hide what fails together in life: sleep, workouts, high heart
rates. Masks of training are in `policies`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool


@dataclasses.dataclass(frozen=True)
class Task:
    """A task at one setting. Generative tasks have either `share` or `minutes`, semantic scenarios neither.

    Attributes:
      name: of `GENERATIVE_TASKS` or `OPENMHC_SCENARIOS`.
      share: hidden share of the recorded tokens (random), patches (time) or channel groups (sensor).
      minutes: length of the hidden block (temporal) or blocks (random patches).
    """

    name: str
    share: float = 0.0
    minutes: int = 0

    @property
    def setting(self) -> str:
        """The setting as printed in tables: `80%` or `60min`; `all` for every such interval of a window."""
        return f"{self.share:.0%}" if self.share else f"{self.minutes}min" if self.minutes else "all"


@dataclasses.dataclass(frozen=True)
class Context:
    """What the scenarios know of a window besides its recorded tokens.

    Attributes:
      marked: patches that overlap an interval, by the scenario that hides it.
      sensors: the sensors of the channels of each group.
    """

    marked: Mapping[str, Bool[np.ndarray, " p"]]
    sensors: Sequence[frozenset[str]]

    def groups(self, *sensors: str) -> Bool[np.ndarray, " g"]:
        """The groups with a channel of one of these sensors."""
        return np.array([not group.isdisjoint(sensors) for group in self.sensors])


_BLOCK_MINUTES = (10, 30, 60, 180)
GENERATIVE_TASKS: tuple[Task, ...] = (
    *(Task("random_imputation", share=share) for share in (0.3, 0.5, 0.8)),
    *(Task("temporal_interpolation", minutes=minutes) for minutes in _BLOCK_MINUTES),
    *(Task("temporal_extrapolation", minutes=minutes) for minutes in _BLOCK_MINUTES),
    *(Task("sensor_imputation", share=share) for share in (0.25, 0.5, 0.75)),
)
# OpenMHC hides heart rate and energy in workouts and at more than 160 bpm. Our channels of heart rate are many: all of
# PPG, or those that stay would give the others away.
MARKS: tuple[str, ...] = ("sleep_gap", "workout_gap", "intensity_failure")
_FAILING_SENSORS = ("PPG", "ENERGY")
OPENMHC_SCENARIOS: tuple[Task, ...] = (
    Task("random_patches", share=0.5, minutes=30),
    Task("time_blocks", share=0.25, minutes=30),
    Task("signals", share=0.5),
    *map(Task, MARKS),
)


def hidden_tokens(
    task: Task,
    recorded: Bool[np.ndarray, "p g"],
    patch_minutes: int,
    rng: np.random.Generator,
    context: Context | None = None,
) -> Bool[np.ndarray, "p g"] | None:
    """The recorded tokens that `task` hides in one window, or None if the window is unsuitable for the task.

    A task must hide at least one recorded token and leave at least one visible. A temporal block must be a whole
    number of patches. For interpolation, recorded patches must precede and follow it.

    Args:
      recorded: patches by channel groups; True for tokens with at least one recorded cell.
      patch_minutes: minutes of a patch.
      context: needed by `signals` and by the semantic scenarios.
    """
    if task.minutes % patch_minutes:
        return None
    length = task.minutes // patch_minutes
    if task.name == "random_imputation":
        candidates = np.flatnonzero(recorded)
        hidden = np.isin(np.arange(recorded.size), _sample(candidates, task.share, rng)).reshape(recorded.shape)
    elif task.name == "sensor_imputation":
        groups = np.flatnonzero(recorded.any(axis=0))
        hidden = np.isin(np.arange(recorded.shape[1]), _sample(groups, task.share, rng)) & recorded
    elif task.name == "temporal_interpolation":
        hidden = _block(recorded, _interpolation_start(recorded, length, rng), length)
    elif task.name == "temporal_extrapolation":
        patches = np.flatnonzero(recorded.any(axis=1))
        hidden = _block(recorded, int(patches[-1]) - length + 1 if len(patches) else None, length)
    elif task.name == "random_patches":
        number = np.arange(len(recorded))[:, None] // length * recorded.shape[1] + np.arange(recorded.shape[1])
        hidden = recorded & np.isin(number, _sample(np.unique(number[recorded]), task.share, rng))
    elif task.name == "time_blocks":
        hidden = recorded & _blocks(np.asarray(recorded.any(axis=1)), task.share, length, rng)[:, None]
    elif context and task.name == "signals":
        hidden = recorded & _signals(np.asarray(recorded.any(axis=0)), task.share, context, rng)
    elif context and task.name in context.marked:
        groups = ~context.groups("SLEEP") if task.name == "sleep_gap" else context.groups(*_FAILING_SENSORS)
        hidden = recorded & context.marked[task.name][:, None] & groups
    else:
        raise ValueError(f"no generative task is called {task.name!r}.")
    return hidden if hidden.any() and (recorded & ~hidden).any() else None


def _sample(candidates: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """`share` of the candidates, rounded half up; at least one and not all. None of fewer than two."""
    if len(candidates) < 2:
        return candidates[:0]
    count = int(np.clip(np.floor(share * len(candidates) + 0.5), 1, len(candidates) - 1))
    return rng.choice(candidates, count, replace=False)


def _interpolation_start(recorded: np.ndarray, length: int, rng: np.random.Generator) -> int | None:
    """First patch of a block with recorded patches before, in and after it; all such blocks are equally likely."""
    patches = np.flatnonzero(recorded.any(axis=1))
    if len(patches) < 3:
        return None
    starts = np.arange(patches[0] + 1, patches[-1] - length + 1)
    recorded_inside = np.searchsorted(patches, starts + length) - np.searchsorted(patches, starts)
    starts = starts[recorded_inside > 0]
    return int(rng.choice(starts)) if len(starts) else None


def _blocks(recorded: np.ndarray, share: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """Blocks of one to two `length` patches that hold `share` of the recorded patches; the last is cut for that."""
    target, hidden = len(_sample(np.flatnonzero(recorded), share, rng)), np.zeros(len(recorded), bool)
    for start in rng.permutation(len(recorded)):
        block = np.arange(start, min(start + int(rng.integers(length, 2 * length + 1)), len(recorded)))
        new = block[recorded[block] & ~hidden[block]]
        hidden[new[: target - int(hidden.sum())]] = True
    return hidden


def _signals(recorded: np.ndarray, share: float, context: Context, rng: np.random.Generator) -> np.ndarray:
    """In half of the windows `share` of the recorded groups, in the others all groups of one sensor."""
    whole_sensor, groups = rng.random() < 0.5, np.flatnonzero(recorded).tolist()
    sensors = sorted(set().union(*(context.sensors[group] for group in groups)))
    if whole_sensor and len(sensors) > 1:
        return context.groups(sensors[int(rng.integers(len(sensors)))])
    return np.isin(np.arange(len(recorded)), _sample(np.array(groups), share, rng))


def _block(recorded: np.ndarray, start: int | None, length: int) -> np.ndarray:
    """The recorded tokens of the patches from `start` on; none if there is no start."""
    patch = np.arange(len(recorded))[:, None]
    return recorded & False if start is None else recorded & (patch >= start) & (patch < start + length)
