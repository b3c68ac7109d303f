"""A plan from end to end: a small step compiled for chips that are not there. And how kernels are counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from tiny_run import tiny_dataset

from lsm_jax import objectives
from lsm_jax.cli.main import main
from lsm_jax.config import Config, DataConfig, with_changes
from lsm_jax.data.random_batches import random_batches_with_gaps
from lsm_jax.data.spec import data_spec
from lsm_jax.errors import UserError
from lsm_jax.nn.attention import IMPLEMENTATIONS
from lsm_jax.nn.flops import AttentionShape
from lsm_jax.nn.sizes import StackSize
from lsm_jax.tools.plan import plan as planning
from lsm_jax.tools.plan import search as searching
from lsm_jax.tools.plan.costs import program_flops
from lsm_jax.tools.plan.hlo import read_program
from lsm_jax.tools.plan.topologies import chip_named, installed, split_name
from lsm_jax.train.mesh import make_mesh, to_devices
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import batch_shapes, make_program

CAPACITY, TARGETS = 192, 320
SCHEMA = {
    "topology", "devices", "mesh", "batch_size", "remat", "fits", "bytes_per_device", "hbm_bytes", "useful_flops",
    "executed_flops", "executed_per_useful", "collectives", "step_seconds_bound", "windows_per_second_per_chip_bound",
    "mfu_bound", "compile_seconds", "compile_cpu_seconds", "kernels", "tokens",
}  # fmt: skip


def small_config(**changes):
    return with_changes(
        Config(),
        {
            "data.window_minutes": 120,
            "rows.windows_per_row": 2,
            "rows.encoder_length": CAPACITY,
            "rows.decoder_length": TARGETS,
        }
        | {"model.context_width": 16, "train.batch_size": 8, "train.duration": "100 steps"}
        | {key.replace("__", "."): value for key, value in changes.items()},
    )


@pytest.fixture
def kept(tmp_path):
    """A folder that compiled programs are kept in, as `lsm plan --keep` and `lsm train` say."""
    before = jax.config.values["jax_compilation_cache_dir"]
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "kept"))
    yield tmp_path / "kept"
    compilation_cache.reset_cache()
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("topology", ["v5e:2x2", "h100:1x2"])
def test_a_small_step_is_planned(topology, monkeypatch, kept):
    if not installed(split_name(topology)[0]):
        pytest.skip(f"what compiles for {topology} is not installed (launch/test --pods installs it)")
    texts, read = [], planning.read_program
    monkeypatch.setattr(planning, "read_program", lambda text: texts.append(text) or read(text))
    plan = planning.make_plan(small_config(model__size="2x64x1x128+1x32x1x64"), topology)
    assert plan.keys() >= SCHEMA
    assert plan["fits"]
    assert plan["usable_bytes"] == (0.75 if topology.startswith("h100") else 1) * plan["hbm_bytes"]
    assert not plan["loops_counted_once"]
    assert 0 < sum(plan["bytes_per_device"].values()) < plan["hbm_bytes"]
    assert plan["executed_flops"] > plan["useful_flops"] > 0
    assert 0 < plan["mfu_bound"] < 1
    assert any("all-reduce" in each["kind"] for each in plan["collectives"])
    products = IMPLEMENTATIONS["pallas_gpu" if topology.startswith("h100") else "pallas_tpu"].products
    # Two layers of the encoder, one of the decoder.
    assert plan["kernels"] == {f"segment_attention_{name}": 3 for name in products}
    # Blocks of other windows, and of padding, are not visited.
    assert 0 < plan["executed_flops_of_kernels"] < plan["executed_flops"]
    for scores in (f"{CAPACITY},{CAPACITY}]", f"{TARGETS},{CAPACITY}]", f"{CAPACITY},{TARGETS}]"):
        assert scores not in texts[0]
    assert [file.name.partition("-")[0] for file in kept.iterdir() if "step" in file.name] == ["jit__step"]


def test_what_is_planned_is_what_is_trained():
    """A kept program is found by the text it was compiled from, learning rates and all."""
    config = small_config(optimizer__warmup="10 steps")
    spec = planning.assumed_spec(120)
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    program = make_program(config, objectives.build(config, spec), mesh, TrainSchedule.from_config(config, epoch=800))
    _, (batch,) = random_batches_with_gaps(spec.channels, 120, 0.5, 8, 1, seed=0)
    planned = program.step.lower(program.shapes, batch_shapes(mesh, batch, 8))
    trained = program.step.lower(program.init(), to_devices(mesh, batch, 8))
    assert planned.as_text() == trained.as_text()
    longer = TrainSchedule.from_config(small_config(train__duration="200 steps"), epoch=800)
    other = make_program(config, objectives.build(config, spec), mesh, longer)
    assert other.step.lower(program.shapes, batch_shapes(mesh, batch, 8)).as_text() != planned.as_text()


@pytest.mark.parametrize("variable", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_a_step_must_fit_the_pool_that_jax_takes_on_a_gpu(variable, monkeypatch):
    gpu, tpu = chip_named("h100").memory, chip_named("v5e").memory
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert planning.usable_memory("h100") == int(0.75 * gpu)
    monkeypatch.setenv(variable, "0.9")
    assert planning.usable_memory("h100") == int(0.9 * gpu)
    assert planning.usable_memory("v5e") == tpu
    monkeypatch.setenv(variable, "90%")
    with pytest.raises(UserError, match=f"{variable}=90%: give the share"):
        planning.usable_memory("h100")


def test_a_plan_says_what_data_it_is_of(monkeypatch, tmp_path):
    class TooLarge:
        """A program that no device has the memory for, which ends a plan early."""

        step = shapes = property(lambda self: self)

        def lower(self, *_):
            return self

        def compile(self, **_):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(planning, "topology_devices", lambda _: jax.devices()[:1])
    monkeypatch.setattr(planning, "make_program", lambda *_: TooLarge())
    dataset = tiny_dataset(tmp_path / "data")
    missing = 1 - np.mean(data_spec(DataConfig(), [dataset]).observed_share)
    for changes, described in (
        ({}, "assumed: 26 channels, 49% missing in synthetic blocks"),
        ({"data__channels": ("heart_rate", "steps")}, "assumed: 2 channels, 49% missing in synthetic blocks"),
        (
            {"data__paths": (str(tmp_path / "data"),)},
            f"from the datasets: 3 channels, {missing:.0%} missing in synthetic blocks",
        ),
    ):
        plan = planning.make_plan(small_config(**changes), "h100:1x1")
        assert plan["data"] == described
        assert not plan["fits"]


def test_rows_must_divide_among_devices():
    if not installed("v5e"):
        pytest.skip("what compiles for v5e is not installed (launch/test --pods installs it)")
    with pytest.raises(UserError, match="multiple of 8"):
        planning.make_plan(small_config(train__batch_size=4), "v5e:2x2")


@pytest.mark.parametrize(("implementation", "backward"), [("pallas_gpu", 7), ("pallas_tpu", 5)])
def test_kernels_count_the_blocks_they_compute(implementation, backward):
    queries = np.repeat(np.arange(1, 9), 96)[None]
    keys = np.repeat(np.arange(1, 9), 64)[None]
    stack = StackSize(1, 128, 2, 256)
    shape = AttentionShape(jnp.asarray(queries), jnp.asarray(keys), stack, segments=8)
    blocks = IMPLEMENTATIONS[implementation].block_sizes(768, 512, 64)
    query_blocks = [{*block} for block in queries.reshape(-1, blocks.query)]
    key_blocks = [{*block} for block in keys.reshape(-1, blocks.key)]
    pairs = sum(bool(ours & theirs) for ours in query_blocks for theirs in key_blocks)
    all_pairs = len(query_blocks) * len(key_blocks)
    product = 2 * blocks.query * blocks.key * 2 * 64

    def counted(kernel, products, sparsity):
        """FLOPs of a program with this kernel alone, which states the FLOPs of all pairs of blocks."""
        stated = f'"flops": "{products * product * all_pairs}"'
        named = {
            "pallas_tpu": (f"segment_attention_{kernel}.1", stated),
            "pallas_gpu": ("pallas_call.7", f'backend_config={{name = "segment_attention_{kernel}" {stated}}}'),
        }
        name, attributes = named[implementation]
        return program_flops(
            read_program(
                f"""HloModule step

