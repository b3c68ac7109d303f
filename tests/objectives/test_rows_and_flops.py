"""Row lengths follow what windows draw, and FLOPs of the context path the shapes of its parameters."""

import jax
import numpy as np
import pytest

from lsm_jax.channels import MINUTELY_26
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.nn.context_cost import context_flops
from lsm_jax.objectives.shared import LEFT_OUT, row_length
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.policies import Mixture

GRID = TokenGrid(tuple(MINUTELY_26))


@pytest.mark.parametrize("windows", [1, 4, 16])
@pytest.mark.parametrize("share", [0.2, 0.51, 1.0])
def test_rows_hold_the_mean_and_leave_little_out(windows, share):
    mixture, random = Mixture(), np.random.default_rng(1)
    hidden = lambda generator, shape: mixture.hidden_shares(generator, shape, GRID.patches)  # noqa: E731
    length = row_length(share * GRID.size, windows, RowBalancer.for_batch(windows, windows, 1), GRID, hidden)
    recorded = random.beta(4 * share, 4 * (1 - share), (20_000, windows)) if share < 1 else np.ones((20_000, windows))
    drawn = GRID.size * (-np.sort(-recorded) * hidden(random, (20_000, windows))).sum(axis=1)
    assert drawn.mean() <= 1.01 * length
    assert np.maximum(drawn - length, 0).mean() <= 1.2 * LEFT_OUT * drawn.mean()
    shorter = length - max(128, length // 10)
    assert np.maximum(drawn - shorter, 0).mean() > LEFT_OUT * drawn.mean() or shorter < drawn.mean()


def test_balanced_rows_are_shorter():
    hidden = lambda generator, shape: Mixture().hidden_shares(generator, shape, GRID.patches)  # noqa: E731
    alone, balanced = (
        row_length(0.51 * GRID.size, 4, RowBalancer.for_batch(size, 4, 1), GRID, hidden) for size in (4, 64)
    )
    assert 0.51 * 0.6 * 4 * GRID.size < balanced < 0.95 * alone


def test_rows_of_windows_without_gaps_hold_them_whole_and_none_are_empty():
    assert row_length(GRID.size, 2, RowBalancer.for_batch(8, 2, 2), GRID, None) == 2 * GRID.size
    assert row_length(0.0, 1, RowBalancer.for_batch(1, 1, 1), GRID, None) == 64


def test_shares_hidden_are_those_of_the_masks():
    shares = Mixture((("random", 0.8, 1.0), ("gap", 0.5, 1.0))).hidden_shares(np.random.default_rng(0), (4000,), 144)
    gaps = shares[shares != 0.8]
    assert len(gaps) == pytest.approx(2000, rel=0.1)
    assert gaps.min() >= 1 / 144 and gaps.max() <= 0.5
    assert np.median(gaps) == pytest.approx(72**0.5 / 144, rel=0.1)  # log-uniform from one patch to 72
    assert (gaps == 1 / 144).mean() == pytest.approx(np.log(2) / np.log(73), abs=0.03)


def test_the_context_path_is_counted_matrix_by_matrix():
    matrix = lambda *shape: {"kernel": jax.ShapeDtypeStruct(shape, "float32")}  # noqa: E731
    decoder = {
        "stack": matrix(1000, 1000),  # another count's
        "context": {"near": matrix(7, 5), "beside": jax.ShapeDtypeStruct((96, 20, 5), "float32"), "mix": matrix(5, 5)},
        "context_query": matrix(5, 3),
        "prediction": {
            "join": matrix(8, 5) | {"bias": jax.ShapeDtypeStruct((5,), "float32")},
            "minutes": {"across": jax.ShapeDtypeStruct((96, 96, 64), "float32"), "expand": matrix(32, 64)},
        },
    }
    grid, visible, targets = TokenGrid(tuple(MINUTELY_26[:3])), 11.0, 13.0
    per_target = (
        2 * 7 * 5 * 2 + 2 * 5 * 5 * 3 + 2 * 5 * 3 * 3 + 2 * 8 * 5 * 3 + 10 * 2 * 32 * 64 * 3 + 10 * 2 * 3 * 64 * 2
    )
    assert context_flops(decoder, grid, visible, targets) == visible * 2 * 20 * 5 * 2 + targets * per_target
    assert context_flops({"head": matrix(4, 4)}, grid, visible, targets) == 0
