"""What all objectives need: cells out of a batch, row lengths, keys, and FLOPs of what rows hold."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec
from lsm_jax.nn.neighbours import Cells
from lsm_jax.nn.sizes import StackSize
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.rows import Rows

_ROUND = 64  # row lengths are multiples of this, so that blocks and tiles come out even
LEFT_OUT = 0.05  # share of tokens that rows whose length is not given may leave out
_ALIKE = 4.0  # how alike windows are in what they recorded: a + b of a beta, of the synthetic cohort's days (sd 0.23)
_DRAWS = 4096

Shares = Float[np.ndarray, "n windows"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["queries", "keys"], meta_fields=["size"])
@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """What one stack attends to, layer by layer; what kernels skip of it depends on these segments."""

    queries: Int[Array, "r s"]
    keys: Int[Array, "r t"]
    size: StackSize


def compute_dtype(name: str) -> str:
    """`auto` as the type this hardware multiplies fastest without losing the run; any other name as it is."""
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def observed_cells(batch: Mapping[str, Array], grid: TokenGrid) -> tuple[Cells, Bool[Array, "b n"]]:
    """The batch by token, cleaned of whatever stands in unobserved cells, and which tokens were recorded."""
    values = jnp.where(batch["observed"], batch["values"], 0)
    cells = Cells(grid.cells(values), grid.cells(jnp.asarray(batch["observed"])))
    return cells, grid.tokens_observed(cells.observed)


def window_keys(key: PRNGKeyArray, window_id: Int[Array, " b"]) -> PRNGKeyArray:
    """A key per window, so that what is drawn for it depends on neither batch, host nor mesh."""
    return jax.vmap(functools.partial(jax.random.fold_in, key))(window_id)


def expected_tokens(spec: DataSpec, grid: TokenGrid) -> float:
    """Recorded tokens of a mean window of the training split."""
    share = np.pad(np.asarray(spec.observed_share), (0, grid.groups * grid.patch_channels - len(grid.channels)))
    return grid.patches * float(share.reshape(grid.groups, -1).max(axis=1).sum())


def row_length(
    tokens: float,
    windows: int,
    balance: RowBalancer,
    grid: TokenGrid,
    kept: Callable[[np.random.Generator, tuple[int, ...]], Shares] | None,
) -> int:
    """The shortest row that holds a mean sum of `windows` windows and leaves out no more than `LEFT_OUT` of all tokens.

    Windows differ in what they recorded, and in how much of it a mask hides, so that sums over few of them vary widely:
    one long enough for most would be half empty. The more windows share a row, and the more rows are balanced with each
    other, the fuller they are.

    Args:
      tokens: recorded ones of a mean window.
      kept: draws shares of a window's recorded tokens that the row is for; None: all of them.
    """
    random, mean = np.random.default_rng(0), min(tokens / grid.size, 1.0)
    if mean <= 0:
        return rounded(1, windows * grid.size)
    together = max(balance.group_size, windows)
    shape = (_DRAWS * windows // together, together)
    recorded = random.beta(_ALIKE * mean, _ALIKE * (1 - mean), shape) if mean < 1 else np.ones(shape)
    if balance.group_size > 1:
        recorded = np.take_along_axis(recorded, balance.assign(recorded), axis=1)
    rows = recorded[:, np.argsort(balance.window_ids)] if balance.group_size > 1 else recorded
    drawn = grid.size * (rows if kept is None else rows * kept(random, shape)).reshape(-1, windows).sum(axis=1)
    limit, least = windows * grid.size, math.ceil(drawn.mean())
    lengths = sorted({rounded(length, limit) for length in range(least, limit + _ROUND, _ROUND)})
    left_out = lambda length: np.maximum(drawn - length, 0).mean()  # noqa: E731
    return lengths[bisect.bisect_left(lengths, -LEFT_OUT * drawn.mean(), key=lambda length: -left_out(length))]


def rounded(tokens: int, limit: int) -> int:
    """A row length: up to the next multiple of `_ROUND`, of whole lanes for long rows, at most `limit`."""
    step = _ROUND if tokens <= 8 * _ROUND else 2 * _ROUND
    return min(math.ceil(max(tokens, 1) / step) * step, limit)


def bucket_length(chosen: Bool[Array, "b n"] | Bool[np.ndarray, "b n"]) -> int:
    """A row length that holds the chosen tokens of every window: 160 doubled until it does.

    Coarse on purpose: every length is a program of its own, and compiling one takes seconds. From 160 on,
    because one, two, four, ... channels recorded all day are 144, 288, 576, ... tokens of ten minutes.
    """
    most = max(int(chosen.sum(axis=1).max()), 1)
    return min(160 << ((most - 1) // 160).bit_length(), chosen.shape[1])


def segment_counts(rows: Rows, segments: int) -> Float[Array, "r w"]:
    """Tokens of each segment."""
    return jax.nn.one_hot(rows.segment - 1, segments, dtype=jnp.float32).sum(axis=1)


def matrix_flops(matrix: jax.ShapeDtypeStruct, tokens: Float[Array, ""]) -> Float[Array, ""]:
    """Forward FLOPs of a kernel that so many tokens are multiplied with: two per multiply-add."""
    return 2.0 * math.prod(matrix.shape) * tokens


def stack_flops(
    size: StackSize, queries: Float[Array, "r w"], keys: Float[Array, "r w"], memory_width: int | None = None
) -> Float[Array, ""]:
    """Forward FLOPs of a stack: two per multiply-add of its matrices and of its segments' score squares."""
    width = size.width
    per_query = 2 * width * (2 * width if memory_width is not None else 4 * width) + 4 * width * size.hidden
    per_key = 4 * width * memory_width if memory_width is not None else 0
    linear = per_query * queries.sum() + per_key * keys.sum()
    return size.depth * (linear + 4.0 * width * (queries * keys).sum())
