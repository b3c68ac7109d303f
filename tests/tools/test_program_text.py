"""Counting in the text of compiled programs, against programs whose cost is known by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.errors import UserError
from lsm_jax.tools.plan import arithmetic, hlo
from lsm_jax.tools.plan.collectives import collectives, replica_groups
from lsm_jax.tools.plan.topologies import split_name
from lsm_jax.train.hardware import CHIPS, chip_of

PROGRAM = """HloModule step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {{
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}}

%body (state: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {{
  %state = (s32[], f32[8,4]{{1,0}}) parameter(0)
  %count = s32[] get-tuple-element(%state), index=0
  %left = f32[8,4]{{1,0}} get-tuple-element(%state), index=1
  %right = f32[4,4]{{1,0}} constant({{...}})
  %start = f32[8,4]{{1,0}} all-reduce-start(%left), replica_groups=[1,4]<=[4], to_apply=%sum
  %product = f32[8,4]{{1,0}} dot(%left, %right), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %done = f32[8,4]{{1,0}} all-reduce-done(%start)
  ROOT %next = (s32[], f32[8,4]{{1,0}}) tuple(%count, %product)
}}

%test (state.1: (s32[], f32[8,4])) -> pred[] {{
  %state.1 = (s32[], f32[8,4]{{1,0}}) parameter(0)
  %limit = s32[] constant({limit})
  %count.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%count.1, %limit), direction=LT
}}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {{
  %x = f32[8,4]{{1,0}} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[8,4]{{1,0}}) tuple(%zero, %x)
  %loop = (s32[], f32[8,4]{{1,0}}) while(%begin), condition=%test, body=%body{known}
  %out = f32[8,4]{{1,0}} get-tuple-element(%loop), index=1
  ROOT %all = f32[8,4]{{1,0}} all-reduce(%out), replica_groups=mesh['a'=2,'b'=2] {{'b'}}, to_apply=%sum
}}
"""
NO_KERNELS = lambda *_: 0.0  # noqa: E731


def program(limit: int, known: str = "") -> hlo.Program:
    return hlo.read(PROGRAM.format(limit=limit, known=known))


@given(st.integers(1, 1000))
@settings(max_examples=15)
def test_trip_counts_multiply(trips: int) -> None:
    known = f', backend_config={{"known_trip_count":{{"n":"{trips}"}}}}'
    for read in (program(trips), program(0, known)):
        assert arithmetic.flops(read, read.computations[read.entry], NO_KERNELS) == trips * 2 * 8 * 4 * 4
        assert not read.guessed


def test_a_loop_that_begins_later_runs_less_often() -> None:
    """A loop whose first iteration was peeled off counts from 1."""
    peeled = PROGRAM.replace("%zero = s32[] constant(0)", "%one = s32[] constant(1)\n  %zero = s32[] copy(%one)")
    read = hlo.read(peeled.format(limit=5, known=""))
    assert read.trips == {"loop": 4}
    assert not read.guessed


def test_collectives_their_counts_groups_and_overlap() -> None:
    read = program(3)
    computes = lambda inside, each: arithmetic.product_flops(inside, each) > 0  # noqa: E731
    found = {each.overlapped: each for each in collectives(read, [0] * 4, CHIPS[0], computes, NO_KERNELS)}
    assert (found[True].count, found[True].group, found[True].bytes) == (3, 4, 128)
    assert (found[False].count, found[False].group, found[False].bytes) == (1, 2, 128)
    assert found[False].seconds == pytest.approx(128 / CHIPS[0].link_bandwidth)


FUSED = """HloModule step, is_scheduled=true

%begun (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4] parameter(0)
  ROOT %sum.1 = f32[8,4] all-reduce(%a), channel_id=7, replica_groups=[1,4]<=[4], to_apply=%add
}

%meanwhile (b: f32[8,4], c: f32[4,4]) -> (f32[8,4], f32[8,4]) {
  %b = f32[8,4] parameter(0)
  %c = f32[4,4] parameter(1)
  %sum.2 = f32[8,4] all-reduce(%b), channel_id=7, replica_groups=[1,4]<=[4], to_apply=%add
  %product = f32[8,4] dot(%b, %c), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %both = (f32[8,4], f32[8,4]) tuple(%sum.2, %product)
}