ENTRY %main (q: bf16[1,768,2,64], k: bf16[1,512,2,64]) -> bf16[1,768,2,64] {{
  %q = bf16[1,768,2,64] parameter(0)
  %k = bf16[1,512,2,64] parameter(1)
  ROOT %{name} = bf16[1,768,2,64] custom-call(%q, %k), {attributes}
}}
"""
            ),
            sparsity,
        )

    kernels = IMPLEMENTATIONS[implementation].products
    sparsity = planning.block_sparsities([shape], implementation)
    found = {name: counted(name, products, sparsity) for name, products in kernels.items()}
    assert found["forward"].kernels == pytest.approx(2 * product * pairs)
    assert sum(each.kernels for each in found.values()) == pytest.approx((2 + backward) * product * pairs)
    assert sum(each.repeated_scores for each in found.values()) == pytest.approx(product * pairs)
    # A kernel whose row lengths are not among those of the plan computes every pair.
    assert counted("forward", 2, []).kernels == 2 * product * all_pairs


@pytest.mark.parametrize(("kind", "devices_per_chip"), [("v5e", 1), ("tpu7x", 2)])
def test_windows_are_per_chip_also_where_a_chip_is_two_devices(kind, devices_per_chip):
    product = read_program(
        """HloModule step

ENTRY %main (a: bf16[512,512], b: bf16[512,512]) -> bf16[512,512] {
  %a = bf16[512,512]{1,0} parameter(0)
  %b = bf16[512,512]{1,0} parameter(1)
  ROOT %dot = bf16[512,512]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    )
    costs = planning.step_costs(product, [0] * 8, chip_named(kind), useful=1e9, sparsity=[], batch_size=64)
    seconds, chips = costs["step_seconds_bound"], 8 / devices_per_chip
    assert costs["windows_per_second_per_chip_bound"] == pytest.approx(64 / seconds / chips)
    assert costs["bound_seconds"]["compute"] == pytest.approx(2 * 512**3 * devices_per_chip / chip_named(kind).peak)


