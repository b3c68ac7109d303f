"""The masked autoencoder of LSM-1 and LSM-2 on rows of visible tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from lsm_jax.config import ModelConfig
from lsm_jax.errors import UserError
from lsm_jax.nn.context import Context, PatchCodes, Prediction
from lsm_jax.nn.fills import fills
from lsm_jax.nn.layers import Centering, OutputTokens, Stack
from lsm_jax.nn.positions import Positions
from lsm_jax.nn.sizes import ModelSize, StackSize
from lsm_jax.tokens.grid import TokenCells, TokenGrid
from lsm_jax.tokens.masking import MaskedBatch
from lsm_jax.tokens.rows import Rows


class PatchEmbedding(nnx.Module):
    """One linear projection shared by all channels (LSM-2, arXiv 2506.05321)."""

    def __init__(self, grid: TokenGrid, width: int, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        inputs = grid.cells_per_token * (2 if config.patch_input == "values_and_mask" else 1)
        self.projection = nnx.Linear(inputs, width, dtype=config.dtype, rngs=rngs)

    def __call__(self, cells: TokenCells) -> Float[Array, "b s width"]:
        values, observed = cells
        if self.config.asinh_inputs:
            values = jnp.arcsinh(values)
        if self.config.patch_input == "values_and_mask":
            values = jnp.concatenate([values, observed.astype(values.dtype)], axis=-1)
        return self.projection(values)


class Encoder(nnx.Module):
    """Encodes the visible tokens of each window, which attend to each other only.

    Args:
      config: with a resolved `dtype`; the same holds for all modules here.
    """

    def __init__(self, grid: TokenGrid, size: StackSize, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.grid = grid
        self.patches = PatchEmbedding(grid, size.width, config, rngs=rngs)
        self.positions = Positions(config.positions, grid, size.width, dtype=config.dtype, rngs=rngs)
        self.stack = Stack(size, implementation=config.attention, remat=config.remat, dtype=config.dtype, rngs=rngs)
        self.centering = Centering(size.width, rngs=rngs)

    def __call__(self, cells: TokenCells, rows: Rows) -> Float[Array, "r s d"]:
        return self.centering(self.stack(self._embedded(cells, rows), rows.segment))

    def with_attention_entropy(self, cells: TokenCells, rows: Rows) -> tuple[Float[Array, "r s d"], Float[Array, ""]]:
        """As a call, with the entropy of attention (`Stack.with_attention_entropy`)."""
        tokens, entropy = self.stack.with_attention_entropy(self._embedded(cells, rows), rows.segment)
        return self.centering(tokens), entropy

    def on_grid(self, cells: TokenCells, observed: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        """As a call with every token in a slot of its own (`rows.dense`), without gathers: a plain program to export.

        Args:
          cells: of windows of any number of patches up to the grid's.
        """
        tokens = self.patches(cells) + self.positions.on_grid(observed.shape[1] // self.grid.groups)
        return self.centering(self.stack(tokens, observed.astype(jnp.int32)))

    def _embedded(self, cells: TokenCells, rows: Rows) -> Float[Array, "r s d"]:
        taken = TokenCells(rows.take(cells.values), rows.take(cells.observed))
        return self.patches(taken) + self.positions(rows.token_index % self.grid.size)


class Decoder(nnx.Module):
    """Predicts the cells of target tokens from the encoder's output."""

    def __init__(self, grid: TokenGrid, size: ModelSize, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.grid = grid
        dtype, memory_width, width = config.dtype, size.encoder.width, size.decoder.width
        self.mask_token = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,)))
        self.positions = Positions(config.positions, grid, width, dtype=dtype, rngs=rngs)
        self.stack = Stack(
            size.decoder,
            memory_width=memory_width if config.decoder == "cross" else None,
            implementation=config.attention,
            remat=config.remat,
            dtype=dtype,
            rngs=rngs,
        )
        if config.decoder != "cross":
            self.decoder_embed = nnx.Linear(memory_width, width, dtype=dtype, rngs=rngs)
        if config.num_neighbors:
            if grid.patch_channels > 1:
                raise UserError(
                    f"model.num_neighbors={config.num_neighbors} needs tokens of one channel, but "
                    f"tokens.patch_channels={grid.patch_channels}: set model.num_neighbors=0."
                )
            self.patch_codes = PatchCodes(grid, memory_width, dtype=dtype, rngs=rngs)
            self.context = Context(
                grid, config.num_neighbors, memory_width, config.context_width, dtype=dtype, rngs=rngs
            )
            self.context_query = nnx.Linear(config.context_width, width, dtype=dtype, rngs=rngs)
            self.prediction = Prediction(grid, width, config.context_width, dtype=dtype, rngs=rngs)
        else:
            # Zeros, so that training starts from the mean instead of noise around it.
            zeros = nnx.initializers.zeros
            self.head = nnx.Linear(width, grid.cells_per_token, dtype="float32", kernel_init=zeros, rngs=rngs)

    def __call__(self, encoded: Float[Array, "r s d"], cells: TokenCells, batch: MaskedBatch) -> Float[Array, "r q k"]:
        """Predicted cells of `batch.target_rows`."""
        targets = batch.target_rows
        queries = self.mask_token[...].astype(encoded.dtype) + self.positions(targets.token_index % self.grid.size)
        if not hasattr(self, "context"):
            return self.head(self._attend(queries, encoded, batch))
        group = jax.nn.one_hot(targets.token_index % self.grid.groups, self.grid.groups, dtype=encoded.dtype)
        codes = self.patch_codes(encoded, batch.encoder_rows, targets)
        hidden = self.context(encoded, codes, batch.encoder_rows, targets, group)
        tokens = self._attend(queries + self.context_query(hidden), encoded, batch)
        simple = fills(cells, batch.visible, targets, self.grid)
        return self.prediction(tokens, hidden, codes, simple, targets, group)

    def _attend(
        self, queries: Float[Array, "r q d"], encoded: Float[Array, "r s e"], batch: MaskedBatch
    ) -> Float[Array, "r q d"]:
        """Cross-attends to the encoder's output, or self-attends over `decoder_rows`, which include the targets."""
        visible, rows, targets = batch.encoder_rows, batch.decoder_rows, batch.target_rows
        if rows is None:
            return self.stack(queries, targets.segment, (encoded, visible.segment))
        positions = self.positions(rows.token_index % self.grid.size)
        is_visible = (visible.slots_of(rows) < visible.length)[:, :, None]
        is_target = (targets.slots_of(rows) < targets.length)[:, :, None]
        # Every position holds an encoded token, a target's query or a bare mask token.
        masked = jnp.where(
            is_target,
            _reindex(queries, targets, rows),
            self.mask_token[...].astype(encoded.dtype) + positions,
        )
        tokens = jnp.where(is_visible, _reindex(self.decoder_embed(encoded), visible, rows) + positions, masked)
        return self.stack(tokens, rows.segment, outputs=OutputTokens(rows.slots_of(targets), targets.segment))


def _reindex(tokens: Float[Array, "r s d"], source: Rows, to: Rows) -> Float[Array, "r q d"]:
    """Moves tokens of the rows `source` to their slots in the rows `to`; zeros where `source` lacks one."""
    padded = jnp.pad(tokens, ((0, 0), (0, 1), (0, 0)))
    return jnp.take_along_axis(padded, source.slots_of(to)[:, :, None], axis=1)


class MaskedAutoencoder(nnx.Module):
    """Encoder and decoder of LSM-1 and LSM-2."""

    def __init__(self, grid: TokenGrid, size: ModelSize, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.encoder = Encoder(grid, size.encoder, config, rngs=rngs)
        self.decoder = Decoder(grid, size, config, rngs=rngs)

    def __call__(self, cells: TokenCells, batch: MaskedBatch) -> Float[Array, "r q k"]:
        """Predicted cells of `batch.target_rows`, from the visible tokens only."""
        return self.decoder(self.encoder(cells, batch.encoder_rows), cells, batch)
