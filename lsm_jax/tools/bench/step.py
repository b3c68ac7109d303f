"""The training step: ours, the same model computed densely, and a plain PyTorch step.

`ours` is the step of `lsm train`, measured for every share of missing cells. `dense` is the same configuration with
every position computed and missing ones masked; `torch` is `torch_step`. Their cost does not depend on what is missing,
so they run at the last share only. All train on the same batches with the same masks. On accelerators all use one
device, as `torch` does.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool

from lsm_jax import objectives
from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import Config, with_changes
from lsm_jax.data.loader import Batch
from lsm_jax.data.random_batches import random_batches_with_gaps
from lsm_jax.data.row_balance import RowBalancer
from lsm_jax.data.spec import DataSpec
from lsm_jax.errors import UserError
from lsm_jax.nn.positions import Positions
from lsm_jax.objectives.masked import MaskedReconstruction
from lsm_jax.tools.bench import harness
from lsm_jax.tools.bench.settings import Dtype, StepBench
from lsm_jax.train.mesh import make_mesh, to_devices
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import Program, make_program

_CONTENDERS = ("ours", "dense", "torch")
_PRODUCTS = 4  # matrix products of a round, so that it is long against the clock and the call


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A step to time, and what the report has of it beside its timings.

    Attributes:
      peak_bytes: the most memory of a step, of all devices together: parameters, optimizer, batch and temporaries.
    """

    contender: harness.Contender
    peak_bytes: Callable[[], int | None]
    compile_seconds: float | None = None
    implementations: dict[str, str] = dataclasses.field(default_factory=dict)


