"""Position embeddings of tokens in (channel, time).

`sincos` is the paper's: fixed 2-D sine and cosine (LSM-2, arXiv 2506.05321), where the channel coordinate is its index
in the registry. `learned` is our default: an embedding per registry channel, one per sensor family (so that a channel
never seen in training still says which body signal it is), and a projection of time harmonics.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from lsm_jax.channels import REGISTRY
from lsm_jax.errors import UserError
from lsm_jax.nn.channel_tables import TABLE_ROWS, ChannelTable, channel_rows, group_mean
from lsm_jax.tokens.grid import TokenGrid

_SENSORS = tuple(dict.fromkeys(channel.sensor for channel in REGISTRY.values()))
_SENSOR_ROWS = 32  # room for sensors added later


def sensor_row(name: str) -> int:
    """The row of a channel's sensor family among the embeddings of sensors."""
    return _SENSORS.index(REGISTRY[name].sensor)


def sincos(coordinate: Float[np.ndarray, " n"], width: int) -> Float[np.ndarray, "n width"]:
    """Sine and cosine of a coordinate at `width / 2` geometric frequencies from 1 to 1/10000."""
    frequency = 10000.0 ** -(np.arange(width // 2) / (width // 2))
    angle = coordinate[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def harmonics(minute: Float[np.ndarray, " n"], count: int = 24) -> Float[np.ndarray, "n features"]:
    """Sine and cosine of the first `count` daily harmonics of a time of day in minutes."""
    angle = 2 * math.pi * minute[:, None] / 1440 * np.arange(1, count + 1)
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


class Rotation(NamedTuple):
    """Cosine and sine of the angles by which pairs of features are rotated."""

    cosine: Float[Array, "*b half"]
    sine: Float[Array, "*b half"]


def rotation(patch: Int[Array, "*b"], head_size: int) -> Rotation:
    """The rotation of a head's features at a patch of its window (RoPE, Su et al. 2021, arXiv 2104.09864).

    The score of two tokens then depends on how far apart they are. Angles per patch go from 1 to nearly 1/150: of
    10 minutes each, one turn takes from an hour to several days.
    """
    half = head_size // 2
    angle = patch[..., None].astype(jnp.float32) * jnp.asarray(150.0 ** -(np.arange(half, dtype=np.float32) / half))
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotated(heads: Float[Array, "*b h k"], rotation: Rotation) -> Float[Array, "*b h k"]:
    """Queries or keys of all heads, rotated: feature `i` with feature `i + half`."""
    half = rotation.cosine.shape[-1]
    cosine, sine = (part[..., None, :].astype(heads.dtype) for part in rotation)
    first, second = heads[..., :half], heads[..., half : 2 * half]
    turned = first * cosine - second * sine, first * sine + second * cosine
    return jnp.concatenate([*turned, heads[..., 2 * half :]], axis=-1)


class Positions(nnx.Module):
    """Position embeddings for the tokens of a grid.

    Args:
      kind: `learned` or `sincos`.
    """

    def __init__(self, kind: str, grid: TokenGrid, width: int, *, dtype: str, rngs: nnx.Rngs) -> None:
        divisor = 4 if kind == "sincos" else 2
        if width % divisor:
            raise UserError(
                f"model.size: a width of {width} is no multiple of {divisor}, which {kind} position embeddings need; "
                "choose another width."
            )
        self.kind, self.grid, self.width, self.dtype = kind, grid, width, dtype
        if kind == "learned":
            normal = nnx.initializers.normal
            self.channel = ChannelTable(width, normal(0.2), rngs=rngs)
            self.sensor_embedding = nnx.Param(normal(0.5)(rngs.params(), (_SENSOR_ROWS, width)))
            inputs = harmonics(np.zeros(1)).shape[1] + width
            self.time_proj = nnx.Param(normal(0.02)(rngs.params(), (inputs, width)))

    def __call__(self, token: Int[Array, "*b"]) -> Float[Array, "*b width"]:
        """Embeddings of tokens given by their index n in the window."""
        by_group, by_patch = self._tables()
        # One-hot products instead of gathers: the gradient of a gather is a scatter, ten times slower on a CPU.
        group = jax.nn.one_hot(token % self.grid.groups, self.grid.groups, dtype=self.dtype)
        patch = jax.nn.one_hot(token // self.grid.groups, self.grid.patches, dtype=self.dtype)
        return group @ by_group.astype(self.dtype) + patch @ by_patch.astype(self.dtype)

    def on_grid(self, patches: int) -> Float[Array, "n width"]:
        """Embeddings of all tokens of the first `patches` patches of the grid, in their order."""
        by_group, by_patch = (table.astype(self.dtype) for table in self._tables())
        return (by_group[None] + by_patch[:patches, None]).reshape(-1, self.width)

    def _tables(self) -> tuple[Float[Array, "g width"], Float[Array, "p width"]]:
        grid = self.grid
        patch = np.arange(grid.patches, dtype=np.float32)
        if self.kind == "sincos":
            half = self.width // 2
            index = group_mean(grid, channel_rows(grid), TABLE_ROWS) @ np.arange(TABLE_ROWS, dtype=np.float32)
            channels = np.pad(sincos(index, half), ((0, 0), (0, self.width - half)))
            patches = np.pad(sincos(patch, self.width - half), ((0, 0), (half, 0)))
            return jnp.asarray(channels), jnp.asarray(patches)
        sensor_rows = [sensor_row(name) for name in grid.channels]
        sensors = jnp.asarray(group_mean(grid, sensor_rows, _SENSOR_ROWS)) @ self.sensor_embedding[...]
        minute = (patch + 0.5) * grid.patch_minutes
        features = np.concatenate([harmonics(minute), sincos(patch, self.width)], axis=1)
        return self.channel(grid) + sensors, jnp.asarray(features) @ self.time_proj[...]
