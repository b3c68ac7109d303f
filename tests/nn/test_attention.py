"""Every implementation against `reference`, and `reference` against a plain softmax of each segment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Case, anywhere, compiled, fill_padding, heads, row, segments
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from lsm_jax.errors import UserError
from lsm_jax.nn.attention import (
    IMPLEMENTATIONS,
    api,
    attention,
    available_implementations,
    interpret_kernels,
    resolve_implementation,
)
from lsm_jax.nn.attention.blocks import BlockSizes, block_ranges

TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2}  # bfloat16 holds 8 bits


def plain(query, key, value):
    scores = np.einsum("shd,thd->hst", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hst,thd->shd", weights / weights.sum(-1, keepdims=True), value)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31 - 1), query_segments=segments(1, 30), key_segments=segments(1, 30))
def test_reference_is_plain_attention_of_each_segment_over_its_own_keys(seed, query_segments, key_segments):
    case = Case(1, 30, 30, 2, 8, "float32", None)
    query, key, value, do = heads(case, seed)
    result = np.asarray(compiled("reference", case)(query, key, value, do, query_segments, key_segments)[0])[0]
    assert (result[query_segments[0] == 0] == 0).all()
    for segment in range(1, 5):
        queries, keys = query_segments[0] == segment, key_segments[0] == segment
        expected = plain(query[0][queries], key[0][keys], value[0][keys]) if keys.any() else 0
        expected = np.broadcast_to(expected, result[queries].shape)
        np.testing.assert_allclose(result[queries], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.queries}x{case.keys}-{case.dtype}")
@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name != "reference"])
@settings(max_examples=8)
@given(data=st.data())
def test_output_and_gradients_are_those_of_reference(name, case, data):
    if name == "splash":
        case = case._replace(block_sizes=None)  # JAX's kernel takes blocks of whole vector registers only
    if name == "cudnn":
        case = case._replace(dtype="bfloat16")  # cuDNN computes no float32
    query_segments = data.draw(segments(case.rows, case.queries))
    key_segments = query_segments if case.is_self else data.draw(segments(case.rows, case.keys))
    ids = query_segments, key_segments
    garbage = data.draw(st.sampled_from([0.0, np.nan, np.inf, 1e30]))
    *parts, do = heads(case, data.draw(st.integers(0, 99)))
    clean = [part.astype(case.dtype) for part in fill_padding(parts, *ids, 0.0)]
    dirty = [part.astype(case.dtype) for part in fill_padding(parts, *ids, garbage)]
    dirty_do = np.where((query_segments == 0)[:, :, None, None], np.float32(garbage), do)
    results = compiled(name, case)(*dirty, dirty_do, *ids)
    expected = compiled("reference", case)(*clean, do, *ids)
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == case.dtype
        # Relative to the largest value: a gradient that sums a whole row's terms carries the rounding of all of them.
        reference = np.asarray(reference, np.float32)
        atol = TOLERANCE[case.dtype] * max(1.0, float(np.abs(reference).max()))
        np.testing.assert_allclose(np.asarray(result, np.float32), reference, atol=atol, rtol=0)
    again = compiled(name, case)(*clean, do, *ids)
    for result, repeated, side in zip(results, again, (*ids[:1] * 2, *ids[1:] * 2), strict=True):
        np.testing.assert_array_equal(result, repeated)  # independent of the garbage, and reproducible
        assert (np.asarray(result)[side == 0] == 0).all()


@pytest.mark.parametrize("slots", [1, 30])
def test_gradients_of_reference_are_rounded_to_16_bits_once(slots):
    """Those of a single key's score are zero, and differences of large numbers in between."""
    case = Case(1, slots, slots, 2, 64, "bfloat16", None)
    ids = np.ones((1, slots), np.int32)
    parts = [jnp.asarray(part, "bfloat16") for part in heads(case, 0)]
    exact = compiled("reference", case._replace(dtype="float32"))(*(part.astype("float32") for part in parts), ids, ids)
    for result, expected in zip(compiled("reference", case)(*parts, ids, ids), exact, strict=True):
        assert result.dtype == "bfloat16"
        atol = 2**-7 * float(jnp.abs(expected).max()) + 1e-5
        np.testing.assert_allclose(np.asarray(result, np.float32), expected, atol=atol, rtol=0)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_padding_reaches_neither_output_nor_gradient_of_reference(garbage):
    case = Case(2, 12, 12, 2, 4, "float32", None)
    ids = np.stack([row([5, 3], 12), row([0], 12)])
    *parts, do = heads(case, 0)
    for result, clean in zip(
        compiled("reference", case)(*fill_padding(parts, ids, ids, garbage), do, ids, ids),
        compiled("reference", case)(*fill_padding(parts, ids, ids, 0.0), do, ids, ids),
        strict=True,
    ):
        np.testing.assert_array_equal(result, clean)
        assert (np.asarray(result)[ids == 0] == 0).all()


