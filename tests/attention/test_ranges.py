"""Block ranges bound what is seen, tightly where segments are contiguous; and what visiting them costs."""

import numpy as np
import pytest
from cases import row, segments
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.attention import IMPLEMENTATIONS, flops, resolved, worst_case_flops
from lsm_jax.attention.ranges import Blocks, block_ranges, even_block, padded


def blocked(pairs, blocks):
    """Which pairs of blocks hold a pair."""
    rows, queries, keys = pairs.shape
    padding = (0, -queries % blocks.query), (0, -keys % blocks.key)
    whole = np.pad(pairs, ((0, 0), *padding))
    return whole.reshape(rows, -1, blocks.query, whole.shape[2] // blocks.key, blocks.key).any((2, 4))


def visited(first, count, others):
    place = np.arange(others)
    return (place >= first[..., None]) & (place < (first + count)[..., None])


@given(
    asking=segments(2, 50),
    known=segments(2, 37),
    blocks=st.sampled_from([Blocks(1, 1), Blocks(7, 16), Blocks(20, 3)]),  # few, as each is compiled
)
def test_every_pair_seen_is_visited_from_both_sides(asking, known, blocks):
    ranges = block_ranges(asking, known, blocks)
    seen = blocked((asking[:, :, None] == known[:, None]) & (asking > 0)[:, :, None], blocks)
    by_query = visited(np.asarray(ranges.first_key), np.asarray(ranges.keys), seen.shape[2])
    by_key = visited(np.asarray(ranges.first_query), np.asarray(ranges.queries), seen.shape[1])
    assert (by_query | ~seen).all()
    assert (by_key.swapaxes(1, 2) | ~seen).all()


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    blocks=st.sampled_from([Blocks(1, 1), Blocks(7, 16), Blocks(20, 3)]),  # few, as each is compiled
)
def test_blocks_of_contiguous_segments_that_see_nothing_are_not_visited(lengths, blocks):
    asking = row(lengths, 100)[None]
    ranges = block_ranges(asking, asking, blocks)
    seen = blocked((asking[:, :, None] == asking[:, None]) & (asking > 0)[:, :, None], blocks)
    np.testing.assert_array_equal(ranges.keys, seen.sum(2))
    np.testing.assert_array_equal(ranges.queries, seen.sum(1))


@given(slots=st.integers(1, 5000), step=st.sampled_from([16, 128]))
def test_an_even_block_wastes_no_more_than_any_other_of_its_size(slots, step):
    block = even_block(slots, step, 512)
    assert block % step == 0
    assert 256 <= block <= 512 or padded(slots, step) == block
    others = [size for size in range(256, 513, step) if size >= 256]
    assert slots <= 512 or padded(slots, block) == min(padded(slots, size) for size in others)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_full_rows_cost_the_worst_case(name):
    full = np.ones((2, 1024), np.int32)
    counted = flops(name, full, full, 3, 64)
    assert counted == worst_case_flops(name, 2, 1024, 1024, 3, 64)
    assert counted.forward == 2 * 2 * 2 * 1024 * 1024 * 3 * 64
    assert counted.forward < counted.backward <= 3.5 * counted.forward
    assert counted.total == counted.forward + counted.backward


@pytest.mark.parametrize("name", [name for name, how in IMPLEMENTATIONS.items() if how.skips])
def test_cost_goes_with_the_square_of_what_is_seen(name):
    half, quarters = row([1024], 2048)[None], row([1024, 1024], 2048)[None]
    whole = worst_case_flops(name, 1, 2048, 2048, 1, 64).total
    assert flops(name, half, half, 1, 64).total == whole / 4
    assert flops(name, quarters, quarters, 1, 64).total == whole / 2
    nothing = np.zeros((1, 2048), np.int32)
    assert flops(name, nothing, nothing, 1, 64).total == 0


def test_auto_is_dense_for_short_rows_and_in_blocks_for_long_ones():
    assert resolved("auto", 128, 512) == "reference"
    assert resolved("auto", 3744, 3744) == "blockwise"
