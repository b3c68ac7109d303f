"""From windows to tokens: patches of `patch_minutes x patch_channels` cells.

LSM-2 uses 10 x 1, LSM-1 10 x 5, SensorLM 10 x 2 (arXiv 2410.13638, 2506.05321, 2506.09108).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError

ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)


class TokenCells(NamedTuple):
    """The cells of a batch by token. Values are z-scored, and 0 where not observed."""

    values: Float[Array, "b n k"]
    observed: Bool[Array, "b n k"]


@dataclasses.dataclass(frozen=True)
class TokenGrid:
    """The fixed grid of tokens of a window.

    Attributes:
      channels: canonical names of the C columns.
      window_minutes: T, a multiple of `patch_minutes`.
      patch_minutes: minutes of a patch.
      patch_channels: channels of a patch; the last group is padded with unobserved cells.
      min_observed_share: share of a patch's cells that must be observed for an observed token; 0: at least one cell.
        The papers do not say; the default uses every recorded cell.
    """

    channels: tuple[str, ...]
    window_minutes: int = 1440
    patch_minutes: int = 10
    patch_channels: int = 1
    min_observed_share: float = 0.0

    def __post_init__(self) -> None:
        if self.window_minutes % self.patch_minutes:
            raise UserError(
                f"data.window_minutes={self.window_minutes} is not a multiple of tokens.patch_minutes="
                f"{self.patch_minutes}: choose a divisor."
            )
        if not 0 <= self.min_observed_share <= 1:
            raise UserError(f"tokens.min_observed_share={self.min_observed_share}: give a share from 0 to 1.")

    @classmethod
    def from_config(cls, config: Config, spec: DataSpec) -> TokenGrid:
        """The grid of a run."""
        return cls(tuple(spec.channels), spec.window_minutes, **dataclasses.asdict(config.tokens))

    @property
    def patches(self) -> int:
        """Patches in time, P."""
        return self.window_minutes // self.patch_minutes

    @property
    def groups(self) -> int:
        """Channel groups, G."""
        return math.ceil(len(self.channels) / self.patch_channels)

    @property
    def size(self) -> int:
        """Tokens of a window, N = P x G; token n is patch n // G, group n % G."""
        return self.patches * self.groups

    @property
    def cells_per_token(self) -> int:
        """Cells of a token, K."""
        return self.patch_minutes * self.patch_channels

    def cells(self, grid: Shaped[ArrayT, "b t c"]) -> Shaped[ArrayT, "b n k"]:
        """The cells of every token, minute-major; JAX or NumPy arrays."""
        batch = grid.shape[0]
        padding = self.groups * self.patch_channels - len(self.channels)
        padded = grid.__array_namespace__().pad(grid, ((0, 0), (0, 0), (0, padding)))
        patches = padded.reshape(batch, self.patches, self.patch_minutes, self.groups, self.patch_channels)
        return patches.transpose(0, 1, 3, 2, 4).reshape(batch, self.size, self.cells_per_token)

    def tokenize(self, batch: Mapping[str, Array]) -> TokenCells:
        """The batch by token; whatever `values` holds in unobserved cells is replaced by 0."""
        values = jnp.where(batch["observed"], batch["values"], 0)
        return TokenCells(self.cells(values), self.cells(jnp.asarray(batch["observed"])))

    def windows(self, cells: Shaped[ArrayT, "b n k"]) -> Shaped[ArrayT, "b t c"]:
        """The inverse of `cells`."""
        batch = cells.shape[0]
        patches = cells.reshape(batch, self.patches, self.groups, self.patch_minutes, self.patch_channels)
        grid = patches.transpose(0, 1, 3, 2, 4).reshape(batch, self.window_minutes, self.groups * self.patch_channels)
        return grid[:, :, : len(self.channels)]

    def tokens_observed(self, observed_cells: Bool[ArrayT, "b n k"]) -> Bool[ArrayT, "b n"]:
        """Which patches have enough observed cells to be tokens (`min_observed_share`)."""
        if not self.min_observed_share:
            return observed_cells.any(axis=-1)  # type: ignore[return-value]  # NumPy's stubs say: a scalar, perhaps.
        by_patch = observed_cells.sum(axis=-1).reshape(observed_cells.shape[0], -1, self.groups)
        return (by_patch >= self.cells_needed()).reshape(observed_cells.shape[:2])

    def cells_needed(self) -> Int[np.ndarray, " groups"]:
        """How many of its cells must be observed for a token of each channel group."""
        # The padding cells of the last channel group cannot be observed and must not count against it.
        channels = np.bincount(np.arange(len(self.channels)) // self.patch_channels)
        # Rounded first: 0.07 x 100 is a little more than 7.
        needed = np.ceil(np.round(self.min_observed_share * channels * self.patch_minutes, 6))
        return np.maximum(needed, 1).astype(np.int32)