def test_tpu_kernels_read_no_uninitialized_memory_and_have_no_races():
    """Pallas' own simulation of a TPU: memory holds NaN until it is written, and copies run beside compute."""
    case = Case(1, 640, 640, 2, 16, "float32", BlockSizes(128, 128, 2))  # the last fetch reaches beyond the row
    ids = row([70, 20, 210], 640)[None]
    *parts, do = heads(case, 1)
    block_mask = block_ranges(jnp.asarray(ids), jnp.asarray(ids), case.block_sizes)
    with interpret_kernels(pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)):
        attend = lambda *parts: attention(*parts, ids, ids, "pallas_tpu", block_mask)  # noqa: E731
        out, vjp = jax.vjp(attend, *map(jnp.asarray, parts))
        results = out, *vjp(jnp.asarray(do))
    expected = compiled("reference", case)(*parts, do, ids, ids)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference, atol=2e-5)


@pytest.mark.parametrize("slots", [512, 2048])
def test_memory_grows_with_the_row_and_not_with_its_square(slots):
    def temporary(name, slots):
        shape = jax.ShapeDtypeStruct((1, slots, 2, 32), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, slots), jnp.int32)
        loss = lambda q, k, v, ids: attention(q, k, v, ids, ids, name).sum()  # noqa: E731
        program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape, ids).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert temporary("blockwise", 2 * slots) < 3 * temporary("blockwise", slots)


def test_cudnn_says_which_types_it_takes():
    heads = (jnp.zeros((1, 1, 1, 8)),) * 3
    with anywhere("cudnn"), pytest.raises(UserError, match=r"model\.dtype=bfloat16"):
        attention(*heads, *(jnp.ones((1, 1), jnp.int32),) * 2, "cudnn")


def test_a_gpu_gets_blockwise_once_jax_has_no_triton_backend(monkeypatch):
    removed = dataclasses.replace(IMPLEMENTATIONS["pallas_gpu"], platforms=frozenset())
    monkeypatch.setattr(api, "platform", lambda: "gpu")
    assert resolve_implementation("auto", 4096, 4096) == "pallas_gpu"
    monkeypatch.setitem(IMPLEMENTATIONS, "pallas_gpu", removed)
    assert resolve_implementation("auto", 4096, 4096) == "blockwise"


@pytest.mark.parametrize("kind", ["AMD Instinct MI300X", "gfx950:sramecc+:xnack-"])
def test_amd_gpus_get_neither_kernels_nor_libraries_of_nvidia(kind):
    def mesh(kind):
        device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
        return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device))

    with mesh("NVIDIA H100 80GB HBM3"):
        assert "cudnn" in available_implementations()
    with mesh(kind):
        assert resolve_implementation("auto", 4096, 4096) == "blockwise"
        assert available_implementations() == ("reference", "blockwise")
        with pytest.raises(UserError, match="'cudnn' does not run on rocm"):
            attention(*(jnp.zeros((1, 1, 1, 1)),) * 3, *(jnp.ones((1, 1), jnp.int32),) * 2, "cudnn")


def test_auto_is_dense_for_short_rows_and_in_blocks_for_long_ones():
    assert resolve_implementation("auto", 128, 512) == "reference"
    assert resolve_implementation("auto", 3744, 3744) == "blockwise"


def test_an_unknown_implementation_is_named():
    with pytest.raises(UserError, match="reference"):
        attention(*(jnp.zeros((1, 1, 1, 1)),) * 3, *(jnp.ones((1, 1), jnp.int32),) * 2, "referense")


@pytest.mark.parametrize("name", sorted(set(IMPLEMENTATIONS) - set(available_implementations())))
def test_an_implementation_that_does_not_run_here_is_refused_with_those_that_do(name):
    with pytest.raises(UserError, match=r"does not run on cpu. These do: auto, reference, blockwise"):
        attention(*(jnp.zeros((1, 1, 1, 1)),) * 3, *(jnp.ones((1, 1), jnp.int32),) * 2, name)
