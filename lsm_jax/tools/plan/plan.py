"""Compiles the real training step for a topology and reads off what it will do there."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lsm_jax import objectives
from lsm_jax.channels import MINUTELY_26, channels
from lsm_jax.config import Config, with_changes
from lsm_jax.data.random_batches import random_batches_with_gaps
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec, data_spec, datasets_with_weight, open_datasets
from lsm_jax.errors import RunError, UserError
from lsm_jax.objectives import Objective
from lsm_jax.objectives.shared import AttentionShape
from lsm_jax.tools.plan import arithmetic, hlo
from lsm_jax.tools.plan.collectives import Collective, collectives
from lsm_jax.tools.plan.topologies import GPU_EXAMPLES, chip_named, split_name, topology_devices
from lsm_jax.tools.plan.visits import Visited, flops_of_scores_again, kernel_flops, kernel_name, visited
from lsm_jax.train.hardware import Chip, compiler_options
from lsm_jax.train.mesh import check_batch, make_mesh
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import Program, batch_shapes, is_sum, make_program

# Without a dataset: the papers' 26 minutely features, of which 51 % are recorded (arXiv 2506.05321).
ASSUMED_OBSERVED = 0.51
_DRAWN_ROWS = 8  # over whose windows FLOPs are counted
# There is no GPU at hand to try kernels on. Untried tilings of XLA's Triton products fail to compile for some shapes
# (the minute path's), so matrix products are cuBLAS'.
_WITHOUT_HARDWARE: dict[str, dict[str, Any]] = {
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration on a topology.

    Attributes:
      config: with the compute type settled.
      platform: of the topology, as JAX names it.
    """

    config: Config
    topology: str
    devices: Sequence[jax.Device]
    mesh: Mesh
    chip: Chip
    platform: str
    spec: DataSpec

    @classmethod
    def of(cls, config: Config, topology: str) -> Case:
        """UserError: no such topology, what compiles for it is not installed, or a setting is wrong."""
        if config.model.dtype == "auto":  # which would ask this machine, and it is not the one planned for
            config = with_changes(config, {"model.dtype": "bfloat16"})
        devices = topology_devices(topology)
        kind, _ = split_name(topology)
        mesh = make_mesh(config.mesh, devices)
        try:
            check_batch(mesh, config)
        except UserError as error:
            raise UserError(f"{topology}: {error}") from None
        if config.data.paths:
            spec = data_spec(config.data, open_datasets(config.data))
        else:
            spec = assumed_spec(config.data.window_minutes)
        platform = "gpu" if kind in GPU_EXAMPLES else "tpu"
        return cls(config, topology, devices, mesh, chip_named(kind).per_device(), platform, spec)

    def objective(self, **changes: Any) -> Objective:
        """The objective, with changes to the section `model`."""
        changed = with_changes(self.config, {f"model.{key}": value for key, value in changes.items()})
        return objectives.build(changed, self.spec)


