"""Embeddings of the windows of a batch at a level: days, hours or tokens, each with its time in the window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lsm_jax.errors import RunError, UserError, nearest
from lsm_jax.objectives.base import NetworkObjective
from lsm_jax.objectives.pooling import HOUR, TokenEmbeddings
from lsm_jax.train.run import Run

LEVELS = ("day", "person", "hour", "token")


class LevelEmbeddings(NamedTuple):
    """Embeddings of parts of windows, in the order of windows and time.

    Attributes:
      window: the row of the batch.
      minute, minutes: where the part begins in its window, and how long it is.
      channels: of a token; empty for days and hours.
      whole: whether the parts are whole windows.
      vectors: NaN for a day without a token; hours without a token are left out.
    """

    window: Int[np.ndarray, " n"]
    minute: Int[np.ndarray, " n"]
    minutes: int
    channels: list[list[str]]
    vectors: Float[np.ndarray, "n d"]
    whole: bool = False


def check_level(level: str, pooling: str) -> None:
    """UserError for a level that is none, or one that `pooling` has no part in."""
    if level not in LEVELS:
        raise UserError(f"there is no level {level!r}.{nearest(level, LEVELS)} Known: {', '.join(LEVELS)}.")
    if pooling and level in ("hour", "token"):
        raise UserError(f"pooling={pooling!r} says how tokens become a day or a person; leave it out for {level!r}.")


def embed_level(run: Run, batch: Mapping[str, Any], windows: int, level: str, pooling: str = "") -> LevelEmbeddings:
    """The embeddings of the first `windows` windows of a batch; `person` gives days, of which a person is the mean.

    Raises:
      RunError: an embedding is not finite.
    """
    batch = {name: array[:windows] for name, array in batch.items()}
    objective = run.objective
    assert isinstance(objective, NetworkObjective)
    if level in ("day", "person"):
        vectors = np.array(objective.embed(run.params, batch, pooling), np.float32)
        _check_finite(vectors, run)
        # In the space shared with texts a window without a token has a vector, too.
        vectors[~objective.read_tokens(batch).any(axis=1)] = np.nan
        every = np.arange(windows)
        return LevelEmbeddings(every, np.zeros_like(every), batch["values"].shape[1], [], vectors, whole=True)
    grid = objective.tokens
    if level == "hour":
        hours = objective.embed(run.params, batch, "hour").reshape(windows, -(-grid.window_minutes // HOUR), -1)
        _check_finite(hours, run)
        window, hour = np.nonzero(hours.any(axis=2))
        return LevelEmbeddings(window, hour * HOUR, HOUR, [], hours[window, hour])
    tokens = TokenEmbeddings(*map(np.asarray, objective.embed_tokens(run.params, batch)))
    window, slot = np.nonzero(tokens.real)
    vectors, patch, group = tokens.vectors[window, slot], *np.divmod(tokens.token[window, slot], grid.groups)
    _check_finite(vectors, run)
    width = grid.patch_channels
    names = [list(grid.channels[first : first + width]) for first in range(0, len(grid.channels), width)]
    return LevelEmbeddings(
        window, patch * grid.patch_minutes, grid.patch_minutes, [names[each] for each in group], vectors
    )


def _check_finite(vectors: np.ndarray, run: Run) -> None:
    if not np.isfinite(vectors).all():
        raise RunError(f"the model of step {run.step} gives embeddings that are not finite.")
