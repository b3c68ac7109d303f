"""Block masks cover every visible pair, tightly where segments are contiguous; and their sparsity."""

import functools

import jax
import numpy as np
import pytest
from cases import row, segments
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.nn.attention import IMPLEMENTATIONS, block_sparsity, blocks
from lsm_jax.nn.attention.blocks import BlockSizes

SIZES = st.sampled_from([BlockSizes(1, 1), BlockSizes(7, 16), BlockSizes(20, 3)])  # few, as each is compiled
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=6)


@functools.partial(jax.jit, static_argnums=(0, 3))
def compiled(make, query_segments, key_segments, sizes):
    return make(query_segments, key_segments, sizes)


def block_mask_of(make, query_segments, key_segments, sizes):
    """A block mask in NumPy."""
    return jax.tree.map(np.asarray, compiled(make, query_segments, key_segments, sizes))


def visible(query_segments, key_segments):
    return (query_segments[:, :, None] == key_segments[:, None]) & (query_segments > 0)[:, :, None]


def by_block(pairs, sizes):
    """Which block pairs hold a pair."""
    rows, queries, keys = pairs.shape
    padded = np.pad(pairs, ((0, 0), (0, -queries % sizes.query), (0, -keys % sizes.key)))
    return padded.reshape(rows, -1, sizes.query, padded.shape[2] // sizes.key, sizes.key).any((2, 4))


def in_range(first, count, others):
    block = np.arange(others)
    return (block >= first[..., None]) & (block < (first + count)[..., None])


@given(query_segments=segments(2, 50), key_segments=segments(2, 37), sizes=SIZES)
def test_block_ranges_cover_every_visible_pair_from_both_sides(query_segments, key_segments, sizes):
    ranges = block_mask_of(blocks.block_ranges, query_segments, key_segments, sizes)
    needed = by_block(visible(query_segments, key_segments), sizes)
    by_query = in_range(ranges.first_key_block, ranges.num_key_blocks, needed.shape[2])
    by_key = in_range(ranges.first_query_block, ranges.num_query_blocks, needed.shape[1])
    assert (by_query | ~needed).all()
    assert (by_key.swapaxes(1, 2) | ~needed).all()


@given(lengths=LENGTHS, sizes=SIZES)
def test_block_ranges_of_contiguous_segments_hold_no_other_blocks(lengths, sizes):
    ids = row(lengths, 100)[None]
    ranges = block_mask_of(blocks.block_ranges, ids, ids, sizes)
    needed = by_block(visible(ids, ids), sizes)
    np.testing.assert_array_equal(ranges.num_key_blocks, needed.sum(2))
    np.testing.assert_array_equal(ranges.num_query_blocks, needed.sum(1))


def times_computed(tiles, own, other):
    """How often each pair of slots is computed by these tiles."""
    times = np.zeros((len(own), own.shape[1], other.shape[1]), int)
    arrays = tiles.count, tiles.start, tiles.other_start, tiles.num_other_blocks
    for times_in_row, count, starts, firsts, num_blocks in zip(times, *arrays, strict=True):
        for tile in range(count):
            start, end, first = starts[tile], min(starts[tile + 1], starts[tile] + tiles.size), firsts[tile]
            assert 0 <= start < end
            times_in_row[start:end, first : first + num_blocks[tile] * tiles.other_block_size] += 1
    return times


@given(query_segments=segments(2, 50), key_segments=segments(2, 37), sizes=SIZES, shuffled=st.booleans())
def test_tiles_hold_one_segment_and_compute_every_visible_pair_once(query_segments, key_segments, sizes, shuffled):
    if shuffled:  # rows do not look like this, but no pair may be lost
        shuffle = np.random.default_rng(0).permutation
        query_segments, key_segments = shuffle(query_segments, axis=1), shuffle(key_segments, axis=1)
    block_mask = block_mask_of(blocks.segment_tiles, query_segments, key_segments, sizes)
    pairs = visible(query_segments, key_segments)
    for tiles, own, other, needed in (
        (block_mask.queries, query_segments, key_segments, pairs),
        (block_mask.keys, key_segments, query_segments, pairs.swapaxes(1, 2)),
    ):
        np.testing.assert_array_equal(times_computed(tiles, own, other)[needed], 1)
        for index, ids in enumerate(own):
            starts = tiles.start[index, : tiles.count[index]]
            assert all(len(set(part[part > 0])) == 1 for part in np.split(ids, starts)[1:])


@given(lengths=LENGTHS)
def test_a_tile_begins_with_its_segment_and_computes_no_block_too_many(lengths):
    ids = row(lengths, 200)[None]
    tiles = block_mask_of(blocks.segment_tiles, ids, ids, BlockSizes(7, 16)).queries
    ends = np.cumsum(lengths)
    starts = [slot for length, end in zip(lengths, ends, strict=True) for slot in range(end - length, end, 7)]
    count = int(tiles.count[0])
    assert tiles.start[0, :count].tolist() == starts
    assert (tiles.start[0, count:] == 200).all()
    segment = [ids[0, start] - 1 for start in starts]
    assert tiles.other_start[0, :count].tolist() == [ends[each] - lengths[each] for each in segment]
    assert tiles.num_other_blocks[0, :count].tolist() == [-(-lengths[each] // 16) for each in segment]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_computed_block_pairs_go_with_the_square_of_what_is_visible(name):
    def fractions(ids):
        sparsity = block_sparsity(name, ids, ids, 64)
        return sparsity and (sparsity.by_query, sparsity.by_key)

    full, nothing = np.ones((2, 2048), np.int32), np.zeros((1, 2048), np.int32)
    half, quarters = row([1024], 2048)[None], row([1024, 1024], 2048)[None]
    if not IMPLEMENTATIONS[name].products:
        assert fractions(half) is None
        return
    assert [fractions(each) for each in (full, half, quarters, nothing)] == [(1, 1), (0.25, 0.25), (0.5, 0.5), (0, 0)]
    # Two products forward and five backward; seven where dq and dkv are two kernels, which both compute scores.
    assert sum(IMPLEMENTATIONS[name].products.values()) in {7, 9}
