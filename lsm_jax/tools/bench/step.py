"""The training step: ours against the same model dense, and against a plain PyTorch step.

`ours` is the step `lsm train` runs, once per share of missing cells. `dense` is the same configuration with every
position computed and missing ones masked; `torch` is `torch_step`. The cost of these two does not depend on what is
missing, so they run at the last share only. All train on the same batches under the same masks.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
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
from lsm_jax.errors import UserError, nearest
from lsm_jax.nn.positions import Positions
from lsm_jax.nn.sizes import ModelSize
from lsm_jax.objectives.masked import MaskedReconstruction
from lsm_jax.tools.bench.harness import Contender, Timings, against, race, spread
from lsm_jax.tools.bench.report import machine, no_torch, torch_device, write_report
from lsm_jax.train.mesh import make_mesh, to_devices
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import Program, make_program

if TYPE_CHECKING:
    from lsm_jax.tools.bench.torch_step import Recipe

CONTENDERS = ("ours", "dense", "torch")
_PRODUCTS = 4  # matrix products a round, so that a round is long against the clock and the call


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
      missing: shares of cells; the baselines take part at the last.
      dtypes: compute types.
      batch_size: windows of a step.
      batches: different ones, taken in turn.
      only: names in `CONTENDERS`; empty: all that run here.
      rounds, budget: steps of each contender, and seconds for all together.
    """

    missing: tuple[float, ...] = (0.0, 0.5)
    dtypes: tuple[str, ...] = ("float32",)
    batch_size: int = 4
    batches: int = 4
    only: tuple[str, ...] = ()
    rounds: int = 10
    budget: float = 600.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A contender with what is known of it before it runs.

    Attributes:
      keys: what tells it from the others in the report.
      visible: share of the tokens that were recorded.
      peak_bytes: tells the most memory of a step: parameters, optimizer, batch and temporaries.
    """

    contender: Contender
    keys: dict[str, Any]
    visible: float
    peak_bytes: Callable[[], int | None]
    compile_seconds: float | None = None
    implementations: dict[str, str] = dataclasses.field(default_factory=dict)


def measure(
    config: Config, settings: Settings, out: Path, progress: Callable[[int, int], None] | None = None
) -> list[dict[str, Any]]:
    """Measures the step of a configuration and writes `out`.

    Raises:
      UserError: a setting is refused, or the configuration does not train by masked reconstruction.
    """
    measured_on = machine()
    for name in settings.only:
        if name not in CONTENDERS:
            raise UserError(f"--only {name}: no such contender.{nearest(name, CONTENDERS)}")
    left_out = {"torch": reason} if (reason := no_torch()) else {}
    if left_out and settings.only == ("torch",):
        raise UserError(f"--only torch: {reason}")
    entries = [entry for missing in settings.missing for entry in _entries(config, settings, missing)]
    products = {dtype: _matrix_product(dtype) for dtype in settings.dtypes}
    contenders = [entry.contender for entry in entries] + [product for product, _ in products.values()]
    timings = race(contenders, settings.rounds, settings.budget, progress, again=1)
    gflops = {
        dtype: flops / spread(timings[product.name].seconds)["median"] / 1e9
        for dtype, (product, flops) in products.items()
    }
    results = [_result(entry, entries, timings, settings) for entry in entries]
    for result in results:
        if "gflops" in result:
            result["share_of_matrix_product"] = result["gflops"] / gflops[result["dtype"]]
    sections = {"model": dataclasses.asdict(config.model), "rows": dataclasses.asdict(config.rows)}
    said = {**dataclasses.asdict(settings), **sections}
    write_report(out, measured_on, said, results, left_out=left_out, matrix_product_gflops=gflops)
    return results


def _entries(config: Config, settings: Settings, missing: float) -> Iterator[_Entry]:
    """The contenders at one share of missing cells."""
    spec, batches = random_batches_with_gaps(
        tuple(config.data.channels) or MINUTELY_26, config.data.window_minutes, missing, settings.batch_size,
        settings.batches, settings.seed, RowBalancer.from_config(_configured(config, settings.batch_size, "auto")),
    )  # fmt: skip
    wanted = set(settings.only or CONTENDERS)
    if missing != settings.missing[-1]:
        wanted &= {"ours"}
    for dtype in settings.dtypes:
        prepared = _configured(config, settings.batch_size, dtype)
        objective = objectives.build(prepared, spec)
        if not isinstance(objective, MaskedReconstruction):
            raise UserError(f"objective.name={config.objective.name!r}: only masked reconstruction is measured.")
        grid = objective.tokens
        recorded = [grid.tokens_observed(grid.cells(jnp.asarray(batch["observed"]))) for batch in batches]
        visible = float(np.mean([part.mean() for part in recorded]))
        keys = {"dtype": dtype, "missing": missing}
        if "ours" in wanted:
            yield _jax_entry({"name": "ours", **keys}, visible, prepared, spec, batches)
        if "dense" in wanted:
            yield _jax_entry({"name": "dense", **keys}, visible, _dense(prepared, grid.size), spec, batches)
        if "torch" in wanted and not no_torch():
            yield _torch_entry({"name": "torch", **keys}, visible, prepared, objective, batches)


def _configured(config: Config, batch_size: int, dtype: str) -> Config:
    # Rows of pods hold more windows than a device has here.
    windows = math.gcd(config.rows.windows_per_row, batch_size // jax.device_count())
    changes = {"train.batch_size": batch_size, "rows.windows_per_row": windows, "model.dtype": dtype}
    return with_changes(config, changes)


def _dense(config: Config, tokens: int) -> Config:
    """The same model with every position of encoder and decoder computed."""
    rows = {"rows.layout": "dense", "rows.windows_per_row": 1, "rows.decoder_length": tokens}
    # One window of a device at a time: the score matrices of several fill tens of gigabytes.
    micro_batches = max(config.train.batch_size // jax.device_count(), 1)
    return with_changes(config, {**rows, "model.attention": "reference", "train.grad_accum_steps": micro_batches})


def _jax_entry(
    keys: dict[str, Any], visible: float, config: Config, spec: DataSpec, batches: Sequence[Batch]
) -> _Entry:
    objective = objectives.build(config, spec)
    program = _program(config, objective)
    on_device = [to_devices(program.mesh, batch, config.train.batch_size) for batch in batches]
    state = program.init()
    begun = time.perf_counter()
    compiled = program.step.lower(state, on_device[0]).compile()
    seconds = time.perf_counter() - begun

    def run(number: int) -> Any:
        nonlocal state
        state, metrics = compiled(state, on_device[number % len(on_device)])
        return jax.block_until_ready(metrics)

    implementations = dict(getattr(objective, "implementations", {}))
    memory = compiled.memory_analysis()
    # What a donated argument shares with an output is counted in both.
    peak = memory and (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )
    return _Entry(Contender(_unique(keys), run), keys, visible, lambda: peak, seconds, implementations)


def _program(config: Config, objective: objectives.Objective) -> Program:
    schedule = TrainSchedule(config.train.batch_size, epoch=config.train.batch_size, total=1000)
    return make_program(config, objective, make_mesh(config.mesh), schedule)


def _torch_entry(
    keys: dict[str, Any],
    visible: float,
    config: Config,
    objective: MaskedReconstruction,
    batches: Sequence[Batch],
) -> _Entry:
    """PyTorch's step, given the masks that ours draws in the step of the same number."""
    from lsm_jax.tools.bench import torch_step

    section = config.optimizer
    optimizer = torch_step.Optimizer(
        section.learning_rate, section.betas, section.epsilon, section.weight_decay, section.clip_norm
    )
    recipe = torch_recipe(objective)
    apart = torch_step.worker(recipe, optimizer, keys["dtype"], torch_device())
    hidden = jax.jit(objective.hidden)
    program = _program(config, objective)
    rng = jax.random.wrap_key_data(jax.jit(lambda: program.init().rng)())  # compiles no more of the state than this

    def prepare(number: int) -> None:
        batch = batches[number % len(batches)]
        arrays = torch_arrays(objective, batch, hidden(batch, jax.random.fold_in(rng, number)))
        apart.submit(torch_step.give, arrays).result()

    contender = Contender(
        _unique(keys),
        run=lambda _: {"loss": apart.submit(torch_step.take).result()},
        prepare=prepare,
        cpu_clock=lambda: apart.submit(torch_step.cpu_seconds).result(),
    )
    return _Entry(contender, keys, visible, peak_bytes=lambda: apart.submit(torch_step.peak_bytes).result())


