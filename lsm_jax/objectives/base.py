"""What the training loop and the evaluations need of an objective."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.config import Config, ModelConfig, RowsConfig
from lsm_jax.errors import UserError
from lsm_jax.nn.flops import AttentionShape
from lsm_jax.objectives.inference import by_window, on_packed_rows, tokens_by_window
from lsm_jax.objectives.pooling import TokenEmbeddings, check_pooling, pool
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.masking import window_keys
from lsm_jax.tokens.row_lengths import bucket_length
from lsm_jax.tokens.rows import Rows, pack

Params = Mapping[str, Any]
Batch = Mapping[str, Array]
AnyBatch = Mapping[str, Any]  # of JAX or NumPy arrays
Metrics = dict[str, Float[Array, ""]]


class EncoderAblation(NamedTuple):
    """Predictions of a masked objective that differ in the encoder's output only.

    What the encoder contributes is how much better `model` is than the others.

    Attributes:
      model: with the window's own.
      swapped: with another window's.
      removed: with none.
    """

    model: Float[np.ndarray, "b t c"]
    swapped: Float[np.ndarray, "b t c"]
    removed: Float[np.ndarray, "b t c"]


class Objective:
    """Base class of objectives.

    Attributes:
      implementations: implementation chosen for each part, printed at start.
      compares_windows: whether the loss depends on the windows of a batch jointly, so that gradients of micro-batches
        cannot be accumulated.
      frozen: top-level names of parameters that are not trained.
    """

    implementations: Mapping[str, str] = MappingProxyType({})
    compares_windows: bool = False
    frozen: tuple[str, ...] = ()

    def init(self, rng: PRNGKeyArray) -> Params:
        """Initial parameters, a nested dict of float32 arrays. Pure, so that it can be traced."""
        raise NotImplementedError

    def loss(self, params: Params, batch: Batch, rng: PRNGKeyArray) -> tuple[Float[Array, ""], Metrics]:
        """Loss over the global batch, and metrics (see docs/explanation/architecture.md)."""
        raise NotImplementedError

    def representation(self, params: Params, batch: Batch) -> Metrics:
        """Health of the representations of a validation batch (`nn.representation`); empty where there is none."""
        del params, batch
        return {}

    def embed(self, params: Params, batch: AnyBatch, pooling: str = "") -> Float[np.ndarray, "b d"]:
        """One vector per window.

        Args:
          pooling: how tokens become a vector; empty: the objective's own default.
        """
        raise NotImplementedError

    def attention_shapes(self, batch: Batch, rng: PRNGKeyArray) -> list[AttentionShape]:
        """The transformer stacks of `loss` with this `rng`, for FLOP accounting and `lsm plan`."""
        del batch, rng
        return []


class MaskedObjective(Objective):
    """An objective that reconstructs and embeds windows, as evaluation, embedding and export need it.

    Attributes:
      tokens: the token grid.
      reconstructs: False for an objective that only embeds.
    """

    tokens: TokenGrid
    reconstructs: bool = True

    def reconstruct(self, params: Params, batch: AnyBatch, hidden: Bool[Any, "b n"]) -> Float[np.ndarray, "b t c"]:
        """Predictions (z-scored) at every cell of `hidden` tokens, the input elsewhere."""
        raise NotImplementedError

    def ablate_encoder(
        self, params: Params, batch: AnyBatch, hidden: Bool[Any, "b n"], other: Int[np.ndarray, " b"]
    ) -> EncoderAblation:
        """`reconstruct` with the encoder's output as it is, of another window, and removed.

        Args:
          other: for each window, the window of the batch whose encoder output replaces its own; -1 is none.
        """
        raise NotImplementedError

    def embed_tokens(self, params: Params, batch: AnyBatch) -> TokenEmbeddings:
        """The encoder's output for every observed token of each window."""
        raise NotImplementedError


