"""A CPU's cores as devices: as many as share the rows evenly, and only where nobody chose otherwise."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsm_jax.config import Config, MeshConfig, RowsConfig, TrainConfig
from lsm_jax.train import mesh

sizes = st.sampled_from([1, 2, 3, 4])


@given(st.integers(1, 64), st.integers(1, 20), sizes, sizes, sizes)
def test_the_devices_fit_the_mesh_and_share_the_rows_evenly(rows, number, fsdp, per_row, accumulate):
    config = Config(
        mesh=MeshConfig(fsdp=fsdp),
        rows=RowsConfig(windows_per_row=per_row),
        train=TrainConfig(batch_size=rows * fsdp * per_row * accumulate, grad_accum_steps=accumulate),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "cores", lambda: number)
        devices = mesh.cpu_devices_for(config)
    assert devices % fsdp == 0 and fsdp <= devices <= max(number, fsdp)
    assert rows * fsdp % devices == 0
    more = range(devices + fsdp, number + 1, fsdp)
    assert all(rows % (other // fsdp) for other in more)


def test_a_mesh_without_a_free_axis_says_itself_how_many():
    assert mesh.cpu_devices_for(Config(mesh=MeshConfig(data=2, fsdp=3, tensor=1))) == 6


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, 3), ({"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}, 2), ({"JAX_NUM_CPU_DEVICES": "4"}, 4)],
)
def test_what_the_user_chose_stays(chosen, expected):
    program = (
        "import jax; from lsm_jax.train.mesh import use_cores\n"
        "use_cores(3); print(len(jax.devices())); use_cores(5); print(len(jax.devices()))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    environment |= {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", **chosen}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(expected)] * 2
