"""The masked autoencoder of LSM-1 and LSM-2 on rows of visible tokens."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from lsm_jax.channels import channels as registered
from lsm_jax.errors import UserError, nearest
from lsm_jax.masking.rows import Rows
from lsm_jax.masking.tokens import TokenGrid
from lsm_jax.models.layers import Stack
from lsm_jax.models.positions import Positions
from lsm_jax.models.sizes import ModelSize

DECODERS = ("all", "observed", "cross")
PATCH_INPUTS = ("values", "values_and_mask")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What shapes a masked autoencoder beside its size.

    Attributes:
      decoder: `all` decodes every position (the paper), `observed` only recorded ones, `cross` lets
        queries for the targets attend to the encoder's tokens.
      patch_input: `values` (the paper) or `values_and_mask`, which tells observed zeros from missing.
      compress: show heavy-tailed channels to the encoder through asinh, beside the plain value's place.
      positions: a name in `positions.POSITIONS`.
      attention, remat, dtype: implementation names and the compute type.
    """

    size: ModelSize
    decoder: str = "cross"
    patch_input: str = "values_and_mask"
    compress: bool = True
    positions: str = "learned"
    attention: str = "reference"
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for key, value, known in (
            ("decoder", self.decoder, DECODERS),
            ("patch_input", self.patch_input, PATCH_INPUTS),
        ):
            if value not in known:
                raise UserError(f"model.{key}={value!r} is unknown.{nearest(value, known)} Known: {', '.join(known)}.")


class Cells(NamedTuple):
    """Cells of a batch of windows, by token; unobserved values are zero.

    Attributes:
      values, observed: [B, N, K].
    """

    values: Float[Array, "b n k"]
    observed: Bool[Array, "b n k"]


class PatchEmbedding(nnx.Module):
    """One linear projection shared by all channels (LSM-2; SPEC section 3)."""

    def __init__(self, grid: TokenGrid, settings: ModelSettings, width: int, *, rngs: nnx.Rngs) -> None:
        self.grid, self.settings = grid, settings
        inputs = grid.cells_per_token * (2 if settings.patch_input == "values_and_mask" else 1)
        self.projection = nnx.Linear(inputs, width, dtype=settings.dtype, rngs=rngs)

    def __call__(self, cells: Cells, rows: Rows) -> Float[Array, "r s width"]:
        values, observed = rows.take(cells.values), rows.take(cells.observed)
        if self.settings.compress:
            values = jnp.where(self._heavy_tailed()[rows.token_index % self.grid.groups], jnp.arcsinh(values), values)
        if self.settings.patch_input == "values_and_mask":
            values = jnp.concatenate([values, observed.astype(values.dtype)], axis=-1)
        return self.projection(values)

    def _heavy_tailed(self) -> Bool[Array, "g k"]:
        """Which cells of a group's token belong to a heavy-tailed channel."""
        grid = self.grid
        flags = np.zeros(grid.groups * grid.patch_channels, bool)
        flags[: len(grid.channels)] = [kind.heavy_tailed for kind in registered(grid.channels)]
        return jnp.asarray(np.tile(flags.reshape(grid.groups, grid.patch_channels), (1, grid.patch_minutes)))


class Encoder(nnx.Module):
    """Visible tokens in, representations out; padding and other windows are never seen."""

    def __init__(self, grid: TokenGrid, settings: ModelSettings, *, rngs: nnx.Rngs) -> None:
        self.grid = grid
        size = settings.size.encoder
        self.patches = PatchEmbedding(grid, settings, size.width, rngs=rngs)
        self.positions = Positions(settings.positions, grid, size.width, dtype=settings.dtype, rngs=rngs)
        self.stack = Stack(
            size, implementation=settings.attention, remat=settings.remat, dtype=settings.dtype, rngs=rngs
        )

    def __call__(self, cells: Cells, rows: Rows) -> Float[Array, "r s d"]:
        tokens = self.patches(cells, rows) + self.positions(rows.token_index % self.grid.size)
        return self.stack(tokens, rows.segment)


class Decoder(nnx.Module):
    """Predicts the cells of target tokens from the encoder's tokens."""

    def __init__(self, grid: TokenGrid, settings: ModelSettings, *, rngs: nnx.Rngs) -> None:
        self.grid, self.kind = grid, settings.decoder
        size, width = settings.size.decoder, settings.size.encoder.width
        self.mask_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (size.width,)))
        self.positions = Positions(settings.positions, grid, size.width, dtype=settings.dtype, rngs=rngs)
        cross = self.kind == "cross"
        self.stack = Stack(
            size,
            memory_width=width if cross else None,
            implementation=settings.attention,
            remat=settings.remat,
            dtype=settings.dtype,
            rngs=rngs,
        )
        if not cross:
            self.bridge = nnx.Linear(width, size.width, dtype=settings.dtype, rngs=rngs)
        self.head = nnx.Linear(
            size.width, grid.cells_per_token, dtype=jnp.float32, kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(self, encoded: Float[Array, "r s d"], visible: Rows, decoded: Rows) -> Float[Array, "r q k"]:
        """Predictions at the tokens of `decoded`, whose rows hold the same windows as `visible`."""
        positions = self.positions(decoded.token_index % self.grid.size)
        queries = self.mask_token[...].astype(encoded.dtype) + positions
        if self.kind == "cross":
            return self.head(self.stack(queries, decoded.segment, (encoded, visible.segment)))
        slot = visible.slots_of(decoded)[:, :, None]
        padded = jnp.pad(self.bridge(encoded), ((0, 0), (0, 1), (0, 0)))
        shown = jnp.take_along_axis(padded, slot, axis=1) + positions
        tokens = jnp.where(slot < visible.segment.shape[1], shown, queries)
        return self.head(self.stack(tokens, decoded.segment))


class MaskedAutoencoder(nnx.Module):
    """Encoder and decoder of LSM-1 and LSM-2."""

    def __init__(self, grid: TokenGrid, settings: ModelSettings, *, rngs: nnx.Rngs) -> None:
        self.encoder = Encoder(grid, settings, rngs=rngs)
        self.decoder = Decoder(grid, settings, rngs=rngs)

    def __call__(self, cells: Cells, visible: Rows, decoded: Rows) -> Float[Array, "r q k"]:
        """Predicted cells at the tokens of `decoded`, from the tokens of `visible` alone."""
        return self.decoder(self.encoder(cells, visible), visible, decoded)
