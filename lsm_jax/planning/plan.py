"""Compiles the real training step for a topology and reads off what it will do there."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lsm_jax import objectives
from lsm_jax.channels import MINUTELY_26, channels
from lsm_jax.data.spec import DataSpec, data_spec
from lsm_jax.errors import RunError
from lsm_jax.planning import arithmetic, hlo
from lsm_jax.planning.collectives import Collective, collectives
from lsm_jax.planning.topologies import GPU_EXAMPLES, chip_named, split_name, topology_devices
from lsm_jax.training.duration import Schedule
from lsm_jax.training.mesh import make_mesh
from lsm_jax.training.state import Program, batch_shapes, make_program

# Without a dataset: the papers' 26 minutely features, of which 51 % are recorded (arXiv 2506.05321).
ASSUMED_OBSERVED = 0.51
# There is no GPU at hand to try kernels on.
_GPU_OPTIONS: dict[str, Any] = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_latency_hiding_scheduler": True}


def make_plan(config: ConfigDict, topology: str) -> dict[str, Any]:
    """What a training step of this configuration will do on a topology: the content of `plan.json`.

    Raises:
      UserError: no such topology, what compiles for it is not installed, or a setting is wrong.
      RunError: the compiler failed for another reason than memory.
    """
    config = ConfigDict(config.to_dict())
    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16"  # `auto` would ask this machine, which is not the one planned for
    devices = topology_devices(topology)
    kind, _ = split_name(topology)
    chip = chip_named(kind).per_device()
    spec = data_spec(config.data) if config.data.paths else assumed_spec(config.data.window_minutes)
    mesh = make_mesh(config.mesh, devices)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        objective = objectives.build(config, spec)
        schedule = Schedule(config.train.batch_size, 10**9, total=10**6)
        program = make_program(config, objective, mesh, schedule)
    started = time.perf_counter()
    batch = {name: part[:1] for name, part in drawn_batch(spec, 1).items()}
    lowered = program.step.lower(program.shapes, batch_shapes(mesh, batch, config.train.batch_size))
    plan: dict[str, Any] = {
        "topology": topology,
        "devices": len(devices),
        "mesh": dict(mesh.shape),
        "batch_size": config.train.batch_size,
        "hbm_bytes": chip.memory,
        "hbm_source": chip.source,
        "data": "the datasets" if config.data.paths else f"assumed: 26 channels, {1 - ASSUMED_OBSERVED:.0%} missing",
    }
    try:
        compiled = lowered.compile(compiler_options=_GPU_OPTIONS if kind in GPU_EXAMPLES else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise RunError(f"{topology}: the compiler failed: {str(error)[:500]}") from None
        return plan | {"fits": False, "reason": str(error).splitlines()[0][:500]}
    plan["compile_seconds"] = time.perf_counter() - started
    needed = memory(program, compiled)
    plan |= {"fits": sum(needed.values()) <= chip.memory, "bytes_per_device": needed}
    counts = counted(spec, config)
    hosts = [device.process_index if kind in GPU_EXAMPLES else 0 for device in mesh.devices.flat]
    useful = counts["useful_flops"] * config.train.batch_size / counts["windows"]
    return plan | costs(hlo.read(compiled.as_text()), hosts, chip, useful, config.train.batch_size)


def assumed_spec(window_minutes: int) -> DataSpec:
    """What is taken of the data where no dataset is named."""
    known = channels(MINUTELY_26)
    mean, sd = (np.array([getattr(each, name) for each in known], np.float32) for name in ("mean", "sd"))
    return DataSpec(MINUTELY_26, mean, sd, int(window_minutes), np.full(len(known), ASSUMED_OBSERVED, np.float32))


def drawn_batch(spec: DataSpec, windows: int) -> dict[str, np.ndarray]:
    """Windows whose stretches of ten minutes are recorded or missing as the specification's shares say."""
    rng = np.random.default_rng(0)
    stretches = -(-spec.window_minutes // 10)
    seen = rng.random((windows, stretches, len(spec.channels))) < spec.observed_share
    observed = np.repeat(seen, 10, axis=1)[:, : spec.window_minutes]
    return {
        "values": np.zeros(observed.shape, np.float32),
        "observed": observed,
        "start_minute": np.zeros(windows, np.int32),
        "weekday": np.zeros(windows, np.int32),
        "example": np.arange(windows, dtype=np.int32),
    }


def counted(spec: DataSpec, config: ConfigDict) -> dict[str, float]:
    """The objective's own counts over some drawn windows; only what they depend on is computed."""
    config = ConfigDict(config.to_dict())
    config.model.attention = "reference"  # which runs anywhere, and is not run
    objective = objectives.build(config, spec)
    windows = 12 * config.rows.windows_per_row
    shapes = jax.eval_shape(objective.init, jax.random.key(0))

    def counts(batch: dict[str, jax.Array]) -> jax.Array:
        # Nothing that is returned depends on parameters, so the compiler drops them and the network.
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return objective.loss(zeros, batch, jax.random.key(0))[1]["useful_flops"]

    return {"useful_flops": float(jax.jit(counts)(drawn_batch(spec, windows))), "windows": windows}


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


def costs(program: hlo.Program, hosts: list[int], chip: Any, useful: float, batch_size: int) -> dict[str, Any]:
    """FLOPs, collectives and bounds of a compiled step; FLOPs are of all devices together."""
    entry, devices = program.computations[program.entry], len(hosts)
    stated: Callable[..., float] = lambda _, call: arithmetic.stated_flops(call)  # noqa: E731
    nothing: Callable[..., float] = lambda *_: 0.0  # noqa: E731
    products = arithmetic.flops(program, entry, nothing)
    kernels = arithmetic.flops(program, entry, stated) - products
    computes = lambda inside, each: arithmetic.instruction_flops(program, inside, each, stated) > 0  # noqa: E731
    exchanged = collectives(program, hosts, chip, computes)
    moved = arithmetic.moved_bytes(program)
    # Kernels skip blocks they need not see, so a bound of the time may not count on them.
    parts = {
        "compute": max(products, useful / devices) / chip.peak,
        "memory": moved / chip.memory_bandwidth,
        "links": sum(each.count * each.seconds for each in exchanged),
    }
    exposed = sum(each.count * each.seconds for each in exchanged if not each.overlapped)
    seconds = max(max(parts["compute"], parts["memory"]) + exposed, parts["links"])
    return {
        "useful_flops": useful,
        "executed_flops": (products + kernels) * devices,
        "executed_flops_of_kernels_at_most": kernels * devices,
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
    """Kernels of ours in the program, and how often a step runs them."""
    runs: Counter[str] = Counter()
    for times, computation in program.scheduled():
        for each in computation.instructions:
            if each.opcode == "custom-call" and arithmetic.stated_flops(each):
                runs[re.sub(r"\.\d+$", "", each.name)] += int(times)
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
