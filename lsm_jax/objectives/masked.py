"""Masked reconstruction: the objective of LSM-1 and LSM-2 (AIM; SPEC sections 2 and 3).

A window's inherited mask (really missing) and its artificial mask (hidden for training) are treated
alike: neither is seen. The loss is taken per observed cell of artificially hidden tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.config import Config
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError, nearest
from lsm_jax.nn.attention import resolve_implementation
from lsm_jax.nn.context_cost import context_flops
from lsm_jax.nn.masked_autoencoder import MaskedAutoencoder, ModelSettings
from lsm_jax.nn.neighbours import Cells
from lsm_jax.nn.sizes import StackSize, size
from lsm_jax.objectives.shared import (
    AttentionShape,
    bucket_length,
    compute_dtype,
    expected_tokens,
    matrix_flops,
    observed_cells,
    rounded,
    row_length,
    segment_counts,
    stack_flops,
    window_keys,
)
from lsm_jax.tokens import rows as rows_of
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.policies import Mixture, artificial_mask, policy_draws
from lsm_jax.tokens.rows import Rows

LAYOUTS = ("packed", "fixed_drop", "dense")
_LEAST_ODDS = 0.3  # of a target that holds its channel's mean, where one standard deviation away is 1.3
_NO_WINDOW = 2**31  # windows are numbered below it


@dataclasses.dataclass(frozen=True)
class RowSettings:
    """How tokens are laid out in rows.

    Attributes:
      layout: `packed`, or the paper's forms `fixed_drop` and `dense` (one window to a row).
      windows_per_row: windows packed side by side.
      encoder_length, decoder_length: slots of a row for visible and for decoded tokens.
      decoded_share: of the hidden tokens, those that are decoded, drawn by what they hold and weighed to stand for all.
      dropped: D of `fixed_drop`, in tokens.
      eval_max_tokens: the most visible tokens of a window the encoder reads to reconstruct it after training; 0: all.
    """

    layout: str
    windows_per_row: int
    encoder_length: int
    decoder_length: int
    dropped: int
    decoded_share: float = 1.0
    eval_max_tokens: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise UserError(f"rows.layout={self.layout!r} is unknown.{nearest(self.layout, LAYOUTS)}")
        if self.layout != "packed" and self.windows_per_row != 1:
            raise UserError(f"rows.layout={self.layout!r} holds one window to a row: set rows.windows_per_row=1.")
        if not 0 < self.decoded_share <= 1:
            raise UserError(f"rows.decoded_share={self.decoded_share}: give a share above 0 and at most 1.")

    def visible(self, keys: PRNGKeyArray, shown: Bool[Array, "b n"]) -> Rows:
        """The encoder's rows."""
        if self.layout == "dense":
            return rows_of.dense(shown)
        if self.layout == "fixed_drop":
            return rows_of.fixed_drop(shown, self.dropped)
        return rows_of.packed(keys, shown, self.windows_per_row, self.encoder_length)


class _Layout(NamedTuple):
    """What a step sees of a batch, and what it is asked for.

    Attributes:
      shown: the tokens that are neither missing nor hidden.
      visible, stage, asked: rows of the encoder, of a self-attending decoder and of the targets.
      chance: of each hidden token to be a target; 0 for all others.
    """

    shown: Bool[Array, "b n"]
    visible: Rows
    stage: Rows | None
    asked: Rows
    chance: Float[Array, "b n"]


