"""The masked autoencoder of LSM-1 and LSM-2 on rows of visible tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lsm_jax.config import ModelConfig
from lsm_jax.errors import UserError
from lsm_jax.nn.context import Context, PatchCodes, Prediction
from lsm_jax.nn.fills import fills
from lsm_jax.nn.layers import Centering, OutputTokens, Rotations, Stack
from lsm_jax.nn.neighbours import patch_of
from lsm_jax.nn.positions import Positions, rotation
from lsm_jax.nn.projection import Projection, window_moments
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
        self.rotary = config.rotary

    def __call__(self, cells: TokenCells, rows: Rows) -> Float[Array, "r s d"]:
        rotations = self._rotations(patch_of(rows, self.grid))
        return self.centering(self.stack(self._embedded(cells, rows), rows.segment, rotations=rotations))

    def with_attention_entropy(self, cells: TokenCells, rows: Rows) -> tuple[Float[Array, "r s d"], Float[Array, ""]]:
        """As a call, with the entropy of attention (`Stack.with_attention_entropy`)."""
        rotations = self._rotations(patch_of(rows, self.grid))
        tokens, entropy = self.stack.with_attention_entropy(self._embedded(cells, rows), rows.segment, rotations)
        return self.centering(tokens), entropy

    def on_grid(self, cells: TokenCells, observed: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        """As a call with every token in a slot of its own (`rows.dense`), without gathers: a plain program to export.

        Args:
          cells: of windows of any number of patches up to the grid's.
        """
        patches = observed.shape[1] // self.grid.groups
        tokens = self.patches(cells) + self.positions.on_grid(patches)
        patch = jnp.repeat(jnp.arange(patches), self.grid.groups)[None]
        return self.centering(self.stack(tokens, observed.astype(jnp.int32), rotations=self._rotations(patch)))

    def _rotations(self, patch: Int[Array, "r s"]) -> Rotations | None:
        """Of the tokens of these patches, as queries and as keys."""
        if not self.rotary:
            return None
        own = rotation(patch, self.stack.head_size)
        return own, own

    def _embedded(self, cells: TokenCells, rows: Rows) -> Float[Array, "r s d"]:
        taken = TokenCells(rows.take(cells.values), rows.take(cells.observed))
        return self.patches(taken) + self.positions(rows.token_index % self.grid.size)


class Decoder(nnx.Module):
    """Predicts the cells of target tokens from the encoder's output."""

    def __init__(self, grid: TokenGrid, size: ModelSize, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.grid = grid
        self.rotary = config.rotary
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
            memory = encoded, visible.segment
            return self.stack(queries, targets.segment, memory, rotations=self._rotations(targets, visible))
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
        outputs = OutputTokens(rows.slots_of(targets), targets.segment)
        return self.stack(tokens, rows.segment, outputs=outputs, rotations=self._rotations(rows, rows))

    def _rotations(self, queries: Rows, keys: Rows) -> Rotations | None:
        if not self.rotary:
            return None
        of_queries, of_keys = (rotation(patch_of(rows, self.grid), self.stack.head_size) for rows in (queries, keys))
        return of_queries, of_keys


def _reindex(tokens: Float[Array, "r s d"], source: Rows, to: Rows) -> Float[Array, "r q d"]:
    """Moves tokens of the rows `source` to their slots in the rows `to`; zeros where `source` lacks one."""
    padded = jnp.pad(tokens, ((0, 0), (0, 1), (0, 0)))
    return jnp.take_along_axis(padded, source.slots_of(to)[:, :, None], axis=1)


class MaskedAutoencoder(nnx.Module):
    """Encoder and decoder of LSM-1 and LSM-2.

    Args:
      compares_people: adds a projection head, for `person_vectors`.
    """

    def __init__(
        self,
        grid: TokenGrid,
        size: ModelSize,
        config: ModelConfig,
        compares_people: bool = False,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.encoder = Encoder(grid, size.encoder, config, rngs=rngs)
        self.decoder = Decoder(grid, size, config, rngs=rngs)
        if compares_people:
            self.person_head = Projection(2 * size.encoder.width, dtype=config.dtype, rngs=rngs)

    def __call__(self, cells: TokenCells, batch: MaskedBatch) -> tuple[Float[Array, "r q k"], Float[Array, "r s d"]]:
        """Predicted cells of `batch.target_rows`, from the visible tokens only; and these tokens, encoded."""
        encoded = self.encoder(cells, batch.encoder_rows)
        return self.decoder(encoded, cells, batch), encoded

    def person_vectors(self, encoded: Float[Array, "r s d"], rows: Rows, windows: int) -> Float[Array, "b e"]:
        """L2-normalised vectors of windows, alike for one person, from mean and spread of their tokens; float32."""
        return self.person_head.project(jnp.concatenate(window_moments(encoded, rows, windows), axis=1))
