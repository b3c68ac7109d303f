"""Block ranges bound what is seen, tightly where segments are contiguous; and what visiting them costs."""

import numpy as np
import pytest
from cases import row, segments
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.nn.attention import IMPLEMENTATIONS, resolved, visits
from lsm_jax.nn.attention.pieces import cut
from lsm_jax.nn.attention.ranges import Blocks, block_ranges, even_block, padded


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


def pairs_of(side, own, other):
    """How often each pair of slots is visited by this side's pieces, which end where the next one begins."""
    visits = np.zeros((len(own), own.shape[1], other.shape[1]), int)
    for at, count in enumerate(side.count):
        for piece in range(int(count)):
            start, end = int(side.start[at, piece]), int(side.start[at, piece + 1])
            first, blocks = int(side.first[at, piece]), int(side.blocks[at, piece])
            assert 0 <= start < end
            visits[at, start : min(end, start + side.size), first : first + blocks * side.across] += 1
    return visits


@given(
    asking=segments(2, 50),
    known=segments(2, 37),
    blocks=st.sampled_from([Blocks(1, 1), Blocks(7, 16), Blocks(20, 3)]),  # few, as each is compiled
    shuffled=st.booleans(),
)
def test_pieces_of_one_segment_visit_every_pair_seen_once(asking, known, blocks, shuffled):
    if shuffled:  # not what rows hold, but nothing may be lost by it
        asking, known = (np.random.default_rng(0).permutation(part, axis=1) for part in (asking, known))
    pieces = cut(asking, known, blocks)
    seen = (asking[:, :, None] == known[:, None]) & (asking > 0)[:, :, None]
    for side, own, other, wanted in (
        (pieces.queries, asking, known, seen),
        (pieces.keys, known, asking, seen.swapaxes(1, 2)),
    ):
        np.testing.assert_array_equal(pairs_of(side, own, other)[wanted], 1)
        for at, slots in enumerate(own):
            begins = np.asarray(side.start[at, : int(side.count[at])])
            held = [set(part[part > 0]) for part in np.split(slots, begins)[1:]]
            assert all(len(part) == 1 for part in held)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_a_piece_begins_with_its_segment_and_sees_no_block_too_many(lengths):
    asking = row(lengths, 200)[None]
    pieces = cut(asking, asking, Blocks(7, 16)).queries
    ends = np.cumsum(lengths)
    starts = [slot for length, end in zip(lengths, ends, strict=True) for slot in range(end - length, end, 7)]
    count = int(pieces.count[0])
    assert pieces.start[0, :count].tolist() == starts
    assert (np.asarray(pieces.start[0, count:]) == 200).all()
    own = [asking[0, start] - 1 for start in starts]
    assert pieces.first[0, :count].tolist() == [ends[segment] - lengths[segment] for segment in own]
    assert pieces.blocks[0, :count].tolist() == [-(-lengths[segment] // 16) for segment in own]


@given(slots=st.integers(1, 5000), step=st.sampled_from([16, 128]))
def test_an_even_block_wastes_no_more_than_any_other_of_its_size(slots, step):
    block = even_block(slots, step, 512)
    assert block % step == 0
    assert 256 <= block <= 512 or padded(slots, step) == block
    others = [size for size in range(256, 513, step) if size >= 256]
    assert slots <= 512 or padded(slots, block) == min(padded(slots, size) for size in others)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_visits_go_with_the_square_of_what_is_seen(name):
    def shares(segments):
        found = visits(name, segments, segments, 64)
        return found and (found.by_query, found.by_key)

    full, nothing = np.ones((2, 2048), np.int32), np.zeros((1, 2048), np.int32)
    half, quarters = row([1024], 2048)[None], row([1024, 1024], 2048)[None]
    if not IMPLEMENTATIONS[name].products:
        assert shares(half) is None
        return
    assert [shares(each) for each in (full, half, quarters, nothing)] == [(1, 1), (0.25, 0.25), (0.5, 0.5), (0, 0)]
    # Flash attention has two products forward and five backward; where two kernels share the latter they make seven.
    assert sum(IMPLEMENTATIONS[name].products.values()) in {7, 9}


def test_auto_is_dense_for_short_rows_and_in_blocks_for_long_ones():
    assert resolved("auto", 128, 512) == "reference"
    assert resolved("auto", 3744, 3744) == "blockwise"
