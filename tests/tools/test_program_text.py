"""Costs read from the text of compiled programs, for programs whose cost is known by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.errors import UserError
from lsm_jax.tools.plan.costs import collectives, moved_bytes, program_flops
from lsm_jax.tools.plan.hlo import Computation, executed, read_program
from lsm_jax.tools.plan.topologies import split_name
from lsm_jax.train.hardware import CHIPS, chip_of, total_peak

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


def program(limit: int, known: str = "") -> Computation:
    return read_program(PROGRAM.format(limit=limit, known=known))


def loops_of_unknown_length(entry: Computation) -> list[str]:
    return [each.name for _, inner in executed(entry, True) for each in inner if not each.known_trip_count]


@given(st.integers(1, 1000))
@settings(max_examples=15)
def test_every_iteration_of_a_loop_is_counted(trips: int) -> None:
    noted = f', backend_config={{"known_trip_count":{{"n":"{trips}"}}}}'
    for entry in (program(trips), program(0, noted)):
        assert program_flops(entry, []).products == trips * 2 * 8 * 4 * 4
        assert not loops_of_unknown_length(entry)


def test_a_loop_with_a_peeled_iteration_runs_once_less() -> None:
    """A loop whose first iteration was peeled off counts from 1."""
    peeled = PROGRAM.replace("%zero = s32[] constant(0)", "%one = s32[] constant(1)\n  %zero = s32[] copy(%one)")
    entry = read_program(peeled.format(limit=5, known=""))
    assert program_flops(entry, []).products == 4 * 2 * 8 * 4 * 4
    assert not loops_of_unknown_length(entry)


def test_a_loop_of_unknown_length_is_counted_once_and_named() -> None:
    entry = read_program(PROGRAM.replace("direction=LT", "direction=NE").format(limit=5, known=""))
    assert program_flops(entry, []).products == 2 * 8 * 4 * 4
    assert loops_of_unknown_length(entry) == ["loop"]


def test_collectives_their_counts_groups_and_overlap() -> None:
    found = {each.overlapped: each for each in collectives(program(3), [0] * 4, CHIPS[0], [])}
    assert (found[True].count, found[True].group, found[True].bytes) == (3, 4, 3 * 128)
    assert (found[False].count, found[False].group, found[False].bytes) == (1, 2, 128)
    assert found[False].seconds_at_least == pytest.approx(128 / CHIPS[0].link_bandwidth)


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


def test_a_collective_split_over_fusions_counts_once_and_overlaps() -> None:
    entry = read_program(FUSED)
    (found,) = collectives(entry, [0] * 4, CHIPS[0], [])
    assert (found.kind, found.count, found.bytes, found.group, found.overlapped) == ("all-reduce", 1, 128, 4, True)
    # Two arguments of 128 and 64 bytes; of the fusions, the product's result and that of the last part of the sum.
    assert moved_bytes(entry) == 128 + 64 + 2 * (128 + 2 * 128)
    # Other work counts if it takes as long as the links do; the first and the last fusion are no such work.
    entry = read_program(FUSED.replace("dot(%b, %c)", "add(%b, %c)"))
    for share, overlapped in ((0.99, False), (1.0, True)):
        chip = dataclasses.replace(CHIPS[0], memory_bandwidth=2 * 128 / (share * found.seconds_at_least))
        (again,) = collectives(entry, [0] * 4, chip, [])
        assert again.overlapped is overlapped


def test_an_allocation_is_no_memory_traffic() -> None:
    text = """HloModule step

ENTRY %main (x: f32[8,4]) -> (f32[8,4], f32[64]) {
  %x = f32[8,4]{1,0} parameter(0)
  %room = f32[64]{0} custom-call(), custom_call_target="AllocateBuffer"
  %twice = f32[8,4]{1,0} add(%x, %x)
  ROOT %both = (f32[8,4]{1,0}, f32[64]{0}) tuple(%twice, %room)
}
"""
    assert moved_bytes(read_program(text)) == 8 * 4 * 4 * 3  # the argument, and a result written and read


@pytest.mark.parametrize(
    ("groups", "size", "span"),
    [
        ("replica_groups={{0,2},{1,3}}", 2, 2),
        ("replica_groups=[2,2]<=[4]", 2, 1),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", 2, 2),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", 2, 2),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}", 2, 1),
        ("replica_groups={}", 4, 2),
    ],
)
def test_groups_in_every_notation(groups: str, size: int, span: int) -> None:
    text = f"""HloModule step

ENTRY %main (x: f32[8,4]) -> f32[8,4] {{
  %x = f32[8,4]{{1,0}} parameter(0)
  ROOT %all = f32[8,4]{{1,0}} all-reduce(%x), {groups}, to_apply=%sum
}}
"""
    (found,) = collectives(read_program(text), [0, 0, 1, 1], CHIPS[0], [])
    assert (found.group, found.hosts) == (size, span)


@given(*(st.integers(1, 6),) * 2, *(st.integers(1, 3),) * 3, st.integers(0, 5), st.integers(1, 7))
@settings(max_examples=25)
def test_taps_on_padding_and_holes_do_no_work(size, taps, stride, hole, spread, low, positions) -> None:
    dilated = np.zeros((size - 1) * hole + 1, bool)
    dilated[::hole] = True
    indices = [position * stride + tap * spread - low for position in range(positions) for tap in range(taps)]
    expected = sum(0 <= index < len(dilated) and bool(dilated[index]) for index in indices)
    text = f"""HloModule step

ENTRY %main (x: f32[3,{size},5], k: f32[{taps},5,7]) -> f32[3,{positions},7] {{
  %x = f32[3,{size},5] parameter(0)
  %k = f32[{taps},5,7] parameter(1)
  ROOT %y = f32[3,{positions},7] convolution(%x, %k), window={{size={taps} stride={stride} pad={low}_0 \
lhs_dilate={hole} rhs_dilate={spread}}}, dim_labels=b0f_0io->b0f
}}
"""
    assert program_flops(read_program(text), []).products == pytest.approx(2 * 3 * 5 * 7 * expected)


def test_a_text_that_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        read_program("nothing")


@pytest.mark.parametrize(("platform", "size", "dtype"), [("cpu", 1536, jnp.float32), ("gpu", 8192, jnp.bfloat16)])
def test_a_device_without_a_data_sheet_is_measured_by_a_long_product(platform, size, dtype, monkeypatch) -> None:
    measured = []
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jnp, "matmul", lambda left, right: measured.append((left.shape, left.dtype)) or left[0, 0])
    peak, origin = total_peak(0)
    assert measured == [((size, size), dtype)]
    assert peak > 0
    assert f"{jnp.dtype(dtype).name} {size} x {size} matrix product" in origin


def test_chips_and_topologies_are_found_by_name() -> None:
    assert chip_of("NVIDIA L40S") is None
    names = {
        "TPU v5": "v5p", "TPU v5 lite": "v5e", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H100 NVL": "h100-nvl", "NVIDIA H200": "h200", "NVIDIA H200 NVL": "h200-nvl",
    }  # fmt: skip
    assert {kind: chip_of(kind).name for kind in names} == names
    assert split_name("v5e:16x16") == ("v5e", (16, 16))
    for wrong in ("v5 e:16x16", "v5e:16", "q:3", "h100:0x8"):
        with pytest.raises(UserError, match="no topology"):
            split_name(wrong)