class MaskedReconstruction:
    """See `objectives.base.Objective`; adds `reconstruct` and `embed` for what comes after training.

    Attributes:
      tokens: the token grid.
    """

    def __init__(self, tokens: TokenGrid, mixture: Mixture, rows: RowSettings, settings: ModelSettings) -> None:
        self.tokens, self.mixture, self.rows, self.settings = tokens, mixture, rows, settings
        self.implementations = settings.implementations | {"attention": self._attention()}
        model = nnx.eval_shape(functools.partial(self._model, jax.random.key(0)))
        self._graph = nnx.graphdef(model)
        self._shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))

    @classmethod
    def from_config(cls, config: Config, spec: DataSpec) -> MaskedReconstruction:
        """Builds the objective from the sections `tokens`, `masking`, `rows`, `model` and `train`."""
        grid = TokenGrid(
            channels=tuple(spec.channels), window_minutes=spec.window_minutes, **dataclasses.asdict(config.tokens)
        )
        mixture = Mixture(config.masking.policies, config.masking.share_of)
        settings = ModelSettings(
            **{
                **dataclasses.asdict(config.model),
                "size": size(config.model.size),
                "dtype": compute_dtype(config.model.dtype),
            }
        )
        return cls(grid, mixture, _row_settings(config, grid, mixture, spec), settings)

    def init(self, rng: PRNGKeyArray) -> Mapping[str, Any]:
        """Initial parameters, float32."""
        return nnx.to_pure_dict(nnx.state(self._model(rng), nnx.Param))

    def loss(
        self, params: Mapping[str, Any], batch: Mapping[str, Array], rng: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Mean squared error (z-scored) over observed cells of artificially hidden tokens.

        Where not all of them are decoded, those that are stand for all, each weighed by one over its chance. Finite
        for any bytes in unobserved cells and for batches with nothing to predict, where the loss and its gradient are
        zero.
        """
        cells, observed = observed_cells(batch, self.tokens)
        laid = self._laid_out(cells, observed, batch, rng)
        asked, chance = laid.asked, laid.chance
        predicted = nnx.merge(self._graph, nnx.State(params))(cells, laid.shown, laid.visible, laid.stage, asked)
        scored = asked.take(cells.observed) & (asked.segment > 0)[:, :, None]
        errors = jnp.square(predicted.astype(jnp.float32) - asked.take(cells.values))
        # A token drawn with a chance of a quarter stands for four.
        total = jnp.where(scored, errors / asked.take(jnp.where(chance > 0, chance, 1))[:, :, None], 0).sum()
        hidden = (cells.observed & (chance > 0)[:, :, None]).sum().astype(jnp.float32)
        metrics = self._metrics(observed, laid.visible, laid.stage, asked)
        # Micro-batches and validation batches are averaged by the cells they speak of.
        return total / jnp.maximum(hidden, 1.0), {**metrics, "loss_weight": hidden}

    def attention_shapes(self, batch: Mapping[str, Array], rng: PRNGKeyArray) -> list[AttentionShape]:
        """What `loss` attends to with this `rng`: of the encoder, then the decoder."""
        laid, sizes = self._laid_out(*observed_cells(batch, self.tokens), batch, rng), self.settings.size
        visible, stage, asked = laid.visible, laid.stage, laid.asked
        encoder = AttentionShape(visible.segment, visible.segment, sizes.encoder)
        if stage is None:
            return [encoder, AttentionShape(asked.segment, visible.segment, sizes.decoder)]
        before, last = _but_for_the_last(sizes.decoder)
        return [
            encoder,
            AttentionShape(stage.segment, stage.segment, before),
            AttentionShape(asked.segment, stage.segment, last),
        ]

    def hidden(self, batch: Mapping[str, Array], rng: PRNGKeyArray) -> Bool[Array, "b n"]:
        """The artificial masks under which `loss` is taken of this batch with this `rng`."""
        keys, observed = _loss_keys(rng, batch)[:, 0], self._tokens_observed(batch["observed"])
        draws = policy_draws(jax.random.fold_in(rng, _NO_WINDOW), batch["window_id"])
        masked = lambda key, draw, seen: artificial_mask(key, draw, seen, self.tokens, self.mixture)  # noqa: E731
        return jax.vmap(masked)(keys, draws, observed)

    @property
    def max_context_tokens(self) -> int:
        """The most visible tokens of a window that the encoder reads to reconstruct it."""
        return self.rows.eval_max_tokens or self.tokens.size

    def reconstruct(
        self, params: Mapping[str, Any], batch: Mapping[str, Array], hidden: Bool[Array, "b n"]
    ) -> Float[Array, "b t c"]:
        """Predictions (z-scored) at every cell of `hidden` tokens, the input elsewhere.

        The model sees the recorded tokens that are not hidden; the encoder reads all of them, or as many as
        `rows.eval_max_tokens` allows, drawn at random but always the same. Row lengths follow the batch, rounded
        up so that few programs are compiled. Not to be traced itself.
        """
        observed = self._tokens_observed(jnp.asarray(batch["observed"]))
        hidden = jnp.asarray(hidden)
        read = min(bucket_length(observed & ~hidden), self.max_context_tokens)
        capacities = read, bucket_length(hidden)
        return self._reconstruct(*capacities, params, batch["values"], batch["observed"], batch["window_id"], hidden)

    def embed(self, params: Mapping[str, Any], batch: Mapping[str, Array]) -> Float[Array, "b d"]:
        """The mean of the encoder's output over every observed token; zeros for a window without any."""
        observed = self._tokens_observed(jnp.asarray(batch["observed"]))
        return self._embed(bucket_length(observed), params, batch["values"], batch["observed"], batch["window_id"])

    def _attention(self) -> str:
        """The implementations chosen for the rows of encoder and decoder."""
        rows, places = self.rows, self.rows.windows_per_row * self.tokens.size
        visible = {"packed": min(rows.encoder_length, places), "fixed_drop": places - rows.dropped}.get(
            rows.layout, places
        )
        targets = min(rows.decoder_length, places)
        stages = {"cross": (targets, visible), "observed": (min(visible + targets, places),) * 2}
        encoder = resolve_implementation(self.settings.attention, visible, visible)
        decoder = resolve_implementation(self.settings.attention, *stages.get(self.settings.decoder, (places, places)))
        return encoder if encoder == decoder else f"{encoder} (encoder), {decoder} (decoder)"

    def _model(self, rng: PRNGKeyArray) -> MaskedAutoencoder:
        return MaskedAutoencoder(self.tokens, self.settings, rngs=nnx.Rngs(rng))

    def _tokens_observed(self, observed: Bool[Array, "b t c"]) -> Bool[Array, "b n"]:
        return self.tokens.tokens_observed(self.tokens.cells(observed))

    def _laid_out(
        self, cells: Cells, observed: Bool[Array, "b n"], batch: Mapping[str, Array], rng: PRNGKeyArray
    ) -> _Layout:
        """What of these windows, of these `cells`, is seen and asked for under the masks of this `rng`."""
        if observed.shape[0] % self.rows.windows_per_row:
            raise UserError(
                f"{observed.shape[0]} windows do not fill rows of rows.windows_per_row={self.rows.windows_per_row}: "
                "make train.batch_size / train.grad_accum_steps a multiple of it."
            )
        hidden, rows = self.hidden(batch, rng), self.rows
        shown = observed & ~hidden
        keys = _loss_keys(rng, batch)[:: rows.windows_per_row]
        visible = rows.visible(keys[:, 1], shown)
        asked, chance = rows_of.drawn(
            keys[:, 2], observed & hidden, _odds(cells), rows.decoded_share, rows.windows_per_row, rows.decoder_length
        )
        return _Layout(shown, visible, self._stage(visible, asked, observed.shape[0]), asked, chance)

    def _stage(self, visible: Rows, asked: Rows, windows: int) -> Rows | None:
        """What a self-attending decoder works on: every position, or the tokens seen and asked for."""
        if self.settings.decoder == "cross":
            return None
        if self.settings.decoder == "all":
            chosen, capacity = jnp.ones((windows, self.tokens.size), bool), visible.places
        else:
            chosen = visible.held(windows) | asked.held(windows)
            capacity = visible.segment.shape[1] + asked.segment.shape[1]
        rows = visible.segment.shape[0]
        # A stage leaves nothing out, so the keys draw nothing.
        return rows_of.packed(jax.random.split(jax.random.key(0), rows), chosen, windows // rows, capacity)

    def _metrics(
        self, observed: Bool[Array, "b n"], visible: Rows, stage: Rows | None, asked: Rows
    ) -> dict[str, Float[Array, ""]]:
        total = lambda tokens: tokens.sum().astype(jnp.float32)  # noqa: E731
        return {
            "tokens_observed": total(observed),
            "tokens_visible": total(visible.segment > 0),
            "tokens_visible_left_out": total(visible.left_out),
            "tokens_targets": total(asked.segment > 0),
            "tokens_targets_left_out": total(asked.left_out),
            "row_fill": total(visible.segment > 0) / visible.segment.size,
            "useful_flops": self._useful_flops(visible, asked, stage),
        }

    def _useful_flops(self, visible: Rows, asked: Rows, stage: Rows | None) -> Float[Array, ""]:
        """Forward and backward FLOPs of the tokens in rows, padding and other segments not counted."""
        count = functools.partial(segment_counts, segments=self.rows.windows_per_row)
        seen, targets, sizes = count(visible), count(asked), self.settings.size
        encoder = stack_flops(sizes.encoder, seen, seen)
        if stage is None:
            decoder = stack_flops(sizes.decoder, targets, seen, memory_width=sizes.encoder.width)
        else:
            staged, (before, last) = count(stage), _but_for_the_last(sizes.decoder)
            decoder = stack_flops(before, staged, staged) + stack_flops(last, targets, staged, memory_width=last.width)
        context = context_flops(self._shapes["decoder"], self.tokens, seen.sum(), targets.sum())
        return 3.0 * (encoder + decoder) + self._ends_flops(seen.sum(), targets.sum()) + context

    def _ends_flops(self, seen: Float[Array, ""], targets: Float[Array, ""]) -> Float[Array, ""]:
        """Forward and backward FLOPs of the layers before, between and after the stacks, of those that there are."""
        patches, decoder = self._shapes["encoder"]["patches"], self._shapes["decoder"]
        total = 2.0 * matrix_flops(patches["projection"]["kernel"], seen)  # data need no gradient
        for name, tokens in (("bridge", seen), ("head", targets)):
            if name in decoder:
                total += 3.0 * matrix_flops(decoder[name]["kernel"], tokens)
        return total

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def _reconstruct(
        self,
        capacity: int,
        asked_capacity: int,
        params: Mapping[str, Any],
        values: Float[Array, "b t c"],
        recorded: Bool[Array, "b t c"],
        window_id: Int[Array, " b"],
        hidden: Bool[Array, "b n"],
    ) -> Float[Array, "b t c"]:
        cells, observed = observed_cells({"values": values, "observed": recorded}, self.tokens)
        keys = window_keys(jax.random.key(0), window_id)
        shown = observed & ~hidden
        visible = rows_of.packed(keys, shown, 1, capacity)
        asked = rows_of.packed(keys, hidden, 1, asked_capacity)
        stage = self._stage(visible, asked, observed.shape[0])
        predicted = nnx.merge(self._graph, nnx.State(params))(cells, shown, visible, stage, asked)
        slots = asked.slots_of(rows_of.dense(hidden))
        spread = jnp.take_along_axis(jnp.pad(predicted, ((0, 0), (0, 1), (0, 0))), slots[:, :, None], axis=1)
        return self.tokens.windows(jnp.where(hidden[:, :, None], spread, cells.values))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _embed(
        self,
        capacity: int,
        params: Mapping[str, Any],
        values: Float[Array, "b t c"],
        recorded: Bool[Array, "b t c"],
        window_id: Int[Array, " b"],
    ) -> Float[Array, "b d"]:
        cells, observed = observed_cells({"values": values, "observed": recorded}, self.tokens)
        visible = rows_of.packed(window_keys(jax.random.key(0), window_id), observed, 1, capacity)
        encoded = nnx.merge(self._graph, nnx.State(params)).encoder(cells, visible).astype(jnp.float32)
        seen = (visible.segment > 0)[:, :, None]
        return jnp.where(seen, encoded, 0).sum(axis=1) / jnp.maximum(seen.sum(axis=1), 1)


def _but_for_the_last(size: StackSize) -> tuple[StackSize, StackSize]:
    """A self-attending decoder: the blocks that work on all of the stage, and the last, asked for targets alone."""
    return dataclasses.replace(size, depth=size.depth - 1), dataclasses.replace(size, depth=1)


def _odds(cells: Cells) -> Float[Array, "b n"]:
    """Of each token to be decoded where not all are: the root mean square of its z-scored values, and some for all.

    The gradient of a squared error grows with the error, and much of it is of few tokens, in bursts: were all drawn
    alike, now many of those would be, now none. Who draws knows what is hidden; the model is not told.
    """
    return jnp.sqrt(jnp.square(cells.values).mean(axis=-1)) + _LEAST_ODDS


def _loss_keys(rng: PRNGKeyArray, batch: Mapping[str, Array]) -> PRNGKeyArray:
    """Three keys per window: its artificial mask, its visible tokens, which of its hidden ones are targets."""
    return jax.vmap(lambda key: jax.random.split(key, 3))(window_keys(rng, batch["window_id"]))


def _row_settings(config: Config, grid: TokenGrid, mixture: Mixture, spec: DataSpec) -> RowSettings:
    """Row lengths: as given, or from the training split's missingness and the mask mixture."""
    rows, tokens = config.rows, expected_tokens(spec, grid)
    windows, balance = rows.windows_per_row, RowBalancer.from_config(config)
    hidden = functools.partial(mixture.hidden_shares, patches=grid.patches)
    length = lambda chosen, kept: (  # noqa: E731
        rounded(chosen, windows * grid.size) if chosen else row_length(tokens, windows, balance, grid, kept)
    )
    return RowSettings(
        layout=rows.layout,
        windows_per_row=windows,
        encoder_length=length(rows.encoder_length, lambda *drawn: 1 - hidden(*drawn)),
        decoder_length=length(rows.decoder_length, lambda *drawn: rows.decoded_share * hidden(*drawn)),
        dropped=int(rows.dropped_share * grid.size),
        decoded_share=rows.decoded_share,
        eval_max_tokens=rows.eval_max_tokens,
    )
