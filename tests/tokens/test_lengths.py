"""Row lengths follow the data's missingness and the masks."""

import numpy as np
import pytest

from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import Config, MaskingConfig, with_changes
from lsm_jax.data.spec import DataSpec
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.policies import PolicyMixture
from lsm_jax.tokens.row_lengths import LEFT_OUT, bucket_length, row_length

GRID = TokenGrid(tuple(MINUTELY_26))
MIXTURE = PolicyMixture(MaskingConfig())


def length_for(share, windows, batch_size, kept, accumulate=1):
    """A row length for windows that recorded this share of their tokens."""
    channels = len(GRID.channels)
    spec = DataSpec(GRID.channels, np.zeros(channels), np.ones(channels), 1440, np.full(channels, share))
    changes = {"train.batch_size": batch_size, "rows.windows_per_row": windows, "train.grad_accum_steps": accumulate}
    return row_length(with_changes(Config(), changes), GRID, spec, kept)


def hidden(random, shape):
    return MIXTURE.hidden_shares(random, shape, GRID.patches)


@pytest.mark.parametrize("windows", [1, 4, 16])
@pytest.mark.parametrize("share", [0.2, 0.51, 1.0])
def test_rows_hold_the_mean_and_leave_little_out(windows, share):
    random = np.random.default_rng(1)
    length = length_for(share, windows, windows, hidden)
    recorded = random.beta(4 * share, 4 * (1 - share), (20_000, windows)) if share < 1 else np.ones((20_000, windows))
    drawn = GRID.size * (-np.sort(-recorded) * hidden(random, (20_000, windows))).sum(axis=1)
    assert drawn.mean() <= 1.01 * length
    assert np.maximum(drawn - length, 0).mean() <= 1.2 * LEFT_OUT * drawn.mean()
    shorter = length - max(128, length // 10)
    assert np.maximum(drawn - shorter, 0).mean() > LEFT_OUT * drawn.mean() or shorter < drawn.mean()


def test_balanced_rows_are_shorter():
    alone, balanced = (length_for(0.51, 4, size, hidden) for size in (4, 64))
    assert 0.51 * 0.6 * 4 * GRID.size < balanced < 0.95 * alone


def test_rows_of_windows_without_gaps_hold_them_whole_and_none_are_empty():
    assert length_for(1.0, 2, 8, None, accumulate=2) == 2 * GRID.size
    assert length_for(0.0, 1, 1, None) == 64


def test_shares_hidden_are_those_of_the_masks():
    mixture = PolicyMixture(MaskingConfig((("random", 0.8, 1.0), ("gap", 0.5, 1.0))))
    shares = mixture.hidden_shares(np.random.default_rng(0), (4000,), 144)
    gaps = shares[shares != 0.8]
    assert len(gaps) == pytest.approx(2000, rel=0.1)
    assert gaps.min() >= 1 / 144 and gaps.max() <= 0.5
    assert np.median(gaps) == pytest.approx(72**0.5 / 144, rel=0.1)  # log-uniform from one patch to 72
    assert (gaps == 1 / 144).mean() == pytest.approx(np.log(2) / np.log(73), abs=0.03)


def test_evaluation_rows_double():
    assert [bucket_length(tokens) for tokens in (0, 1, 160, 161, 640, 641)] == [160, 160, 160, 320, 640, 1280]
