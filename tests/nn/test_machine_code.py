"""The kernels compile to machine code without the hardware, and every device of a mesh computes its own rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lsm_jax.nn.attention import IMPLEMENTATIONS, attention
from lsm_jax.sharding import AXES
from lsm_jax.tools.plan.topologies import installed, split_name, topology_devices

# topology, query slots, key slots, head size, type; 200 is 72 mod 128, 24 no whole tile of anything
PROGRAMS = (
    ("v4:2x2x1", 200, 200, 64, "bfloat16"),
    ("v5e:2x2", 200, 300, 24, "float32"),
    ("v5e:2x2", 600, 600, 256, "float32"),
    ("v5p:2x2x1", 640, 1100, 64, "bfloat16"),
    ("v6e:2x2", 2200, 12416, 128, "bfloat16"),
    ("tpu7x:2x2x1", 300, 160, 80, "bfloat16"),
    ("h100:1x8", 200, 100, 24, "float32"),
    ("h100:1x8", 300, 300, 64, "bfloat16"),
    ("h100:1x8", 300, 300, 128, "bfloat16"),
    ("h100:1x8", 300, 300, 256, "float32"),
)


@pytest.mark.parametrize(("topology", "queries", "keys", "head_size", "dtype"), PROGRAMS)
def test_auto_compiles_to_kernels_without_scores_or_collectives(topology, queries, keys, head_size, dtype):
    if not installed(split_name(topology)[0]):
        pytest.skip(f"what compiles for {topology} is not installed (launch/test --pods installs it)")
    devices = np.array(topology_devices(topology))
    mesh = Mesh(devices.reshape(-1, 1, 2), AXES, axis_types=(AxisType.Auto,) * 3)
    rows = 2 * mesh.shape["data"]

    def loss(query, key, value, query_segments, key_segments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return attention(query, key, value, query_segments, key_segments).astype(jnp.float32).sum()

    def shape(slots, *rest, of=dtype):
        sharding = NamedSharding(mesh, PartitionSpec("data", None, "tensor") if rest else PartitionSpec("data"))
        return jax.ShapeDtypeStruct((rows, slots, *rest), of, sharding=sharding)

    heads = shape(queries, 2, head_size), *(shape(keys, 2, head_size),) * 2
    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*heads, shape(queries, of="int32"), shape(keys, of="int32"))
    text = program.compile().as_text()
    for kernel in IMPLEMENTATIONS["pallas_gpu" if topology.startswith("h100") else "pallas_tpu"].products:
        assert f"segment_attention_{kernel}" in text
    assert f",{queries},{keys}]" not in text
    assert not any(kind in text for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))


MESHES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from lsm_jax.nn.attention import attention, interpret_kernels
random = np.random.default_rng(0)
for rows, heads, data, fsdp, tensor in ((4, 2, 2, 2, 2), (2, 2, 2, 4, 1), (3, 3, 2, 2, 2)):
    mesh = jax.make_mesh((data, fsdp, tensor), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    parts = [jnp.asarray(random.normal(size=(rows, 40, heads, 8)), jnp.float32) for _ in range(3)]
    segments = jnp.asarray(random.integers(0, 3, (rows, 40)), jnp.int32)
    for name in ("reference", "blockwise", "pallas_tpu", "pallas_gpu"):
        def loss(parts, segments):
            return jnp.sin(attention(*parts, segments, segments, name)).sum()
        def on_mesh(parts, segments):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return loss(parts, segments)
        with interpret_kernels():
            alone = jax.jit(jax.value_and_grad(loss))(parts, segments)
            spread = NamedSharding(mesh, PartitionSpec(("data", "fsdp") if rows % (data * fsdp) == 0 else None))
            step = jax.jit(jax.value_and_grad(on_mesh), in_shardings=(spread, spread))
            if rows == 4:
                text = step.lower(parts, segments).compile().as_text()
                assert "all-to-all" not in text and "collective-permute" not in text, name
            together = step(parts, segments)
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together)):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
print("same")
"""


def test_a_mesh_changes_nothing_whether_rows_and_heads_divide_or_not(run_with_devices):
    assert run_with_devices(MESHES).strip() == "same"
