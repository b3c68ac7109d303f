"""The training step: ours, the same model computed densely, and a plain PyTorch step.

`ours` is the step of `lsm train`, measured for every share of missing cells. `dense` is the same configuration with
every position computed and missing ones masked; `torch` is `torch_step`. Their cost does not depend on what is missing,
so they run at the last share only. All train on the same batches with the same masks.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from lsm_jax.tools.bench.harness import (
    Contender,
    Timings,
    check_names,
    machine,
    race,
    spread,
    times_faster_than,
    torch_device,
    why_no_torch,
    write_report,
)  # fmt: skip
from lsm_jax.tools.bench.settings import StepBench
from lsm_jax.train.mesh import make_mesh, to_devices
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import Program, make_program

if TYPE_CHECKING:
    from lsm_jax.tools.bench.torch_step import TorchModel

_CONTENDERS = ("ours", "dense", "torch")
_PRODUCTS = 4  # matrix products of a round, so that it is long against the clock and the call


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A contender, and what the report has of it beside its timings.

    Attributes:
      peak_bytes: the most memory of a step: parameters, optimizer, batch and temporaries.
    """

    name: str
    dtype: str
    missing: float
    contender: Contender
    peak_bytes: Callable[[], int | None]
    compile_seconds: float | None = None
    implementations: dict[str, str] = dataclasses.field(default_factory=dict)


