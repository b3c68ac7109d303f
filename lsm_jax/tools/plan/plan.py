"""Compiles the training step of a configuration for a topology, and reports its memory, FLOPs and time at least."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm_jax import objectives
from lsm_jax.channels import MINUTELY_26, channels
from lsm_jax.config import Config, with_changes
from lsm_jax.data.random_batches import random_batches_with_gaps
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec, data_spec, datasets_with_weight, open_datasets
from lsm_jax.data.targets import Targets, with_targets
from lsm_jax.errors import RunError, UserError
from lsm_jax.nn.attention import block_sparsity
from lsm_jax.nn.flops import AttentionShape
from lsm_jax.tools.plan.costs import Sparsities, collectives, moved_bytes, program_flops
from lsm_jax.tools.plan.hlo import Computation, executed, read_program
from lsm_jax.tools.plan.topologies import GPUS, chip_named, split_name, topology_devices
from lsm_jax.train.hardware import Chip, compiler_options
from lsm_jax.train.mesh import check_batch, make_mesh
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import Program, batch_shapes, is_sum, make_program

# Without a dataset: the papers' 26 minutely features, of which 51 % are recorded (arXiv 2506.05321).
ASSUMED_OBSERVED = 0.51
# The share of a GPU's memory in JAX's pool, and its variables, the current name and the old one.
_POOL_SHARE, _POOL_SHARES = 0.75, ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_SAMPLED_ROWS = 8  # rows of synthetic windows over which useful FLOPs are counted
# Without a GPU XLA cannot try kernels, and some of the Triton matrix products that it then chooses fail to compile.
_WITHOUT_GPU: dict[str, Any] = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


def make_plan(config: Config, topology: str) -> dict[str, Any]:
    """The content of `plan.json`: what a training step of this configuration does on a topology.

    Raises:
      UserError: no such topology, its compiler is not installed, or a setting is wrong.
      RunError: the compiler failed for another reason than memory.
    """
    if config.model.dtype == "auto":  # would be chosen for this machine
        config = with_changes(config, {"model.dtype": "bfloat16"})
    devices, (kind, _) = topology_devices(topology), split_name(topology)
    platform, chip = "gpu" if kind in GPUS else "tpu", chip_named(kind)
    usable = usable_memory(kind)
    mesh, batch_size = make_mesh(config.mesh, devices), config.train.batch_size
    try:
        check_batch(mesh, config)
    except UserError as error:
        raise UserError(f"{topology}: {error}") from None
    config, spec, training_windows = _with_data(config)
    plan: dict[str, Any] = {
        "topology": topology,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "batch_size": batch_size,
        "remat": config.model.remat,
        "hbm_bytes": chip.per_device().memory,
        "usable_bytes": usable,
        "hbm_source": chip.source,
        "data": f"{'from the datasets' if config.data.paths else 'assumed'}: {len(spec.channels)} channels, "
        f"{_missing(spec):.0%} missing in synthetic blocks",
    }
    wall, cpu = time.perf_counter(), time.process_time()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        # Learning rates are constants of the program. With the run's own ones, the run can use the compiled program.
        schedule = TrainSchedule.from_config(config, training_windows)
        program = make_program(config, objectives.build(config, spec), mesh, schedule)
    # JAX tries to load a program that it finds in the compilation cache, which only works on the topology itself.
    warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
    lowered = program.step.lower(program.shapes, batch_shapes(mesh, synthetic_batch(config, spec, 1), batch_size))
    options = compiler_options(platform) | (_WITHOUT_GPU if platform == "gpu" else {})
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise RunError(f"{topology}: the compiler failed: {str(error)[:500]}") from None
        return plan | {"fits": False, "reason": str(error).splitlines()[0][:500]}
    plan["compile_seconds"] = time.perf_counter() - wall
    plan["compile_cpu_seconds"] = time.process_time() - cpu
    memory = memory_by_use(program, compiled)
    plan |= {"fits": sum(memory.values()) <= usable, "bytes_per_device": memory}
    counts, shapes = count_tokens_and_flops(config, spec)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        sparsity = block_sparsities(shapes, config.model.attention)
    hosts = [device.process_index if platform == "gpu" else 0 for device in mesh.devices.flat]
    useful = counts.pop("useful_flops") * batch_size
    entry = read_program(compiled.as_text())
    return plan | {"tokens": counts} | step_costs(entry, hosts, chip, useful, sparsity, batch_size)


def usable_memory(kind: str) -> int:
    """Bytes of a device that a run can use. On GPUs they are JAX's pool: 75 % of the memory, or what its variable says.

    Raises:
      UserError: the variable is no share.
    """
    memory = chip_named(kind).per_device().memory
    if kind not in GPUS:
        return memory
    name = next((name for name in _POOL_SHARES if os.environ.get(name)), "")
    try:
        share = float(os.environ[name]) if name else _POOL_SHARE
    except ValueError:
        share = 0.0
    if not 0 < share < math.inf:
        raise UserError(f"{name}={os.environ[name]}: give the share of a GPU's memory that JAX may use, such as 0.9.")
    return int(share * memory)


def _with_data(config: Config) -> tuple[Config, DataSpec, int]:
    """With what is known of the data, and the windows of the training split; assumptions without a dataset."""
    if not config.data.paths:
        return config, assumed_spec(config.data.window_minutes, tuple(config.data.channels) or MINUTELY_26), 10**9
    datasets = open_datasets(config.data)
    windows = sum(len(dataset.source("train")) for dataset in datasets_with_weight(config.data, datasets))
    return with_targets(config, datasets), data_spec(config.data, datasets), windows


def assumed_spec(window_minutes: int, names: tuple[str, ...] = MINUTELY_26) -> DataSpec:
    """The data that a plan assumes if the configuration names no dataset.

    Raises:
      UserError: a channel is unknown.
    """
    registered = channels(names)
    mean, sd = (np.array([getattr(each, name) for each in registered], np.float32) for name in ("mean", "sd"))
    return DataSpec(names, mean, sd, window_minutes, np.full(len(registered), ASSUMED_OBSERVED, np.float32))


def synthetic_batch(config: Config, spec: DataSpec, windows: int) -> dict[str, np.ndarray]:
    """Windows with realistic gaps, and captions of the maximal length if the objective learns from text."""
    balance = RowBalancer.for_batch(windows, config.rows.windows_per_row, grad_accum_steps=1)
    _, (batch,) = random_batches_with_gaps(
        spec.channels, spec.window_minutes, _missing(spec), windows, 1, seed=0, balance=balance
    )
    if config.language.levels:
        batch = batch | {"text": np.ones((windows, config.language.text_length), np.int32)}
    if targets := Targets.from_config(config):
        batch = batch | targets.empty(windows)
    if config.objective.person_weight:
        batch = batch | {"person": np.arange(windows, dtype=np.int32) // 2}
    return batch


def _missing(spec: DataSpec) -> float:
    """The share of cells that are missing, on average."""
    return 1 - float(np.mean(spec.observed_share))


def count_tokens_and_flops(config: Config, spec: DataSpec) -> tuple[dict[str, float], list[AttentionShape]]:
    """The objective's metrics of tokens and useful FLOPs for a mean window, and the segments that attention has.

    Both are of synthetic windows. Metrics that are sums are divided by the number of windows.
    """
    # An implementation that every machine has; attention itself is not run.
    objective = objectives.build(with_changes(config, {"model.attention": "reference"}), spec)
    windows, key = _SAMPLED_ROWS * config.rows.windows_per_row, jax.random.key(0)
    shapes = jax.eval_shape(objective.init, key)

    def count(batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], list[AttentionShape]]:
        # No metric that is returned depends on the parameters, so that XLA removes the network.
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        metrics = objective.loss(zeros, batch, key)[1]
        counts = {name: value for name, value in metrics.items() if name.startswith(("tokens_", "useful_", "row_"))}
        return counts, objective.attention_shapes(batch, key)

    metrics, attention_shapes = jax.jit(count)(synthetic_batch(config, spec, windows))
    counts = {name: float(value) / (windows if is_sum(name) else 1) for name, value in metrics.items()}
    return counts, attention_shapes


def block_sparsities(shapes: Sequence[AttentionShape], implementation: str) -> Sparsities:
    """The blocks that an implementation computes for given segments. Call it inside the mesh of the topology."""
    found = [
        block_sparsity(implementation, each.queries, each.keys, each.size.width // each.size.heads)
        for each in shapes
        if each.skips_blocks
    ]
    return [each for each in found if each]


def memory_by_use(program: Program, compiled: Any) -> dict[str, int]:
    """Bytes per device. Arguments and results share memory where the state is donated."""

    def size(tree: Any) -> int:
        leaves = jax.tree.leaves(tree)
        return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)

    stats = compiled.memory_analysis()
    state = {
        "parameters": size(program.shapes.params) + size(program.shapes.ema),
        "optimizer": size(program.shapes.opt_state),
    }
    return state | {
        "batch_and_padding": max(0, stats.argument_size_in_bytes - sum(state.values())),
        "results_not_in_place": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }


def step_costs(
    entry: Computation,
    hosts: Sequence[int],
    chip: Chip,
    useful: float,
    sparsity: Sparsities,
    batch_size: int,
) -> dict[str, Any]:
    """FLOPs of all devices, memory traffic, collectives and the least time of a compiled step.

    Args:
      entry: the program of one device.
      hosts: of each device.
    """
    devices, chips = len(hosts), len(hosts) / chip.devices
    chip = chip.per_device()
    flops, moved = program_flops(entry, sparsity), moved_bytes(entry)
    executed_flops = flops.products + flops.kernels
    exchanged = collectives(entry, hosts, chip, sparsity)
    bounds = {
        "compute": executed_flops / chip.peak,
        "memory": moved / chip.memory_bandwidth,
        "links": sum(each.seconds_at_least for each in exchanged),
        "exposed_links": sum(each.seconds_at_least for each in exchanged if not each.overlapped),
    }
    seconds = max(max(bounds["compute"], bounds["memory"]) + bounds["exposed_links"], bounds["links"])
    unknown = {each.name for _, inner in executed(entry, True) for each in inner if not each.known_trip_count}
    return {
        "useful_flops": useful,
        "executed_flops": executed_flops * devices,
        "executed_flops_of_kernels": flops.kernels * devices,
        "executed_flops_of_scores_again": flops.repeated_scores * devices,
        "executed_per_useful": (executed_flops - flops.repeated_scores) * devices / useful,
        "kernels": dict(flops.kernel_runs),
        "loops_counted_once": sorted(unknown),
        "memory_traffic_bytes": moved,
        "collectives": [dataclasses.asdict(each) for each in exchanged],
        "bound_seconds": bounds,
        "step_seconds_bound": seconds,
        "windows_per_second_per_chip_bound": batch_size / seconds / chips,
        "mfu_bound": useful / devices / seconds / chip.peak,
    }


def write_plan(plan: dict[str, Any], out: Path) -> Path:
    """Writes `plan.json` into a folder and returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "plan.json"
    file.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    return file
