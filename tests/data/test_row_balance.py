"""Row balancing: every window is assigned once, and the rows that a step makes of a batch are balanced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Shaped

from lsm_jax.data.row_balance import RowBalancer


def rows_of(batch: Shaped[np.ndarray, " b"], windows: int, accumulate: int) -> Shaped[np.ndarray, "rows w"]:
    """The rows of a step: micro-batch `i` takes windows i, i + accumulate, ...; rows take consecutive ones of those."""
    return np.concatenate([batch[part::accumulate].reshape(-1, windows) for part in range(accumulate)])


@given(
    windows=st.integers(2, 8),
    accumulate=st.integers(1, 4),
    blocks=st.integers(1, 9),
    seed=st.integers(0, 2**16),
    ties=st.booleans(),
)
def test_every_window_is_assigned_once_and_rows_are_balanced(windows, accumulate, blocks, seed, ties) -> None:
    balance = RowBalancer.for_batch(windows * accumulate * blocks, windows, accumulate)
    groups = windows * accumulate * blocks // balance.group_size
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 3 if ties else 4000, (groups, balance.group_size))
    order = balance.assign(sizes)
    assert (np.sort(order, axis=1) == np.arange(balance.group_size)).all()
    for group in range(groups):
        rows = rows_of(sizes[group][order[group]], windows, accumulate)
        totals = rows.sum(axis=1)
        # A round never widens the gap between rows beyond the gap between its own windows.
        assert totals.max() - totals.min() <= sizes[group].max() - sizes[group].min()
        assert (np.diff(rows, axis=1) <= 0).all(), "from the largest window of a row to the smallest"


@given(windows=st.integers(2, 8), accumulate=st.integers(1, 4), blocks=st.integers(1, 4))
def test_window_ids_are_consecutive_along_rows(windows, accumulate, blocks) -> None:
    balance = RowBalancer.for_batch(windows * accumulate * blocks, windows, accumulate)
    rows = rows_of(balance.window_ids, windows, accumulate)
    assert (np.diff(rows, axis=1) == 1).all()
    assert sorted(rows.flat) == list(range(balance.group_size))


def test_balanced_rows_of_days_differ_less_than_rows_in_order() -> None:
    sizes = np.random.default_rng(0).beta(2, 2, (500, 64))
    balance = RowBalancer.for_batch(4096, 16, 1)
    balanced = np.take_along_axis(sizes, balance.assign(sizes), axis=1)
    spread = lambda sizes: sizes.reshape(500, 4, 16).sum(axis=2).std(axis=1).mean()  # noqa: E731
    assert spread(balanced) < 0.05 * spread(sizes)


@pytest.mark.parametrize(("batch_size", "windows", "accumulate"), [(7, 1, 1), (6, 4, 1)])
def test_single_windows_and_uneven_batches_stay_in_order(batch_size, windows, accumulate) -> None:
    balance = RowBalancer.for_batch(batch_size, windows, accumulate)
    assert balance.group_size == 1
    assert balance.assign(np.ones((batch_size, 1))).tolist() == [[0]] * batch_size
    assert balance.window_ids.tolist() == [0]