def torch_recipe(objective: MaskedReconstruction) -> Recipe:
    """The PyTorch model of the objective's size on its token grid, with the paper's positions and its D of one half."""
    from lsm_jax.tools.bench.torch_step import Recipe

    grid, sizes = objective.tokens, objective.settings.size
    encoder, decoder = (
        np.asarray(Positions("sincos", grid, width, dtype="float32", rngs=nnx.Rngs(0))(jnp.arange(grid.size)))
        for width in (sizes.encoder.width, sizes.decoder.width)
    )
    return Recipe(
        ModelSize(sizes.encoder, sizes.decoder), encoder, decoder, grid.cells_per_token, kept=grid.size - grid.size // 2
    )


def torch_arrays(objective: MaskedReconstruction, batch: Batch, hidden: Bool[Array, "b n"]) -> dict[str, np.ndarray]:
    """A batch by token, as `torch_step.squared_errors` takes it, under the artificial mask `hidden`."""
    grid = objective.tokens
    values, observed = (grid.cells(jnp.asarray(batch[name])) for name in ("values", "observed"))
    recorded = grid.tokens_observed(observed)
    arrays = {
        "values": jnp.where(observed, values, 0),
        "shown": recorded & ~hidden,
        "scored": observed & (recorded & hidden)[:, :, None],
    }
    return {name: np.array(array) for name, array in arrays.items()}


