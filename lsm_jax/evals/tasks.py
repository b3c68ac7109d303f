"""The generative tasks of LSM-1 and LSM-2: which tokens of a window are hidden.

Random imputation, temporal interpolation, temporal extrapolation (LSM-1, arXiv 2410.13638; LSM-2,
arXiv 2506.05321) and sensor imputation (LSM-2). Counts are exact, shares of what was recorded.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool


@dataclasses.dataclass(frozen=True)
class Task:
    """A task at one setting; one of `share` and `minutes` is given.

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
        """The setting as tables spell it: `80%` or `60min`."""
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
    """The recorded tokens that `task` hides in one window; None where the task does not fit it.

    A task fits when something recorded is hidden and something recorded stays visible; a temporal block
    must also be a whole number of patches and, for interpolation, lie inside the recorded span.

    Args:
      recorded: patches by channel groups; True for tokens with at least one recorded cell.
      patch_minutes: minutes a patch spans.
    """
    if task.minutes % patch_minutes:
        return None
    if task.name == "random_imputation":
        hidden = _random(recorded, task.share, rng)
    elif task.name == "sensor_imputation":
        hidden = _sensors(recorded, task.share, rng)
    elif task.name == "temporal_interpolation":
        hidden = _block_inside(recorded, task.minutes // patch_minutes, rng)
    elif task.name == "temporal_extrapolation":
        hidden = _block_at_end(recorded, task.minutes // patch_minutes)
    else:
        raise ValueError(f"no generative task is called {task.name!r}.")
    if hidden is None or not hidden.any() or not (recorded & ~hidden).any():
        return None
    return hidden


def _exact_count(share: float, total: int) -> int:
    """`share` of `total`, rounded half up, leaving at least one hidden and one visible."""
    return int(np.clip(np.floor(share * total + 0.5), 1, total - 1))


def _random(recorded: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray | None:
    candidates = np.flatnonzero(recorded)
    if len(candidates) < 2:
        return None
    hidden = np.zeros(recorded.size, bool)
    hidden[rng.choice(candidates, _exact_count(share, len(candidates)), replace=False)] = True
    return hidden.reshape(recorded.shape)


def _sensors(recorded: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray | None:
    groups = np.flatnonzero(recorded.any(axis=0))
    if len(groups) < 2:
        return None
    hidden = np.zeros_like(recorded)
    hidden[:, rng.choice(groups, _exact_count(share, len(groups)), replace=False)] = True
    return hidden & recorded


def _block_inside(recorded: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray | None:
    """A block with recorded patches before, in and after it; every such start is equally likely."""
    patches = np.flatnonzero(recorded.any(axis=1))
    if len(patches) < 3:
        return None
    starts = np.arange(patches[0] + 1, patches[-1] - length + 1)
    # A block over a gap hides nothing: it must hold a recorded patch.
    held = np.searchsorted(patches, starts + length) - np.searchsorted(patches, starts)
    starts = starts[held > 0]
    if not len(starts):
        return None
    return _hide_patches(recorded, int(rng.choice(starts)), length)


def _block_at_end(recorded: np.ndarray, length: int) -> np.ndarray | None:
    patches = np.flatnonzero(recorded.any(axis=1))
    if not len(patches) or patches[-1] - patches[0] + 1 <= length:
        return None
    return _hide_patches(recorded, int(patches[-1]) - length + 1, length)


def _hide_patches(recorded: np.ndarray, start: int, length: int) -> np.ndarray:
    hidden = np.zeros_like(recorded)
    hidden[start : start + length] = recorded[start : start + length]
    return hidden
