"""Rows: the visible tokens of several windows side by side, with static shapes.

A masked or missing token never reaches an observed one (SPEC section 3), so leaving it out changes
nothing. `packed` rows hold visible tokens only; `fixed_drop` and `dense` are the paper's fixed-D form and
the plain dense form of the same computation, kept as layouts so that tests and benchmarks can hold
the three side by side.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from lsm_jax.tokens.sampling import chances, draw
from lsm_jax.tokens.selection import lowest, order_keys, places_of


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["token_index", "segment", "left_out"],
    meta_fields=["places"],
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """Tokens of R rows, W windows of N tokens each to a row.

    Attributes:
      token_index: place of the token among the row's W * N, window-major; 0 in padding.
      segment: 1 + the window's place in the row; 0 is padding. Segments are contiguous.
      left_out: chosen tokens that did not fit, per row.
      places: W * N, the tokens a row could hold.
    """

    token_index: Int[Array, "r s"]
    segment: Int[Array, "r s"]
    left_out: Int[Array, " r"]
    places: int

    def take(self, tokens: Shaped[Array, "b n *k"]) -> Shaped[Array, "r s *k"]:
        """The rows' tokens out of a batch of windows; padding holds the row's first token."""
        rows = self.token_index.shape[0]
        by_row = tokens.reshape(rows, -1, *tokens.shape[2:])
        index = self.token_index.reshape(*self.token_index.shape, *(1,) * (by_row.ndim - 2))
        return jnp.take_along_axis(by_row, index, axis=1)

    def slots_of(self, other: Rows) -> Int[Array, "r q"]:
        """For each token of `other` rows over the same windows its slot here, S where it has none."""
        return jnp.take_along_axis(self._slots(), other.token_index, axis=1)

    def held(self, windows: int) -> Bool[Array, "b n"]:
        """Which tokens of the `windows` windows are in these rows."""
        return (self._slots()[:, :-1] < self.segment.shape[1]).reshape(windows, -1)

    def _slots(self) -> Int[Array, "r places_and_one"]:
        """The slot of each place, S where it has none; the last entry gathers the padding."""
        rows, capacity = self.token_index.shape
        place = jnp.where(self.segment > 0, self.token_index, self.places)
        empty = jnp.full((rows, self.places + 1), capacity, jnp.int32)
        slot = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32), place.shape)
        return jax.vmap(lambda into, at, what: into.at[at].set(what))(empty, place, slot)


def packed(keys: PRNGKeyArray, chosen: Bool[Array, "b n"], windows_per_row: int, capacity: int) -> Rows:
    """Rows of the chosen tokens only, `windows_per_row` windows to a row of `capacity` slots.

    Args:
      keys: one per row, so that what a row leaves out does not depend on the rows beside it.
      capacity: slots; where a row's tokens exceed it, those left out are drawn uniformly at random and counted.
    """
    batch, tokens = chosen.shape
    rows = batch // windows_per_row
    places = windows_per_row * tokens
    capacity = min(capacity, places)
    wanted = chosen.reshape(rows, places)

    def held(key: PRNGKeyArray, wanted: Bool[Array, " n"]) -> Int[Array, " s"]:
        drawn = 1.0 - jax.random.uniform(key, (places,))
        chance = order_keys(jnp.where(wanted, drawn, jnp.inf))
        return places_of(lowest(chance, jnp.minimum(wanted.sum(), capacity)), capacity)

    left_out = jnp.maximum(wanted.sum(axis=1, dtype=jnp.int32) - capacity, 0)
    return _rows(jax.vmap(held)(keys, wanted), left_out, tokens, places)


def drawn(
    keys: PRNGKeyArray,
    chosen: Bool[Array, "b n"],
    odds: Float[Array, "b n"],
    share: float,
    windows_per_row: int,
    capacity: int,
) -> tuple[Rows, Float[Array, "b n"]]:
    """Rows of a share of the chosen tokens, drawn by their odds, and the chance each had.

    Sums over all chosen tokens are sums over the drawn ones of what is divided by its chance, but for chance.

    Args:
      keys: one per row.
      odds: above 0; a token of twice another's is drawn twice as often, up to always.
      share: of a row's chosen tokens, rounded up; what `capacity` does not hold is drawn less often, and counted.
    """
    rows, tokens = len(keys), chosen.shape[1]
    places = windows_per_row * tokens
    capacity = min(capacity, places)
    wanted = chosen.reshape(rows, places)
    total = jnp.ceil(share * wanted.sum(axis=1)).astype(jnp.int32)
    count = jnp.minimum(total, capacity)
    chance = jax.vmap(chances)(odds.reshape(rows, places), wanted, count)
    index = jax.vmap(lambda *row: places_of(draw(*row), capacity))(keys, chance, count)
    return _rows(index, total - count, tokens, places), chance.reshape(chosen.shape)


def _rows(index: Int[Array, "r s"], left_out: Int[Array, " r"], tokens: int, places: int) -> Rows:
    """Rows that hold the tokens at `index`, and nothing where it is `places`."""
    filled = index < places
    segment = jnp.where(filled, index // tokens + 1, 0)
    return Rows(jnp.where(filled, index, 0), segment, left_out, places)


def fixed_drop(chosen: Bool[Array, "b n"], dropped: int) -> Rows:
    """AIM as published: `dropped` tokens that are not chosen leave the row, the rest is masked in place.

    One window to a row of N - `dropped` slots; slots of tokens that are not chosen carry segment 0. A
    window with fewer than `dropped` of them loses its last chosen tokens, which are counted.
    """
    tokens = chosen.shape[1]
    order = jnp.argsort(~chosen, axis=1, stable=True)[:, : tokens - dropped].astype(jnp.int32)
    kept = jnp.take_along_axis(chosen, order, axis=1)
    return Rows(
        token_index=order,
        segment=kept.astype(jnp.int32),
        left_out=(chosen.sum(axis=1) - kept.sum(axis=1)).astype(jnp.int32),
        places=tokens,
    )


def dense(chosen: Bool[Array, "b n"]) -> Rows:
    """Every token keeps its slot, one window to a row; those not chosen carry segment 0."""
    batch, tokens = chosen.shape
    return Rows(
        token_index=jnp.broadcast_to(jnp.arange(tokens, dtype=jnp.int32), (batch, tokens)),
        segment=chosen.astype(jnp.int32),
        left_out=jnp.zeros(batch, jnp.int32),
        places=tokens,
    )
