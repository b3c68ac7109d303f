"""The masked autoencoder of LSM-1 and LSM-2 on rows of visible tokens."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lsm_jax.errors import UserError, nearest
from lsm_jax.nn.context import Context, Prediction
from lsm_jax.nn.layers import Asked, Stack
from lsm_jax.nn.neighbours import Cells
from lsm_jax.nn.positions import Positions
from lsm_jax.nn.sizes import LanguageSize, ModelSize
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.rows import Rows

DECODERS = ("all", "observed", "cross")
PATCH_INPUTS = ("values", "values_and_mask")


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """What shapes a masked autoencoder beside its size.

    Attributes:
      decoder: `all` decodes every position (the paper), `observed` only recorded ones, `cross` lets
        queries for the targets attend to the encoder's tokens.
      patch_input: `values` (the paper) or `values_and_mask`, which tells observed zeros from missing.
      asinh_inputs: show values to the encoder through asinh, which tames bursts (not in the paper).
      num_neighbors: visible patches of its own channel a decoded token is shown on either side; 0 leaves
        the context path out and gives the paper's bare mask token.
      context_width: hidden width of the context path.
      positions: a name in `positions.POSITIONS`.
      attention, remat, dtype: implementation names and the compute type.
    """

    size: ModelSize | LanguageSize
    decoder: str = "cross"
    patch_input: str = "values_and_mask"
    asinh_inputs: bool = True
    num_neighbors: int = 3
    context_width: int = 256
    positions: str = "learned"
    attention: str = "auto"
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for key, value, known in (
            ("decoder", self.decoder, DECODERS),
            ("patch_input", self.patch_input, PATCH_INPUTS),
        ):
            if value not in known:
                raise UserError(f"model.{key}={value!r} is unknown.{nearest(value, known)} Known: {', '.join(known)}.")

    @property
    def implementations(self) -> dict[str, str]:
        """What computes what, printed at start."""
        return {"attention": self.attention, "decoder": self.decoder, "positions": self.positions, "dtype": self.dtype}


class PatchEmbedding(nnx.Module):
    """One linear projection shared by all channels (LSM-2; SPEC section 3)."""

    def __init__(self, grid: TokenGrid, settings: ModelSettings, width: int, *, rngs: nnx.Rngs) -> None:
        self.grid, self.settings = grid, settings
        inputs = grid.cells_per_token * (2 if settings.patch_input == "values_and_mask" else 1)
        self.projection = nnx.Linear(inputs, width, dtype=settings.dtype, rngs=rngs)

    def __call__(self, cells: Cells, rows: Rows) -> Float[Array, "r s width"]:
        values, observed = rows.take(cells.values), rows.take(cells.observed)
        if self.settings.asinh_inputs:
            values = jnp.arcsinh(values)
        if self.settings.patch_input == "values_and_mask":
            values = jnp.concatenate([values, observed.astype(values.dtype)], axis=-1)
        return self.projection(values)


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
        if settings.num_neighbors:
            if grid.patch_channels > 1:
                raise UserError(
                    f"model.num_neighbors={settings.num_neighbors} needs tokens of one channel, but "
                    f"tokens.patch_channels={grid.patch_channels}: set model.num_neighbors=0."
                )
            narrow = settings.context_width
            self.context = Context(grid, settings.num_neighbors, narrow, dtype=settings.dtype, rngs=rngs)
            self.context_query = nnx.Linear(narrow, size.width, dtype=settings.dtype, rngs=rngs)
            self.prediction = Prediction(grid, size.width, narrow, dtype=settings.dtype, rngs=rngs)
        else:
            # Zeros, so that training starts from the mean rather than from noise around it.
            self.head = nnx.Linear(
                size.width, grid.cells_per_token, dtype="float32", kernel_init=nnx.initializers.zeros, rngs=rngs
            )

    def __call__(
        self,
        encoded: Float[Array, "r s d"],
        cells: Cells,
        shown: Bool[Array, "b n"],
        visible: Rows,
        stage: Rows | None,
        targets: Rows,
    ) -> Float[Array, "r q k"]:
        """Predictions at `targets`; a self-attending decoder works on all of `stage`, which holds them."""
        queries = self.mask_token[...].astype(encoded.dtype) + self.positions(targets.token_index % self.grid.size)
        if not hasattr(self, "context"):
            return self.head(self._attend(queries, encoded, visible, stage, targets))
        group = jax.nn.one_hot(targets.token_index % self.grid.groups, self.grid.groups, dtype=encoded.dtype)
        hidden, anchors = self.context(cells, shown, targets, group)
        tokens = self._attend(queries + self.context_query(hidden), encoded, visible, stage, targets)
        return self.prediction(tokens, hidden, anchors, cells, shown, targets, group)

    def _attend(
        self,
        queries: Float[Array, "r q d"],
        encoded: Float[Array, "r s e"],
        visible: Rows,
        stage: Rows | None,
        targets: Rows,
    ) -> Float[Array, "r q d"]:
        """Queries look at the encoder's tokens, or stand among them on the stage."""
        if stage is None:
            return self.stack(queries, targets.segment, (encoded, visible.segment))
        positions = self.positions(stage.token_index % self.grid.size)
        asked = _moved(queries, targets, stage)
        known = _moved(self.bridge(encoded), visible, stage)
        bare = self.mask_token[...].astype(encoded.dtype) + positions
        held = (visible.slots_of(stage) < visible.segment.shape[1])[:, :, None]
        wanted = (targets.slots_of(stage) < targets.segment.shape[1])[:, :, None]
        tokens = jnp.where(held, known + positions, jnp.where(wanted, asked, bare))
        return self.stack(tokens, stage.segment, asked=Asked(stage.slots_of(targets), targets.segment))


def _moved(tokens: Float[Array, "r s d"], source: Rows, to: Rows) -> Float[Array, "r q d"]:
    """Tokens of `source` rows at their places in the rows `to`; zeros where `source` does not hold one."""
    padded = jnp.pad(tokens, ((0, 0), (0, 1), (0, 0)))
    return jnp.take_along_axis(padded, source.slots_of(to)[:, :, None], axis=1)


class MaskedAutoencoder(nnx.Module):
    """Encoder and decoder of LSM-1 and LSM-2."""

    def __init__(self, grid: TokenGrid, settings: ModelSettings, *, rngs: nnx.Rngs) -> None:
        self.encoder = Encoder(grid, settings, rngs=rngs)
        self.decoder = Decoder(grid, settings, rngs=rngs)

    def __call__(
        self, cells: Cells, shown: Bool[Array, "b n"], visible: Rows, stage: Rows | None, targets: Rows
    ) -> Float[Array, "r q k"]:
        """Predicted cells of `targets`, from the `shown` tokens, which `visible` holds, alone."""
        return self.decoder(self.encoder(cells, visible), cells, shown, visible, stage, targets)