ENTRY %main (x: f32[8,4], y: f32[4,4]) -> f32[8,4] {
  %x = f32[8,4] parameter(0)
  %y = f32[4,4] parameter(1)
  %async-collective-start = f32[8,4] fusion(%x), kind=kCustom, calls=%begun
  %fusion.1 = (f32[8,4], f32[8,4]) fusion(%async-collective-start, %y), kind=kOutput, calls=%meanwhile
  %part = f32[8,4] get-tuple-element(%fusion.1), index=0
  ROOT %async-collective-done = f32[8,4] fusion(%part), kind=kCustom, calls=%begun
}
"""


def test_a_collective_taken_apart_into_fusions_is_one_and_overlapped() -> None:
    computes = lambda inside, each: arithmetic.instruction_flops(read, inside, each, NO_KERNELS) > 0  # noqa: E731
    read = hlo.read(FUSED)
    (found,) = collectives(read, [0] * 4, CHIPS[0], computes, NO_KERNELS)
    assert (found.kind, found.count, found.bytes, found.group, found.overlapped) == ("all-reduce", 1, 128, 4, True)
    main = read.computations[read.entry]
    # What the product writes; the sum's buffer is no traffic of the fusion that takes a piece of it further.
    assert arithmetic.written_bytes(read, main, main.by_name["fusion.1"]) == 128
    # Other work counts if it takes as long as the links do; the start and the end are no such work.
    read = hlo.read(FUSED.replace("dot(%b, %c)", "add(%b, %c)"))
    for share, overlapped in ((0.99, False), (1.0, True)):
        moving = lambda _, each, taken=share * found.seconds: taken  # noqa: E731
        (again,) = collectives(read, [0] * 4, CHIPS[0], computes, moving)
        assert again.overlapped is overlapped


def test_room_set_aside_is_no_traffic() -> None:
    text = """HloModule step

ENTRY %main (x: f32[8,4]) -> (f32[8,4], f32[64]) {
  %x = f32[8,4]{1,0} parameter(0)
  %room = f32[64]{0} custom-call(), custom_call_target="AllocateBuffer"
  %twice = f32[8,4]{1,0} add(%x, %x)
  ROOT %both = (f32[8,4]{1,0}, f32[64]{0}) tuple(%twice, %room)
}
"""
    assert arithmetic.moved_bytes(hlo.read(text)) == 8 * 4 * 4 * 3  # the argument, and a result written and read


def test_groups_in_every_form() -> None:
    assert replica_groups("replica_groups={{0,2},{1,3}}, x", 4).tolist() == [[0, 2], [1, 3]]
    assert replica_groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4).tolist() == [[0, 2], [1, 3]]
    assert replica_groups("replica_groups=mesh['a'=2,'b'=2] {'a'}", 4).tolist() == [[0, 2], [1, 3]]
    assert replica_groups("replica_groups={}", 4).tolist() == [[0, 1, 2, 3]]


@given(*(st.integers(1, 6),) * 2, *(st.integers(1, 3),) * 3, st.integers(0, 5), st.integers(1, 7))
@settings(max_examples=25)
def test_taps_on_padding_and_holes_do_no_work(size, taps, stride, hole, spread, low, positions) -> None:
    dilated = np.zeros((size - 1) * hole + 1, bool)
    dilated[::hole] = True
    places = [position * stride + tap * spread - low for position in range(positions) for tap in range(taps)]
    wanted = sum(0 <= place < len(dilated) and bool(dilated[place]) for place in places)
    window = f"size={taps} stride={stride} pad={low}_0 lhs_dilate={hole} rhs_dilate={spread}"
    assert arithmetic._meetings(size, taps, positions, window, 0) == wanted


def test_a_text_that_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.read("nothing")


def test_chips_are_told_apart_and_topologies_named() -> None:
    assert chip_of("NVIDIA L40S") is None
    assert {name: chip_of(name).name for name in ("TPU v5", "TPU v5 lite", "NVIDIA H100 80GB HBM3")} == {
        "TPU v5": "v5p", "TPU v5 lite": "v5e", "NVIDIA H100 80GB HBM3": "h100",
    }  # fmt: skip
    assert split_name("v5e:16x16") == ("v5e", (16, 16))
    for wrong in ("v5 e:16x16", "v5e:16", "q:3", "h100:0x8"):
        with pytest.raises(UserError, match="no topology"):
            split_name(wrong)
