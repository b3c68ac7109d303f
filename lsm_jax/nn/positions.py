"""Positions of tokens in (channel, time).

`sincos` is the paper's: fixed 2-D sine and cosine (LSM-2; SPEC section 3), the feature coordinate being
the channel's place in the registry. `learned` is our default: an embedding per registry channel on top
of one per sensor family, so that a channel never seen in training still says which body signal it is,
plus a projection of time harmonics.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lsm_jax.channels import REGISTRY
from lsm_jax.errors import UserError, nearest
from lsm_jax.nn.channel_tables import PLACE, TABLE_ROWS, ChannelTable, group_shares
from lsm_jax.tokens.grid import TokenGrid

POSITIONS = ("learned", "sincos")
_SENSORS = tuple(dict.fromkeys(known.sensor for known in REGISTRY.values()))
_SENSOR_ROWS = 32  # room for sensors added later


def sincos(coordinate: Float[np.ndarray, " n"], width: int) -> Float[np.ndarray, "n width"]:
    """Sine and cosine of a coordinate at `width / 2` geometric frequencies from 1 to 1/10000."""
    frequency = 10000.0 ** -(np.arange(width // 2) / (width // 2))
    angle = coordinate[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def harmonics(minute: Float[np.ndarray, " n"], count: int = 24) -> Float[np.ndarray, "n features"]:
    """Sine and cosine of the first `count` daily harmonics of a time of day in minutes."""
    angle = 2 * math.pi * minute[:, None] / 1440 * np.arange(1, count + 1)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


class Positions(nnx.Module):
    """Position vectors for the tokens of a grid."""

    def __init__(self, kind: str, grid: TokenGrid, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        if kind not in POSITIONS:
            raise UserError(f"model.positions={kind!r} is unknown.{nearest(kind, POSITIONS)}")
        self.kind, self.grid, self.width, self.dtype = kind, grid, width, dtype
        if kind == "learned":
            normal = nnx.initializers.normal
            self.channel = ChannelTable(width, normal(0.2), rngs=rngs)
            self.sensor = nnx.Param(normal(0.5)(rngs.params(), (_SENSOR_ROWS, width)))
            self.time = nnx.Param(normal(0.02)(rngs.params(), (harmonics(np.zeros(1)).shape[1] + width, width)))

    def __call__(self, token: Int[Array, "*b"]) -> Float[Array, "*b width"]:
        """Position vectors of tokens given by their place n in the window."""
        by_group, by_patch = self._tables()
        # Products with one-hot rows rather than gathers: their gradient is a product too, not a scatter,
        # which is slow on every backend and an order of magnitude slower on the CPU.
        group = jax.nn.one_hot(token % self.grid.groups, self.grid.groups, dtype=self.dtype)
        patch = jax.nn.one_hot(token // self.grid.groups, self.grid.patches, dtype=self.dtype)
        return group @ by_group.astype(self.dtype) + patch @ by_patch.astype(self.dtype)

    def _tables(self) -> tuple[Float[Array, "g width"], Float[Array, "p width"]]:
        grid = self.grid
        patch = np.arange(grid.patches, dtype=np.float32)
        if self.kind == "sincos":
            half = self.width // 2
            place = group_shares(grid, PLACE, TABLE_ROWS) @ np.arange(TABLE_ROWS, dtype=np.float32)
            channels = np.pad(sincos(place, half), ((0, 0), (0, self.width - half)))
            patches = np.pad(sincos(patch, self.width - half), ((0, 0), (half, 0)))
            return jnp.asarray(channels), jnp.asarray(patches)
        families = {name: _SENSORS.index(REGISTRY[name].sensor) for name in grid.channels}
        by_group = self.channel(grid) + jnp.asarray(group_shares(grid, families, _SENSOR_ROWS)) @ self.sensor[...]
        minute = (patch + 0.5) * grid.patch_minutes
        features = np.concatenate([harmonics(minute), sincos(patch, self.width)], axis=1)
        return by_group, jnp.asarray(features) @ self.time[...]
