"""Tokens and masks: exact counts, nothing unrecorded hidden, one key one mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import MaskingConfig
from lsm_jax.errors import UserError
from lsm_jax.tokens.grid import TokenGrid
from lsm_jax.tokens.policies import POLICIES, PolicyMixture, artificial_mask, exact_share, policy_draws

GRID = TokenGrid(MINUTELY_26[:5], window_minutes=120)
seeds = st.integers(0, 2**31 - 1)


def recorded(seed: int, share: float, grid: TokenGrid = GRID) -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(seed).random(grid.size) < share)


def mixture_of(*policies, share_of="observed"):
    return PolicyMixture(MaskingConfig(policies, share_of))


@given(seeds, st.sampled_from([1, 2, 5]), st.sampled_from([1, 4, 7]))
def test_cells_and_windows_are_inverse(seed, patch_channels, channels):
    grid = TokenGrid(MINUTELY_26[:channels], window_minutes=60, patch_channels=patch_channels)
    values = np.random.default_rng(seed).normal(size=(2, 60, channels)).astype(np.float32)
    cells = grid.cells(jnp.asarray(values))
    assert cells.shape == (2, grid.size, grid.cells_per_token)
    np.testing.assert_array_equal(grid.windows(cells), values)


def test_a_token_holds_its_patch_and_channel():
    values = np.arange(120 * 5, dtype=np.float32).reshape(1, 120, 5)
    cells = np.asarray(GRID.cells(jnp.asarray(values)))
    np.testing.assert_array_equal(cells[0, 3 * GRID.groups + 2], values[0, 30:40, 2])


@pytest.mark.parametrize(("share", "expected"), [(0.0, [0, 1, 1, 1]), (0.5, [0, 0, 1, 1]), (1.0, [0, 0, 0, 1])])
def test_partly_observed_patches_follow_the_rule(share, expected):
    grid = TokenGrid(MINUTELY_26[:1], window_minutes=40, min_observed_share=share)
    observed = np.zeros((1, 4, 10), bool)
    for token, count in enumerate((0, 4, 5, 10)):
        observed[0, token, :count] = True
    np.testing.assert_array_equal(grid.tokens_observed(jnp.asarray(observed))[0], np.array(expected, bool))


@pytest.mark.parametrize(("channels", "share", "needed"), [(5, 0.3, 15), (10, 0.07, 7), (1, 0.31, 4)])
def test_a_share_of_the_cells_is_not_rounded_up_by_float_noise(channels, share, needed):
    grid = TokenGrid(MINUTELY_26[:channels], window_minutes=10, patch_channels=channels, min_observed_share=share)
    assert grid.cells_needed().tolist() == [needed]


def test_the_padding_of_the_last_group_does_not_count_against_it():
    grid = TokenGrid(MINUTELY_26[:3], window_minutes=10, patch_channels=2, min_observed_share=1.0)
    observed = grid.cells(jnp.ones((1, 10, 3), bool))
    assert bool(grid.tokens_observed(observed).all())


@given(seeds, st.floats(0, 1), st.floats(0, 1))
def test_exact_share_is_exact(seed, density, share):
    eligible = recorded(seed, density)
    hidden = exact_share(jax.random.key(seed), eligible, share)
    assert int(hidden.sum()) == int(jnp.round(share * eligible.sum()))
    assert not bool((hidden & ~eligible).any())


@pytest.mark.parametrize("name", POLICIES)
@given(seed=seeds, density=st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_every_policy_is_a_pure_function_with_the_counts_it_promises(name, seed, density):
    observed = recorded(seed, density).reshape(GRID.patches, GRID.groups)
    hidden = POLICIES[name](jax.random.key(seed), observed, 0.5)
    np.testing.assert_array_equal(hidden, POLICIES[name](jax.random.key(seed), observed, 0.5))
    units = {"random": observed.sum(), "time": observed.any(1).sum(), "sensor": observed.any(0).sum()}
    counts = {"random": hidden.sum(), "time": hidden.all(1).sum(), "sensor": hidden.all(0).sum()}
    if name in units and (name != "sensor" or units["sensor"] > 1):
        assert int(counts[name]) == int(jnp.round(0.5 * units[name]))
    if name in ("gap", "forecast"):
        times = np.flatnonzero(np.asarray(hidden.all(1)))
        assert np.array_equal(np.asarray(hidden.any(1)), np.asarray(hidden.all(1)))
        assert times.size == 0 or times[-1] - times[0] + 1 == times.size


@pytest.mark.parametrize("name", ["gap", "forecast"])
@pytest.mark.parametrize(("patches", "longest"), [(12, 6), (7, 4), (1, 1)])
def test_stretches_are_log_uniform_from_one_patch_to_their_share(name, patches, longest):
    observed = jnp.zeros((GRID.patches, GRID.groups), bool).at[:patches, 1].set(True)
    keys = jax.random.split(jax.random.key(0), 4000)
    hidden = jax.vmap(lambda key: (POLICIES[name](key, observed, 0.5) & observed).any(axis=1).sum())(keys)
    shares = mixture_of((name, 0.5, 1.0)).hidden_shares(np.random.default_rng(0), (4000,), patches)
    chances = np.diff(np.log(np.arange(longest + 1) + 1)) / np.log(longest + 1)
    for lengths in (np.asarray(hidden), shares * patches):
        assert {*np.unique(lengths.round(9))} == {*range(1, longest + 1)}
        np.testing.assert_allclose(np.bincount(lengths.round().astype(int))[1:] / 4000, chances, atol=0.03)


@given(seed=seeds)
def test_a_lone_channel_is_never_hidden_whole(seed):
    observed = jnp.zeros((GRID.patches, GRID.groups), bool).at[:, 2].set(True)
    hidden = POLICIES["sensor"](jax.random.key(seed), observed, 0.5)
    assert 0 < int((hidden & observed).sum()) < GRID.patches


@given(seed=seeds)
def test_the_grid_pool_hides_the_papers_counts_whatever_was_recorded(seed):
    mixture = mixture_of(("random", 0.8, 1.0), share_of="grid")
    hidden = artificial_mask(jax.random.key(seed), jnp.float32(0.5), recorded(seed, 0.3), GRID, mixture)
    assert int(hidden.sum()) == round(0.8 * GRID.size)


@pytest.mark.parametrize("first", [True, False])
def test_a_policy_without_weight_is_never_drawn(first):
    policies = (("random", 1.0, 1.0), ("time", 0.5, 0.0))
    mixture = mixture_of(*(policies if first else policies[::-1]))
    observed = jnp.ones(GRID.size, bool)
    for draw in (0.0, 0.3, 1 - 2**-24):
        assert bool(artificial_mask(jax.random.key(0), jnp.float32(draw), observed, GRID, mixture).all())


@given(seed=seeds, begin=st.integers(0, 2**31 - 64), row=st.integers(3, 48))
def test_the_windows_of_a_row_share_policies_by_weight(seed, begin, row):
    mixture = mixture_of(("random", 0.8, 2.0), ("time", 0.5, 1.0), ("sensor", 0.4, 1.0))
    draws = np.asarray(policy_draws(jax.random.key(seed), begin + jnp.arange(row)))
    assert ((draws >= 0) & (draws < 1)).all()
    drawn = np.searchsorted(mixture.bounds[:-1], draws, side="right")
    counts = np.bincount(drawn, minlength=3)
    assert [share for _, share, _ in mixture.by_share] == [0.4, 0.5, 0.8]
    np.testing.assert_allclose(counts, row * np.array([0.25, 0.25, 0.5]), atol=2)


def test_a_policy_is_as_likely_for_one_window_as_for_the_next():
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = np.asarray(jax.vmap(lambda key: policy_draws(key, jnp.arange(5)))(keys))
    for edge in (0.25, 0.5, 0.75):
        np.testing.assert_allclose((draws < edge).mean(axis=0), edge, atol=0.03)


@pytest.mark.parametrize(
    ("policy", "word"),
    [(("radnom", 0.5, 1.0), "random"), (("random", 1.5, 1.0), "share"), (("random", 0.5, 0.0), "nothing")],
)
def test_bad_policies_are_refused_by_name(policy, word):
    with pytest.raises(UserError, match=word):
        mixture_of(policy)


def test_bad_grids_are_refused():
    with pytest.raises(UserError, match="multiple"):
        TokenGrid(MINUTELY_26, window_minutes=1441)
    with pytest.raises(UserError, match="from 0 to 1"):
        TokenGrid(MINUTELY_26, min_observed_share=1.5)
