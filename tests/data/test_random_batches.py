"""Random batches with gaps: the requested share is missing, in blocks."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.channels import MINUTELY_26
from lsm_jax.data.random_batches import block_gaps, random_batches_with_gaps
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.errors import UserError


@settings(max_examples=20)
@given(missing=st.floats(0, 1), minutes=st.integers(1, 300), seed=st.integers(0, 99))
def test_exactly_the_share_is_missing(missing: float, minutes: int, seed: int) -> None:
    observed = block_gaps(np.random.default_rng(seed), MINUTELY_26, minutes, missing)
    assert observed.shape == (minutes, 26)
    assert (~observed).sum() == round(missing * observed.size)


def test_gaps_are_long_and_windows_differ() -> None:
    spec, batches = random_batches_with_gaps(MINUTELY_26, 1440, 0.5, batch_size=8, count=4, seed=0)
    observed = np.concatenate([batch["observed"] for batch in batches])
    shares = 1 - observed.mean(axis=(1, 2))
    assert abs(shares.mean() - 0.5) < 0.01
    assert 0.15 < shares.std() < 0.3
    np.testing.assert_allclose(spec.observed_share, observed.mean(axis=(0, 1)), rtol=1e-5)
    changes = (observed[:, 1:] != observed[:, :-1]).sum() / observed.shape[0] / 26
    assert changes < 20, "a channel comes and goes a few times a day, not every minute"
    values = np.concatenate([batch["values"] for batch in batches])
    assert (values[~observed] == 0).all()
    assert abs(values[observed].std() - 1) < 0.01
    assert len(np.unique(np.concatenate([batch["window_id"] for batch in batches]))) == 32


def test_balanced_batches_hold_the_same_windows_in_balanced_rows() -> None:
    batches = functools.partial(random_batches_with_gaps, MINUTELY_26, 1440, 0.5, batch_size=8, count=4, seed=0)
    observed = lambda balance: [batch["observed"].sum(axis=(1, 2)) for batch in batches(balance=balance)[1]]  # noqa: E731
    plain, balanced = observed(None), observed(RowBalancer.for_batch(8, windows_per_row=4, grad_accum_steps=1))
    for before, after in zip(plain, balanced, strict=True):
        assert sorted(before) == sorted(after)
    spread = lambda batches: np.ptp(np.reshape(batches, (4, 2, 4)).sum(axis=2), axis=1).mean()  # noqa: E731
    assert spread(balanced) < 0.5 * spread(plain)


def test_nothing_missing_and_a_share_out_of_range() -> None:
    _, [batch] = random_batches_with_gaps(("steps",), 60, 0.0, batch_size=2, count=1, seed=0)
    assert batch["observed"].all()
    with pytest.raises(UserError, match="--missing 1"):
        random_batches_with_gaps(("steps",), 60, 1.0, batch_size=2, count=1, seed=0)
