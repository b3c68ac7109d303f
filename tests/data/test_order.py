"""The data order: every window exactly once per epoch, the same on all hosts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.data.order import CROP_STREAM, DataOrder, keys, permuted

GOLDEN_DATASETS = [0, 1, 0, 0, 1, 0, 0, 1, 0]
GOLDEN_WINDOWS = [593, 6, 47, 74, 1, 160, 121, 4, 410]
GOLDEN_CROPS = [727, 570, 657, 9, 866]

seeds = st.integers(0, 2**63)
sizes = st.integers(1, 3000)


@given(seeds, sizes, st.integers(0, 2**40))
def test_permuted_is_a_permutation(seed, size, epoch) -> None:
    key = keys(seed, np.zeros(size, np.int64), np.full(size, epoch))
    assert sorted(permuted(np.arange(size), np.full(size, size), key)) == list(range(size))


@given(seeds, st.lists(st.tuples(st.integers(1, 60), st.floats(0.05, 1)), min_size=1, max_size=4), st.integers(0, 30))
def test_every_dataset_is_covered_exactly_once_per_epoch(seed, parts, first_epoch) -> None:
    """From any of the dataset's epochs on, looked up at once or one position at a time."""
    counts, weights = [size for size, _ in parts], [weight for _, weight in parts]
    order = DataOrder(seed, counts, weights)
    positions = np.arange(int(3 * (first_epoch + 2) * max(counts) / min(weights) * sum(weights)) + 3000)
    datasets, windows = order.lookup(positions)
    for number, size in enumerate(counts):
        drawn = windows[datasets == number]
        assert len(drawn) >= (first_epoch + 1) * size
        for epoch in range(first_epoch, min(first_epoch + 2, len(drawn) // size)):
            assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(seeds, st.lists(st.integers(1, 500), min_size=1, max_size=4))
def test_weights_by_size_cover_all_datasets_together_exactly(seed, counts) -> None:
    total = sum(counts)
    datasets, windows = DataOrder(seed, counts, counts).lookup(np.arange(2 * total))
    for epoch in (slice(0, total), slice(total, 2 * total)):
        seen = set(zip(datasets[epoch].tolist(), windows[epoch].tolist(), strict=True))
        assert len(seen) == total


@given(seeds, st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**40))
def test_hosts_take_rows_of_one_global_batch(seed, hosts, batch) -> None:
    order = DataOrder(seed, [97, 13], [3, 1])
    positions = batch * 16 + np.arange(16)
    whole = np.stack(order.lookup(positions))
    parts = [np.stack(order.lookup(rows)) for rows in np.split(positions, hosts)]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_weights_are_kept_and_spread_evenly() -> None:
    datasets, _ = DataOrder(0, [100, 900, 50], [0.5, 0.3, 0.2]).lookup(np.arange(100_000))
    for number, weight in enumerate([0.5, 0.3, 0.2]):
        assert abs((datasets == number).mean() - weight) < 1e-3
        per_batch = (datasets.reshape(-1, 100) == number).mean(axis=1)
        assert abs(per_batch - weight).max() <= 0.02


def test_a_dataset_of_weight_zero_is_left_out_and_an_empty_one_is_refused() -> None:
    datasets, _ = DataOrder(0, [10, 0, 10], [1, 0, 1]).lookup(np.arange(1000))
    assert set(datasets) == {0, 2}
    with pytest.raises(ValueError, match="without windows"):
        DataOrder(0, [10, 0], [1, 1])


def test_every_permutation_of_a_few_windows_is_equally_likely() -> None:
    """Chi-square over the 120 orders of five windows; 159 is its 99 % quantile at 119 degrees of freedom."""
    epochs = np.repeat(np.arange(12_000), 5)
    index = np.tile(np.arange(5), 12_000)
    orders = permuted(index, np.full(60_000, 5), keys(0, np.zeros_like(epochs), epochs)).reshape(-1, 5)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 120
    assert ((counts - 100.0) ** 2 / 100).sum() < 159


def test_epochs_and_seeds_differ() -> None:
    one = DataOrder(0, [1000], [1]).lookup(np.arange(2000))[1]
    other = DataOrder(1, [1000], [1]).lookup(np.arange(2000))[1]
    assert (one[:1000] == one[1000:]).sum() < 10
    assert (one == other).sum() < 20


def test_the_order_is_the_one_that_saved_runs_resume_in() -> None:
    """Stored values: a change here makes every saved run replay and skip data. Do not update them; fix the order."""
    datasets, windows = DataOrder(7, [1000, 10], [2, 1]).lookup(np.arange(3_000_000, 3_000_009))
    assert datasets.tolist() == GOLDEN_DATASETS
    assert windows.tolist() == GOLDEN_WINDOWS
    assert DataOrder(7, [3], [1]).uniform(np.arange(5), np.full(5, 1141), CROP_STREAM).tolist() == GOLDEN_CROPS