def _matrix_product(dtype: str) -> tuple[Contender, float]:
    """What large matrix products reach in the same run, and the FLOPs of its round."""
    side = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul)

    def run(_: int) -> None:
        for _ in range(_PRODUCTS):
            product(matrix, matrix).block_until_ready()

    return Contender(f"matrix product {dtype}", run), _PRODUCTS * 2.0 * side**3


def _unique(keys: dict[str, Any]) -> str:
    return " ".join(map(str, keys.values()))


def _result(
    entry: _Entry, entries: Sequence[_Entry], timings: dict[str, Timings], settings: Settings
) -> dict[str, Any]:
    keys, timing = entry.keys, timings[entry.contender.name]
    baselines = {}
    for other in (other.keys for other in entries if other.keys["dtype"] == keys["dtype"]):
        if other["missing"] == keys["missing"] or other["name"] == keys["name"]:
            label = other["name"] if other["missing"] == keys["missing"] else f"missing {other['missing']:g}"
            baselines[label] = _unique(other)
    seconds = spread(timing.seconds)
    return {
        **keys,
        "visible": entry.visible,
        "windows_per_second": settings.batch_size / seconds["median"],
        "peak_bytes": entry.peak_bytes(),
        "spread": seconds,
        "cpu_seconds": float(np.median(timing.cpu_seconds)),
        "compile_seconds": entry.compile_seconds,
        "implementations": entry.implementations,
        "first_loss": float(timing.returned[0]["loss"]),
        "times_faster_than": against(timings, entry.contender.name, baselines),
        **_accounts(timing, settings.batch_size),
    }


def _accounts(timing: Timings, windows: int) -> dict[str, float]:
    """What our metrics say of the timed steps: tokens of a window, and useful arithmetic a second."""
    metrics = [jax.device_get(returned) for returned in timing.returned[1:]]
    if "useful_flops" not in metrics[0]:
        return {}
    mean = {name: float(np.mean([step[name] for step in metrics])) / windows for name in metrics[0]}
    rates = [step["useful_flops"] / seconds for step, seconds in zip(metrics, timing.seconds, strict=True)]
    left_out = mean["tokens_visible_left_out"] + mean["tokens_targets_left_out"]
    return {
        "tokens_visible": mean["tokens_visible"],
        "tokens_targets": mean["tokens_targets"],
        "left_out_share": left_out / max(mean["tokens_observed"], 1.0 / windows),
        "gflops": float(np.median(rates)) / 1e9,
    }