class NetworkObjective(Objective):
    """An objective with a network over the tokens of windows.

    Attributes:
      tokens: the token grid.
      rows: the section `rows` with a resolved `encoder_length`.
    """

    tokens: TokenGrid
    rows: RowsConfig

    def network(self, rng: PRNGKeyArray) -> nnx.Module:
        """The network with initial parameters."""
        raise NotImplementedError

    def init(self, rng: PRNGKeyArray) -> Params:
        """Initial parameters, float32."""
        return nnx.to_pure_dict(nnx.state(self.network(rng), nnx.Param))

    def trace_network(self) -> Params:
        """Prepares `restored`; returns the shapes of the parameters."""
        network = nnx.eval_shape(functools.partial(self.network, jax.random.key(0)))
        self._graph = nnx.graphdef(network)
        return nnx.to_pure_dict(nnx.state(network, nnx.Param))

    def restored(self, params: Params) -> Any:
        """The network with these parameters."""
        return nnx.merge(self._graph, nnx.State(params))

    def training_rows(self, batch: Batch, observed: Bool[Array, "b n"], rng: PRNGKeyArray) -> Rows:
        """Observed tokens of a batch in rows of training, those of a full row at random."""
        keys = window_keys(rng, batch["window_id"])[:: self.rows.windows_per_row]
        return pack(keys, observed, self.rows.windows_per_row, self.rows.encoder_length)

    def without_frozen_gradients(self, params: Params) -> Params:
        """The parameters, of which `frozen` ones have no gradient: it is not computed."""
        return {name: jax.lax.stop_gradient(part) if name in self.frozen else part for name, part in params.items()}

    def encode_rows(self, params: Params, batch: Batch, rows: Rows) -> Float[Array, "r s d"]:
        """The encoder's output for the tokens of rows over the windows of a batch. Pure: it can be traced."""
        return self.restored(params).encoder(self.tokens.tokenize(batch), rows).astype(jnp.float32)

    def encode_tokens(self, length: int, params: Params, batch: Batch) -> TokenEmbeddings:
        """The encoder's output for the observed tokens, at most `length` of each window, one window to a row.

        Pure: it can be traced. `embed_tokens` packs several windows to a row.
        """
        observed = self.tokens.tokens_observed(self.tokens.cells(jnp.asarray(batch["observed"])))
        rows = pack(window_keys(jax.random.key(0), batch["window_id"]), observed, 1, length)
        return TokenEmbeddings(self.encode_rows(params, batch, rows), rows.token_index, rows.segment > 0)

    def embed(self, params: Params, batch: AnyBatch, pooling: str = "") -> Float[np.ndarray, "b d"]:
        """`embed_tokens` pooled (`pooling.POOLINGS`, default mean); zeros where there is no token."""
        check_pooling(pooling or "mean")
        selected = self.read_tokens(batch)
        calls = on_packed_rows(self._pool_rows, (pooling or "mean",), params, sensor_part(batch), [selected])
        return by_window(calls, len(selected))

    def embed_tokens(self, params: Params, batch: AnyBatch) -> TokenEmbeddings:
        """The encoder's output for every observed token. Rows follow the batch, so this cannot be traced."""
        selected = self.read_tokens(batch)
        return tokens_by_window(on_packed_rows(self.encode_rows, (), params, sensor_part(batch), [selected]), selected)

    def read_tokens(self, batch: AnyBatch) -> Bool[np.ndarray, "b n"]:
        """The tokens that the encoder reads to embed each window, on the host."""
        return self.tokens.tokens_observed(self.tokens.cells(np.asarray(batch["observed"])))

    def embed_length(self, batch: AnyBatch) -> int:
        """A length for `encode_tokens` that holds every observed token of each window. Cannot be traced."""
        return self.length_for(self.observed(batch))

    def observed(self, batch: AnyBatch) -> Bool[Array, "b n"]:
        """The observed tokens of a batch."""
        return self.tokens.tokens_observed(self.tokens.cells(jnp.asarray(batch["observed"])))

    def length_for(self, selected: Bool[Array, "b n"]) -> int:
        """A row length that holds the selected tokens of each window. Each length is compiled, so there are few."""
        return min(bucket_length(int(selected.sum(axis=1).max())), self.tokens.size)

    def _pool_rows(self, pooling: str, params: Params, batch: Batch, rows: Rows) -> Float[Array, "w f"]:
        encoded = TokenEmbeddings(self.encode_rows(params, batch, rows), rows.token_index, rows.segment > 0)
        return pool(encoded, self.tokens, pooling, windows=rows.row_tokens // self.tokens.size)


def sensor_part(batch: AnyBatch) -> dict[str, np.ndarray]:
    """The entries of a batch that the encoder needs, on the host."""
    return {name: np.asarray(batch[name]) for name in ("values", "observed", "window_id")}


def check_packed(config: Config) -> None:
    """UserError unless rows are packed, for an objective that has no other layout."""
    if config.rows.layout != "packed":
        name = config.objective.name
        raise UserError(f"rows.layout={config.rows.layout!r}: {name} has packed rows only; set rows.layout=packed.")


def with_compute_dtype(model: ModelConfig) -> ModelConfig:
    """The section with a `dtype` of "auto" resolved: float32 on CPUs, bfloat16 on accelerators."""
    if model.dtype != "auto":
        return model
    return dataclasses.replace(model, dtype="float32" if jax.default_backend() == "cpu" else "bfloat16")


def implementations(model: ModelConfig, attention: str, decoder: str) -> dict[str, str]:
    """`Objective.implementations` of a network."""
    return {"attention": attention, "decoder": decoder, "positions": model.positions, "dtype": model.dtype}