def measure(
    config: Config, settings: StepBench, out: Path, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Measures the step of a configuration and writes `out`.

    Raises:
      UserError: a setting is refused, or the configuration does not train by masked reconstruction.
    """
    machine_before = machine()
    check_names(settings.only, _CONTENDERS)
    left_out = {"torch": reason} if (reason := why_no_torch()) else {}
    if left_out and settings.only == ("torch",):
        raise UserError(f"--only torch: {reason}")
    entries: list[_Entry] = []
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
            if not isinstance(objective, MaskedReconstruction):
                raise UserError(f"objective.name={config.objective.name!r}: only masked reconstruction is measured.")
            grid = objective.tokens
            observed = [grid.tokens_observed(grid.cells(jnp.asarray(batch["observed"]))) for batch in batches]
            visible[missing] = float(np.mean([tokens.mean() for tokens in observed]))
            if "ours" in names:
                entries.append(_jax_entry("ours", missing, prepared, spec, batches))
            if "dense" in names:
                entries.append(_jax_entry("dense", missing, _dense(prepared, grid.size), spec, batches))
            if "torch" in names:
                entries.append(_torch_entry(missing, prepared, objective, batches))
    products = {dtype: _matrix_product(dtype) for dtype in settings.dtype}
    contenders = [entry.contender for entry in entries] + [product for product, _ in products.values()]
    timings = race(contenders, settings.repeats, settings.budget, progress, untimed=1)
    gflops = {
        dtype: flops / spread(timings[product.name].seconds)["median"] / 1e9
        for dtype, (product, flops) in products.items()
    }
    results = [_result(entry, entries, timings, settings, visible[entry.missing], gflops) for entry in entries]
    sections = {"model": dataclasses.asdict(config.model), "rows": dataclasses.asdict(config.rows)}
    write_report(
        out, machine_before, settings, results, config=sections, left_out=left_out, matrix_product_gflops=gflops
    )
    return results


def _prepared(config: Config, batch_size: int, dtype: str) -> Config:
    # Rows of a pod may hold more windows than a device here has.
    windows = math.gcd(config.rows.windows_per_row, batch_size // jax.device_count())
    changes = {"train.batch_size": batch_size, "rows.windows_per_row": windows, "model.dtype": dtype}
    return with_changes(config, changes)


def _dense(config: Config, tokens: int) -> Config:
    """The same model with every position of encoder and decoder computed."""
    rows = {"rows.layout": "dense", "rows.windows_per_row": 1, "rows.decoder_length": tokens}
    # One window at a time on a device: the scores of several need tens of gigabytes.
    micro_batches = max(config.train.batch_size // jax.device_count(), 1)
    return with_changes(config, {**rows, "model.attention": "reference", "train.grad_accum_steps": micro_batches})


def _jax_entry(name: str, missing: float, config: Config, spec: DataSpec, batches: Sequence[Batch]) -> _Entry:
    objective = objectives.build(config, spec)
    program = _program(config, objective)
    on_device = [to_devices(program.mesh, batch, config.train.batch_size) for batch in batches]
    state = program.init()
    begun = time.perf_counter()
    compiled = program.step.lower(state, on_device[0]).compile()
    seconds = time.perf_counter() - begun
    memory = compiled.memory_analysis()
    # The size of the results includes donated arguments, which the size of the arguments has too.
    peak = memory and (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )

    def run(number: int) -> Any:
        nonlocal state
        state, metrics = compiled(state, on_device[number % len(on_device)])
        return jax.block_until_ready(metrics)

    contender = Contender(f"{name} {config.model.dtype} {missing}", run)
    implementations = dict(objective.implementations)
    return _Entry(name, config.model.dtype, missing, contender, lambda: peak, seconds, implementations)


def _torch_entry(missing: float, config: Config, objective: MaskedReconstruction, batches: Sequence[Batch]) -> _Entry:
    """PyTorch's step, with the masks that ours draws in the step of the same number."""
    from lsm_jax.tools.bench import torch_step

    process = torch_step.process(torch_model(objective), config.optimizer, config.model.dtype, torch_device())
    hidden = jax.jit(objective.hidden)
    program = _program(config, objective)
    rng = jax.random.wrap_key_data(jax.jit(lambda: program.init().rng)())  # initialises nothing but the key

    def prepare(number: int) -> None:
        batch = batches[number % len(batches)]
        arrays = torch_arrays(objective, batch, hidden(batch, jax.random.fold_in(rng, number)))
        process.submit(torch_step.set_batch, arrays).result()

    contender = Contender(
        f"torch {config.model.dtype} {missing}",
        run=lambda _: {"loss": process.submit(torch_step.run_step).result()},
        prepare=prepare,
        cpu_clock=lambda: process.submit(time.process_time).result(),
    )
    peak_bytes = lambda: process.submit(torch_step.peak_bytes).result()  # noqa: E731
    return _Entry("torch", config.model.dtype, missing, contender, peak_bytes)


def _program(config: Config, objective: objectives.Objective) -> Program:
    schedule = TrainSchedule(config.train.batch_size, epoch=config.train.batch_size, total=1000)
    return make_program(config, objective, make_mesh(config.mesh), schedule)


def torch_model(objective: MaskedReconstruction) -> TorchModel:
    """The PyTorch model for an objective's size and token grid, with the paper's positions and its D of one half."""
    from lsm_jax.tools.bench.torch_step import TorchModel

    grid, size = objective.tokens, objective.size
    encoder, decoder = (
        np.asarray(Positions("sincos", grid, width, dtype="float32", rngs=nnx.Rngs(0))(jnp.arange(grid.size)))
        for width in (size.encoder.width, size.decoder.width)
    )
    return TorchModel(size.encoder, size.decoder, encoder, decoder, grid.cells_per_token, grid.size - grid.size // 2)


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


def _matrix_product(dtype: str) -> tuple[Contender, float]:
    """Large matrix products in the same race, and the FLOPs of a round of them."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)

    def run(_: int) -> None:
        for _ in range(_PRODUCTS):
            product(matrix, matrix).block_until_ready()

    return Contender(f"matrix product {dtype}", run), _PRODUCTS * 2.0 * side**3


def _result(
    entry: _Entry,
    entries: Sequence[_Entry],
    timings: Mapping[str, Timings],
    settings: StepBench,
    visible: float,
    product_gflops: Mapping[Any, float],
) -> dict[str, Any]:
    timing = timings[entry.contender.name]
    seconds = spread(timing.seconds)
    baselines = {}
    for other in (other for other in entries if other.dtype == entry.dtype):
        if other.missing == entry.missing:
            baselines[other.name] = other.contender.name
        elif other.name == entry.name:
            baselines[f"missing {other.missing:g}"] = other.contender.name
    result = {
        "name": entry.name,
        "dtype": entry.dtype,
        "missing": entry.missing,
        "visible": visible,
        "windows_per_second": settings.batch_size / seconds["median"],
        "peak_bytes": entry.peak_bytes(),
        "spread": seconds,
        "cpu_seconds": float(np.median(timing.cpu_seconds)),
        "compile_seconds": entry.compile_seconds,
        "implementations": entry.implementations,
        "first_loss": float(timing.returned[0]["loss"]),
        "times_faster_than": times_faster_than(baselines, entry.contender.name, timings),
    }
    metrics = [jax.device_get(returned) for returned in timing.returned[1:]]
    if "useful_flops" not in metrics[0]:
        return result
    windows = settings.batch_size
    mean = {name: float(np.mean([step[name] for step in metrics])) / windows for name in metrics[0]}
    left_out = mean["tokens_visible_left_out"] + mean["tokens_targets_left_out"]
    rates = [step["useful_flops"] / seconds for step, seconds in zip(metrics, timing.seconds, strict=True)]
    gflops = float(np.median(rates)) / 1e9
    return result | {
        "tokens_visible": mean["tokens_visible"],
        "tokens_targets": mean["tokens_targets"],
        "left_out_share": left_out / max(mean["tokens_observed"], 1.0 / windows),
        "gflops": gflops,
        "share_of_matrix_product": gflops / product_gflops[entry.dtype],
    }
