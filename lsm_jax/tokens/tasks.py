"""The masks of evaluation: the generative tasks of LSM-1 and LSM-2.

Random imputation, temporal interpolation, temporal extrapolation (LSM-1, arXiv 2410.13638; LSM-2, arXiv 2506.05321) and
sensor imputation (LSM-2). Each hides an exact share of the recorded tokens, or a block of exact length. Masks of
training are in `policies`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool


@dataclasses.dataclass(frozen=True)
class Task:
    """A task at one setting: either `share` or `minutes` is given.

    Attributes:
      name: random_imputation, temporal_interpolation, temporal_extrapolation or sensor_imputation.
      share: hidden share of the recorded tokens (random) or of the recorded channel groups (sensor).
      minutes: length of the hidden block (temporal).
    """

    name: str
    share: float = 0.0
    minutes: int = 0

    @property
    def setting(self) -> str:
        """The setting as printed in tables: `80%` or `60min`."""
        return f"{self.minutes}min" if self.minutes else f"{self.share:.0%}"


_BLOCK_MINUTES = (10, 30, 60, 180)
GENERATIVE_TASKS: tuple[Task, ...] = (
    *(Task("random_imputation", share=share) for share in (0.3, 0.5, 0.8)),
    *(Task("temporal_interpolation", minutes=minutes) for minutes in _BLOCK_MINUTES),
    *(Task("temporal_extrapolation", minutes=minutes) for minutes in _BLOCK_MINUTES),
    *(Task("sensor_imputation", share=share) for share in (0.25, 0.5, 0.75)),
)


def hidden_tokens(
    task: Task, recorded: Bool[np.ndarray, "p g"], patch_minutes: int, rng: np.random.Generator
) -> Bool[np.ndarray, "p g"] | None:
    """The recorded tokens that `task` hides in one window, or None if the window is unsuitable for the task.

    A task must hide at least one recorded token and leave at least one visible. A temporal block must be a whole
    number of patches. For interpolation, recorded patches must precede and follow it.

    Args:
      recorded: patches by channel groups; True for tokens with at least one recorded cell.
      patch_minutes: minutes of a patch.
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


def _block(recorded: np.ndarray, start: int | None, length: int) -> np.ndarray:
    """The recorded tokens of the patches from `start` on; none if there is no start."""
    patch = np.arange(len(recorded))[:, None]
    return recorded & False if start is None else recorded & (patch >= start) & (patch < start + length)