def measure(
    config: Config, settings: StepBench, out: Path, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measures the step of a configuration, writes `out` and returns what it wrote.

    Raises:
      UserError: a setting is refused, or the configuration does not train by masked reconstruction.
    """
    machine_before = harness.machine()
    harness.check_names(settings.only, _CONTENDERS)
    left_out = {"torch": reason} if (reason := harness.why_no_torch()) else {}
    if left_out and settings.only == ("torch",):
        raise UserError(f"--only torch: {reason}")
    entries: dict[tuple[str, Dtype, float], _Entry] = {}
    visible: dict[float, float] = {}
    for missing in settings.missing:
        spec, batches = random_batches_with_gaps(
            tuple(config.data.channels) or MINUTELY_26, config.data.window_minutes, missing, settings.batch_size,
            settings.batches, settings.seed, RowBalancer.from_config(_prepared(config, settings.batch_size, "auto")),
        )  # fmt: skip
        names = set(settings.only or _CONTENDERS) - left_out.keys()
        names &= {*_CONTENDERS} if missing == settings.missing[-1] else {"ours"}
        for dtype in settings.dtype:
            prepared = _prepared(config, settings.batch_size, dtype)
            objective = objectives.build(prepared, spec)
            if type(objective) is not MaskedReconstruction:
                raise UserError(f"objective.name={config.objective.name!r}: only masked reconstruction is measured.")
            grid = objective.tokens
            observed = [grid.tokens_observed(grid.cells(jnp.asarray(batch["observed"]))) for batch in batches]
            visible[missing] = float(np.mean([tokens.mean() for tokens in observed]))
            label = f"{dtype} {missing}"
            if "ours" in names:
                entries["ours", dtype, missing] = _jax_entry(f"ours {label}", prepared, spec, batches)
            if "dense" in names:
                dense = _dense(prepared, grid.size)
                entries["dense", dtype, missing] = _jax_entry(f"dense {label}", dense, spec, batches)
            if "torch" in names:
                entries["torch", dtype, missing] = _torch_entry(f"torch {label}", prepared, objective, batches)
    products = {dtype: matrix_product(dtype) for dtype in settings.dtype}
    contenders = [entry.contender for entry in entries.values()] + [product for product, _ in products.values()]
    timings = harness.race(contenders, settings.repeats, settings.budget, progress, untimed=1)
    gflops = {dtype: flops / timings[product.name].median / 1e9 for dtype, (product, flops) in products.items()}
    results = []
    for (name, dtype, missing), entry in entries.items():
        # The other steps on the same data, and the same step on other data.
        baselines = {
            (other if data == missing else f"missing {data:g}"): baseline.contender.name
            for (other, precision, data), baseline in entries.items()
            if precision == dtype and (data == missing or other == name)
        }
        timing = timings[entry.contender.name]
        columns = {
            "name": name,
            "dtype": dtype,
            "missing": missing,
            "visible": visible[missing],
            "windows_per_second": settings.batch_size / timing.median,
            "peak_bytes": entry.peak_bytes(),
            "cpu_seconds": timing.cpu_median,
            "compile_seconds": entry.compile_seconds,
            "implementations": entry.implementations,
            "first_loss": float(timing.returned[0]["loss"]),
            **_work(timing, settings.batch_size, gflops[dtype]),
        }
        results.append(harness.report_row(columns, entry.contender.name, baselines, timings))
    sections = {"model": dataclasses.asdict(config.model), "rows": dataclasses.asdict(config.rows)}
    return harness.write_report(
        out, machine_before, settings, results, config=sections, left_out=left_out, matrix_product_gflops=gflops,
        devices_used=len(harness.bench_devices(settings.batch_size)),
    )  # fmt: skip


def _prepared(config: Config, batch_size: int, dtype: str) -> Config:
    # Rows of a pod may hold more windows than a device here has.
    windows = math.gcd(config.rows.windows_per_row, batch_size // len(harness.bench_devices(batch_size)))
    changes = {"train.batch_size": batch_size, "rows.windows_per_row": windows, "model.dtype": dtype}
    # These batches name no people, so the reconstruction is measured without the person loss.
    return with_changes(config, {**changes, "objective.person_weight": 0.0})


def _dense(config: Config, tokens: int) -> Config:
    """The same model with every position of encoder and decoder computed."""
    rows = {"rows.layout": "dense", "rows.windows_per_row": 1, "rows.decoder_length": tokens}
    # One window at a time on a device: the scores of several need tens of gigabytes.
    micro_batches = config.train.batch_size // len(harness.bench_devices(config.train.batch_size))
    return with_changes(config, {**rows, "model.attention": "reference", "train.grad_accum_steps": micro_batches})


def _jax_entry(name: str, config: Config, spec: DataSpec, batches: Sequence[Batch]) -> _Entry:
    objective = objectives.build(config, spec)
    program = _program(config, objective)
    on_device = [to_devices(program.mesh, batch, config.train.batch_size) for batch in batches]
    state = program.init()
    begun = time.perf_counter()
    compiled = program.step.lower(state, on_device[0]).compile()
    seconds = time.perf_counter() - begun
    memory = compiled.memory_analysis()
    # Sizes are of one device. That of the results includes donated arguments, which that of the arguments has too.
    peak = memory and program.mesh.size * (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )

    def run(number: int) -> Any:
        nonlocal state
        state, metrics = compiled(state, on_device[number % len(on_device)])
        return jax.block_until_ready(metrics)

    return _Entry(harness.Contender(name, run), lambda: peak, seconds, dict(objective.implementations))


def _torch_entry(name: str, config: Config, objective: MaskedReconstruction, batches: Sequence[Batch]) -> _Entry:
    """PyTorch's step, with the masks that ours draws in its step of the same number."""
    from lsm_jax.tools.bench import torch_step

    process = torch_step.process(torch_model(objective), config.optimizer, config.model.dtype, harness.torch_device())
    hidden = jax.jit(objective.hidden)
    program = _program(config, objective)
    rng = jax.random.wrap_key_data(jax.jit(lambda: program.init().rng)())  # initialises nothing but the key
    steps = itertools.count()  # more than one a round

    def prepare(number: int) -> None:
        batch = batches[number % len(batches)]
        arrays = torch_arrays(objective, batch, hidden(batch, jax.random.fold_in(rng, next(steps))))
        process.submit(torch_step.set_batch, arrays).result()

    contender = harness.Contender(
        name,
        run=lambda _: {"loss": process.submit(torch_step.run_step).result()},
        prepare=prepare,
        cpu_clock=lambda: process.submit(time.process_time).result(),
    )
    return _Entry(contender, lambda: process.submit(torch_step.peak_bytes).result())


def _program(config: Config, objective: objectives.Objective) -> Program:
    schedule = TrainSchedule(config.train.batch_size, epoch=config.train.batch_size, total=1000)
    mesh = make_mesh(config.mesh, harness.bench_devices(config.train.batch_size))
    return make_program(config, objective, mesh, schedule)


def torch_model(objective: MaskedReconstruction) -> dict[str, Any]:
    """Arguments of the PyTorch model: the objective's size and token grid, the paper's positions, its D of one half."""
    grid, size = objective.tokens, objective.size
    encoder, decoder = (
        np.asarray(Positions("sincos", grid, width, dtype="float32", rngs=nnx.Rngs(0))(jnp.arange(grid.size)))
        for width in (size.encoder.width, size.decoder.width)
    )
    return {
        "encoder": size.encoder,
        "decoder": size.decoder,
        "encoder_positions": encoder,
        "decoder_positions": decoder,
        "cells_per_token": grid.cells_per_token,
        "encoder_tokens": grid.size - grid.size // 2,
    }


def torch_arrays(objective: MaskedReconstruction, batch: Batch, hidden: Bool[Array, "b n"]) -> dict[str, np.ndarray]:
    """A batch by token for `torch_step.squared_errors`, with the tokens `hidden` masked."""
    grid = objective.tokens
    values, observed = (grid.cells(jnp.asarray(batch[name])) for name in ("values", "observed"))
    tokens_observed = grid.tokens_observed(observed)
    arrays = {
        "values": jnp.where(observed, values, 0),
        "visible": tokens_observed & ~hidden,
        "target_cells": observed & (tokens_observed & hidden)[:, :, None],
    }
    return {name: np.array(array) for name, array in arrays.items()}


def matrix_product(dtype: str) -> tuple[harness.Contender, float]:
    """Large matrix products in the same race, and the FLOPs of a round of them."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)

    def run(_: int) -> None:
        for _ in range(_PRODUCTS):
            product(matrix, matrix).block_until_ready()

    return harness.Contender(f"matrix product {dtype}", run), _PRODUCTS * 2.0 * side**3


def _work(timing: harness.Timings, windows: int, product_gflops: float) -> dict[str, float]:
    """Tokens of a mean window and useful FLOPs per second; empty for a step that does not return them."""
    metrics = [jax.device_get(returned) for returned in timing.returned[1:]]
    if "useful_flops" not in metrics[0]:
        return {}
    mean = {name: float(np.mean([step[name] for step in metrics])) / windows for name in metrics[0]}
    left_out = mean["tokens_visible_left_out"] + mean["tokens_targets_left_out"]
    rates = [step["useful_flops"] / seconds for step, seconds in zip(metrics, timing.seconds, strict=True)]
    gflops = float(np.median(rates)) / 1e9
    return {
        "tokens_visible": mean["tokens_visible"],
        "tokens_targets": mean["tokens_targets"],
        "left_out_share": left_out / max(mean["tokens_observed"], 1.0 / windows),
        "gflops": gflops,
        "share_of_matrix_product": gflops / product_gflops,
    }
