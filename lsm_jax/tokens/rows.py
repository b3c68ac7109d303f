"""Rows: tokens of several windows packed side by side, with static shapes.

A masked or missing token never reaches an observed one (AIM, arXiv 2506.05321), so leaving it out changes nothing.
`pack` keeps selected tokens only. `fixed_drop` (the paper's fixed D) and `dense` are other layouts of the same
computation, kept for tests and benchmarks.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from lsm_jax.tokens.sampling import inclusion_probabilities, pareto_sample
from lsm_jax.tokens.selection import indices_where, order_keys, smallest_k_mask


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["token_index", "segment", "left_out"], meta_fields=["row_tokens"]
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """Tokens of R rows of S slots; each row belongs to W windows of N tokens.

    Attributes:
      token_index: index of the token among the W * N tokens of the row's windows; 0 in padding.
      segment: 1, 2, ... W, the window of the token; 0 is padding. Tokens of a window are contiguous.
      left_out: per row, selected tokens that did not fit.
      row_tokens: W * N.
    """

    token_index: Int[Array, "r s"]
    segment: Int[Array, "r s"]
    left_out: Int[Array, " r"]
    row_tokens: int

    @property
    def length(self) -> int:
        """Slots of a row, S."""
        return self.segment.shape[1]

    def take(self, tokens: Shaped[Array, "b n *k"]) -> Shaped[Array, "r s *k"]:
        """Gathers the rows' tokens from a batch of windows; padding gets the row's first token."""
        rows = self.token_index.shape[0]
        by_row = tokens.reshape(rows, -1, *tokens.shape[2:])
        index = self.token_index.reshape(*self.token_index.shape, *(1,) * (by_row.ndim - 2))
        return jnp.take_along_axis(by_row, index, axis=1)

    def slots_of(self, other: Rows) -> Int[Array, "r q"]:
        """For each token of `other` (rows over the same windows) its slot in these rows; S if absent."""
        return jnp.take_along_axis(self._slots(), other.token_index, axis=1)

    def contains(self, windows: int) -> Bool[Array, "b n"]:
        """Which tokens of the `windows` windows are in these rows."""
        return (self._slots()[:, :-1] < self.length).reshape(windows, -1)

    def scatter(self, tokens: Float[Array, "r s d"]) -> Float[Array, "r row_tokens d"]:
        """The inverse of `take`: every token of the row's windows; zeros for tokens that are not in these rows."""
        index = jnp.where(self.segment > 0, self.token_index, self.row_tokens)
        empty = jnp.zeros((len(index), self.row_tokens + 1, tokens.shape[-1]), tokens.dtype)
        placed = jax.vmap(lambda all_tokens, at, tokens: all_tokens.at[at].set(tokens))(empty, index, tokens)
        return placed[:, :-1]

    def _slots(self) -> Int[Array, "r row_tokens_and_one"]:
        """The slot of each token, S if it has none. The extra last entry receives the padding."""
        index = jnp.where(self.segment > 0, self.token_index, self.row_tokens)
        empty = jnp.full((len(index), self.row_tokens + 1), self.length, jnp.int32)
        slot = jnp.broadcast_to(jnp.arange(self.length, dtype=jnp.int32), index.shape)
        return jax.vmap(lambda slots, at, slot: slots.at[at].set(slot))(empty, index, slot)


def pack(keys: PRNGKeyArray, selected: Bool[Array, "b n"], windows_per_row: int, length: int) -> Rows:
    """Rows of the selected tokens, `windows_per_row` windows to a row.

    Args:
      keys: one per row, so that a row does not depend on the others.
      length: slots of a row. If a row has more tokens, uniformly random ones are left out and counted.
    """
    tokens = selected.shape[1]
    row_tokens = windows_per_row * tokens
    length = min(length, row_tokens)
    by_row = selected.reshape(-1, row_tokens)

    def kept(key: PRNGKeyArray, selected: Bool[Array, " n"]) -> Int[Array, " s"]:
        scores = jnp.where(selected, 1.0 - jax.random.uniform(key, (row_tokens,)), jnp.inf)
        return indices_where(smallest_k_mask(order_keys(scores), jnp.minimum(selected.sum(), length)), length)

    left_out = jnp.maximum(by_row.sum(axis=1, dtype=jnp.int32) - length, 0)
    return _rows(jax.vmap(kept)(keys, by_row), left_out, tokens, row_tokens)


def pack_sampled(
    keys: PRNGKeyArray,
    eligible: Bool[Array, "b n"],
    weights: Float[Array, "b n"],
    share: float,
    windows_per_row: int,
    length: int,
) -> tuple[Rows, Float[Array, "b n"]]:
    """Rows of a random share of the eligible tokens, and each token's inclusion probability.

    A sum over the sampled tokens, each divided by its probability, estimates the sum over all eligible ones nearly
    without bias (Horvitz and Thompson, 1952).

    Args:
      keys: one per row.
      weights: sampling weights, above 0.
      share: of a row's eligible tokens, rounded up. If that exceeds `length`, fewer are sampled and the rest
        count as left out.
    """
    rows, tokens = len(keys), eligible.shape[1]
    row_tokens = windows_per_row * tokens
    length = min(length, row_tokens)
    by_row = eligible.reshape(rows, row_tokens)
    total = jnp.ceil(share * by_row.sum(axis=1)).astype(jnp.int32)
    count = jnp.minimum(total, length)
    probability = jax.vmap(inclusion_probabilities)(weights.reshape(rows, row_tokens), by_row, count)
    index = jax.vmap(lambda *row: indices_where(pareto_sample(*row), length))(keys, probability, count)
    return _rows(index, total - count, tokens, row_tokens), probability.reshape(eligible.shape)


def _rows(index: Int[Array, "r s"], left_out: Int[Array, " r"], tokens: int, row_tokens: int) -> Rows:
    """Rows of the tokens at `index`; an index of `row_tokens` is padding."""
    filled = index < row_tokens
    return Rows(jnp.where(filled, index, 0), jnp.where(filled, index // tokens + 1, 0), left_out, row_tokens)


def fixed_drop(keys: PRNGKeyArray, selected: Bool[Array, "b n"], dropped: int) -> Rows:
    """AIM as published: `dropped` tokens that are not selected leave the row, the rest are masked in place.

    One window to a row of N - `dropped` slots. Tokens that are not selected get segment 0. If a window has too few of
    them, uniformly random selected tokens are left out and counted.

    Args:
      keys: one per window.
    """
    windows, tokens = selected.shape
    packed = pack(keys, selected, 1, tokens - dropped)
    fits = packed.contains(windows)
    order = jnp.argsort(~fits, axis=1, stable=True)[:, : tokens - dropped].astype(jnp.int32)
    return Rows(order, jnp.take_along_axis(fits, order, axis=1).astype(jnp.int32), packed.left_out, tokens)


def dense(selected: Bool[Array, "b n"]) -> Rows:
    """One window to a row, every token in its own slot; those not selected get segment 0."""
    batch, tokens = selected.shape
    index = jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (batch, tokens))
    return Rows(index, selected.astype(jnp.int32), jnp.zeros(batch, jnp.int32), tokens)
