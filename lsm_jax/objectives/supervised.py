"""Supervised training: an encoder, pre-trained or not, learns to predict a label or the names of events.

The head is attention pooling over the tokens of a window or event and one linear layer, as in the probe suite.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.nn.attention import resolve_implementation
from lsm_jax.nn.flops import AttentionShape, useful_flops
from lsm_jax.nn.sizes import model_size
from lsm_jax.nn.supervised import SupervisedEncoder
from lsm_jax.objectives.base import (
    AnyBatch,
    Batch,
    Metrics,
    NetworkObjective,
    Params,
    implementations,
    sensor_part,
    with_compute_dtype,
)
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.masking import check_rows, window_keys
from lsm_jax.tokens.row_lengths import row_length
from lsm_jax.tokens.rows import Rows, pack


class Supervised(NetworkObjective):
    """Cross entropy of classes, or squared error of a standardised number, averaged over examples.

    A batch has `spans` int32[b, k, 2] and `targets` float32[b, k] (`data.targets`).

    Attributes:
      task, classes: what is predicted.
    """

    def __init__(self, config: Config, spec: DataSpec) -> None:
        self.supervised = config.supervised
        self.task, self.classes = config.supervised.task, tuple(config.supervised.classes)
        if not self.task or not (self.classes or self.supervised.sd > 0):
            raise UserError(
                "supervised.task needs supervised.classes, or supervised.mean and supervised.sd of a number; "
                "with data.paths they come from the data cards."
            )
        self.tokens, self.size = TokenGrid.from_config(config, spec), model_size(config.model.size).encoder
        length = config.rows.encoder_length or row_length(config, self.tokens, spec)
        self.rows = dataclasses.replace(config.rows, encoder_length=length)
        self.model = with_compute_dtype(config.model)
        self.frozen = ("encoder",) if self.model.freeze_encoder else ()
        length = min(length, self.rows.windows_per_row * self.tokens.size)
        attention = resolve_implementation(self.model.attention, length, length)
        self.implementations = implementations(self.model, attention, "none")
        self._shapes = self.trace_network()

    def network(self, rng: PRNGKeyArray) -> SupervisedEncoder:
        """The network with initial parameters."""
        return SupervisedEncoder(self.tokens, self.size, len(self.classes) or 1, self.model, rngs=nnx.Rngs(rng))

    def loss(self, params: Params, batch: Batch, rng: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        """Mean loss of the examples of the batch; zero, and finite, if it has none."""
        windows = len(batch["observed"])
        check_rows(windows, self.rows)
        params = self.without_frozen_gradients(params)
        observed = self.observed(batch)
        rows = self.training_rows(batch, observed, rng)
        inside = self.inside(rows, batch["spans"])
        outputs = self.restored(params).head(self.encode_rows(params, batch, rows), inside)
        targets = batch["targets"].reshape(outputs.shape[:2])
        known = ~jnp.isnan(targets) & inside.any(axis=-1)
        examples = known.sum().astype(jnp.float32)
        # NaN in what is masked later would make every gradient NaN.
        targets = jnp.where(known, targets, self.supervised.mean)
        mean = lambda values: jnp.where(known, values, 0).sum() / jnp.maximum(examples, 1)  # noqa: E731
        if self.classes:
            number = targets.astype(jnp.int32)
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, number)
            more = {"accuracy": mean(outputs.argmax(axis=-1) == number)}
        else:
            errors = outputs[:, :, 0] - (targets - self.supervised.mean) / self.supervised.sd
            losses, more = jnp.square(errors), {"mean_absolute_error": mean(jnp.abs(errors)) * self.supervised.sd}
        total = lambda tokens: tokens.sum().astype(jnp.float32)  # noqa: E731
        return mean(losses), more | {
            "tokens_observed": total(observed),
            "tokens_left_out": total(rows.left_out),
            "row_fill": total(rows.segment > 0) / rows.segment.size,
            "useful_flops": useful_flops(self._shapes_of(rows), {"encoder": self._shapes["encoder"]}, self.tokens),
            "loss_weight": examples,
        }

    def predict(self, params: Params, batch: AnyBatch) -> Float[Array, "b k o"]:
        """Probabilities of the classes, or the number, of each of `batch["spans"]`, from all observed tokens."""
        return self._predict(self.embed_length(batch), params, sensor_part(batch), jnp.asarray(batch["spans"]))

    def attention_shapes(self, batch: Batch, rng: PRNGKeyArray) -> list[AttentionShape]:
        """The encoder."""
        return self._shapes_of(self.training_rows(batch, self.observed(batch), rng))

    def inside(self, rows: Rows, spans: Int[Array, "b k 2"]) -> Bool[Array, "r q s"]:
        """Which tokens of its row belong to each span of a row's windows: those whose patch has a minute in it."""
        grid, windows = self.tokens, rows.row_tokens // self.tokens.size
        minute = (rows.token_index % grid.size // grid.groups * grid.patch_minutes)[:, None]
        by_row = spans.reshape(len(rows.segment), -1, 2)
        own = jnp.repeat(jnp.arange(1, windows + 1), spans.shape[1])[None, :, None] == rows.segment[:, None]
        return own & (minute < by_row[:, :, 1:]) & (minute + grid.patch_minutes > by_row[:, :, :1])

    def _shapes_of(self, rows: Rows) -> list[AttentionShape]:
        passes = 1 if self.frozen else 3
        return [AttentionShape(rows.segment, rows.segment, self.size, self.rows.windows_per_row, passes=passes)]

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def _predict(self, length: int, params: Params, batch: Batch, spans: Int[Array, "b k 2"]) -> Float[Array, "b k o"]:
        cells = self.tokens.tokenize(batch)
        observed = self.tokens.tokens_observed(cells.observed)
        rows = pack(window_keys(jax.random.key(0), batch["window_id"]), observed, 1, length)
        network = self.restored(params)
        outputs = network.head(network.encoder(cells, rows), self.inside(rows, spans))
        if self.classes:
            return jax.nn.softmax(outputs)
        return outputs * self.supervised.sd + self.supervised.mean