def make_plan(config: Config, topology: str) -> dict[str, Any]:
    """What a training step of this configuration will do on a topology: the content of `plan.json`.

    Raises:
      UserError: no such topology, what compiles for it is not installed, or a setting is wrong.
      RunError: the compiler failed for another reason than memory.
    """
    case = Case.of(config, topology)
    batch_size = config.train.batch_size
    plan: dict[str, Any] = {
        "topology": topology,
        "devices": len(case.devices),
        "mesh": dict(case.mesh.shape),
        "batch_size": batch_size,
        "remat": config.model.remat,
        "hbm_bytes": case.chip.memory,
        "hbm_source": case.chip.source,
        "data": "the datasets" if config.data.paths else f"assumed: 26 channels, {1 - ASSUMED_OBSERVED:.0%} missing",
    }
    wall, cpu = time.perf_counter(), time.process_time()
    with jax.sharding.use_abstract_mesh(case.mesh.abstract_mesh):
        # The learning rates are constants of the program, which a run can take over if it is the same to the bit.
        program = make_program(
            case.config, case.objective(), case.mesh, TrainSchedule.from_config(case.config, _epoch(case.config))
        )
    warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")  # nothing here can run it
    lowered = program.step.lower(program.shapes, batch_shapes(case.mesh, drawn_batch(case, 1), batch_size))
    try:
        options = compiler_options(case.platform) | _WITHOUT_HARDWARE.get(case.platform, {})
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise RunError(f"{topology}: the compiler failed: {str(error)[:500]}") from None
        return plan | {"fits": False, "reason": str(error).splitlines()[0][:500]}
    plan["compile_seconds"] = time.perf_counter() - wall
    plan["compile_cpu_seconds"] = time.process_time() - cpu
    needed = memory(program, compiled)
    plan |= {"fits": sum(needed.values()) <= case.chip.memory, "bytes_per_device": needed}
    counts, attended = counted(case)
    with jax.sharding.use_abstract_mesh(case.mesh.abstract_mesh):
        visits = visited(attended, config.model.attention)
    hosts = [device.process_index if case.platform == "gpu" else 0 for device in case.mesh.devices.flat]
    useful = counts.pop("useful_flops") * batch_size
    return plan | {"tokens": counts} | costs(hlo.read(compiled.as_text()), hosts, case.chip, useful, visits, batch_size)


def _epoch(config: Config) -> int:
    """Windows of the training split; many where there is no data yet."""
    if not config.data.paths:
        return 10**9
    datasets = datasets_with_weight(config.data, open_datasets(config.data))
    return sum(len(dataset.source("train")) for dataset in datasets)


def assumed_spec(window_minutes: int) -> DataSpec:
    """What is taken of the data where no dataset is named."""
    known = channels(MINUTELY_26)
    mean, sd = (np.array([getattr(each, name) for each in known], np.float32) for name in ("mean", "sd"))
    return DataSpec(MINUTELY_26, mean, sd, int(window_minutes), np.full(len(known), ASSUMED_OBSERVED, np.float32))


def drawn_batch(case: Case, windows: int) -> dict[str, np.ndarray]:
    """Windows with gaps as days have them, and captions as long as they may be where texts are learned from."""
    spec, language = case.spec, case.config.language
    missing = 1 - float(np.mean(spec.observed_share))
    balance = RowBalancer.for_batch(windows, case.config.rows.windows_per_row, grad_accum_steps=1)
    _, (batch,) = random_batches_with_gaps(
        spec.channels, spec.window_minutes, missing, windows, 1, seed=0, balance=balance
    )
    return batch | ({"text": np.ones((windows, language.text_length), np.int32)} if language.levels else {})


def counted(case: Case) -> tuple[dict[str, float], list[AttentionShape]]:
    """Useful FLOPs of a window, shares of tokens and the segments of rows over drawn windows, by the objective."""
    objective = case.objective(attention="reference")  # which runs anywhere, and is not run
    windows = _DRAWN_ROWS * case.config.rows.windows_per_row
    shapes, key = jax.eval_shape(objective.init, jax.random.key(0)), jax.random.key(0)

    def counts(batch: dict[str, jax.Array]) -> tuple[dict[str, jax.Array], list[AttentionShape]]:
        # Nothing that is returned depends on parameters, so the compiler drops them and the network.
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        metrics = objective.loss(zeros, batch, key)[1]
        wanted = {name: value for name, value in metrics.items() if name.startswith(("tokens_", "useful_", "row_"))}
        return wanted, objective.attention_shapes(batch, key)

    metrics, attended = jax.jit(counts)(drawn_batch(case, windows))
    return {name: float(value) / (windows if is_sum(name) else 1) for name, value in metrics.items()}, attended