def test_a_limit_without_a_search_is_refused(capsys):
    assert main(["plan", "--config", "configs/lsm2.py:base", "--topology", "v5e:2x2", "--seconds", "5"]) == 2
    assert "--seconds has no effect without --search" in capsys.readouterr().err


def test_the_search_keeps_the_fastest_that_fits(monkeypatch):
    tried = []

    def make_plan(config, topology):
        batch_size, remat = config.train.batch_size, config.model.remat
        tried.append((config.mesh.fsdp, batch_size, remat))
        needed = batch_size * {"none": 4, "dots": 2, "full": 1}[remat]
        speed = batch_size / {"none": 1, "dots": 1.5, "full": 2}[remat] / config.mesh.fsdp
        return {
            "mesh": {"data": 4 // config.mesh.fsdp, "fsdp": config.mesh.fsdp},
            "batch_size": batch_size, "remat": remat, "fits": needed <= 64, "bytes_per_device": {"all": needed},
            "windows_per_second_per_chip_bound": speed,
        }  # fmt: skip

    monkeypatch.setattr(searching, "make_plan", make_plan)
    monkeypatch.setattr(searching, "topology_devices", lambda _: [None] * 4)
    best, trials = searching.search(small_config(train__batch_size=16), "v5e:2x2", 60.0, lambda _: None)
    assert (best["batch_size"], best["remat"], best["mesh"]["fsdp"]) == (32, "dots", 1)
    assert trials[0]["batch_size"] == 32
    assert len(tried) == len(set(tried)) == len(trials)
    # What fits without recomputing is not tried with it.
    assert not any(size <= 16 and remat != "none" for _, size, remat in tried)
    _, trials = searching.search(small_config(train__batch_size=16), "v5e:2x2", 0.0, lambda _: None)
    assert len(trials) == 1