def memory(program: Program, compiled: Any) -> dict[str, int]:
    """Bytes per device by what they hold; arguments and results share theirs where the state is donated."""

    def size(tree: Any) -> int:
        leaves = jax.tree.leaves(tree)
        return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)

    stats = compiled.memory_analysis()
    parts = {
        "parameters": size(program.shapes.params) + size(program.shapes.ema),
        "optimizer": size(program.shapes.opt_state),
    }
    return parts | {
        "batch_and_padding": max(0, stats.argument_size_in_bytes - sum(parts.values())),
        "results_not_in_place": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
    }


def costs(
    program: hlo.Program, hosts: list[int], chip: Chip, useful: float, visits: Visited, batch_size: int
) -> dict[str, Any]:
    """FLOPs, collectives and bounds of a compiled step; FLOPs are of all devices together."""
    entry, devices = program.computations[program.entry], len(hosts)
    total = lambda kernel: arithmetic.flops(program, entry, kernel)  # noqa: E731
    kernel = functools.partial(kernel_flops, visits)
    products = total(lambda *_: 0.0)
    again = total(functools.partial(flops_of_scores_again, visits)) - products
    executed = total(kernel)
    computes = lambda inside, each: arithmetic.instruction_flops(program, inside, each, kernel) > 0  # noqa: E731
    moving = lambda inside, each: 2 * arithmetic.written_bytes(program, inside, each) / chip.memory_bandwidth  # noqa: E731
    exchanged = collectives(program, hosts, chip, computes, moving)
    moved = arithmetic.moved_bytes(program)
    parts = {
        "compute": executed / chip.peak,
        "memory": moved / chip.memory_bandwidth,
        "links": sum(each.count * each.seconds for each in exchanged),
    }
    exposed = sum(each.count * each.seconds for each in exchanged if not each.overlapped)
    seconds = max(max(parts["compute"], parts["memory"]) + exposed, parts["links"])
    return {
        "useful_flops": useful,
        "executed_flops": executed * devices,
        "executed_flops_of_kernels": (executed - products) * devices,
        "executed_flops_of_scores_again": again * devices,
        "executed_per_useful": (executed - again) * devices / useful,
        "kernels": kernel_names(program),
        "loops_counted_once": sorted(program.guessed),
        "memory_traffic_bytes": moved,
        "collectives": grouped(exchanged),
        "bound_seconds": parts | {"exposed_links": exposed},
        "step_seconds_bound": seconds,
        "windows_per_second_per_chip_bound": batch_size / seconds / devices,
        "mfu_bound": useful / devices / seconds / chip.peak,
    }


def kernel_names(program: hlo.Program) -> dict[str, int]:
    """Kernels in the program, and how often a step runs them."""
    runs: Counter[str] = Counter()
    for times, computation in program.scheduled():
        # A kernel may write into a stacked array, in one fusion with it.
        fused = [
            inner for each in computation.instructions if each.opcode == "fusion" for _, inner in program.called(each)
        ]
        for call in itertools.chain(computation.instructions, *(inner.instructions for inner in fused)):
            if name := kernel_name(call):
                runs[name] += int(times)
    return dict(runs)


def grouped(exchanged: list[Collective]) -> list[dict[str, Any]]:
    """Collectives of the same kind, group and overlap as one entry; `bytes` are of a step."""
    entries: dict[tuple[Any, ...], dict[str, Any]] = {}
    for each in exchanged:
        entry = entries.setdefault(
            (each.kind, each.group, each.hosts, each.overlapped),
            {"kind": each.kind, "group": each.group, "hosts": each.hosts, "overlapped": each.overlapped,
             "count": 0.0, "bytes": 0.0, "seconds_at_least": 0.0},
        )  # fmt: skip
        entry["count"] += each.count
        entry["bytes"] += each.count * each.bytes
        entry["seconds_at_least"] += each.count * each.seconds
    return list(entries.values())


def write_plan(plan: dict[str, Any], out: Path) -> Path:
    """Writes `plan.json` into a folder and returns its path."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "plan.json"
    file.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    return file
