"""Embedding days: several windows to a row over all devices, against one window to a row on one device.

Both embed the same windows and must agree before anything is timed. Useful FLOPs count observed tokens, forward only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsm_jax import objectives
from lsm_jax.channels import MINUTELY_26
from lsm_jax.config import Config
from lsm_jax.data.loader import Batch
from lsm_jax.data.random_batches import random_batches_with_gaps
from lsm_jax.errors import RunError, UserError
from lsm_jax.nn.flops import AttentionShape, useful_flops
from lsm_jax.objectives.base import with_compute_dtype
from lsm_jax.objectives.masked import MaskedReconstruction
from lsm_jax.objectives.pooling import pool
from lsm_jax.tools.bench import harness
from lsm_jax.tools.bench.settings import InferenceBench
from lsm_jax.tools.bench.step import matrix_product

_TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 0.1}


def measure(
    config: Config, settings: InferenceBench, out: Path, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Measures embedding with an untrained model of a configuration, writes `out` and returns what it wrote.

    Raises:
      UserError: a setting is refused, or the configuration's objective is not masked reconstruction.
      RunError: the contenders' embeddings differ.
    """
    machine_before = harness.machine()
    dtype, contenders = with_compute_dtype(config.model).dtype, []
    work: dict[str, tuple[float, float, str]] = {}
    for missing in settings.missing:
        spec, (batch,) = random_batches_with_gaps(
            tuple(config.data.channels) or MINUTELY_26, config.data.window_minutes, missing, settings.windows, 1,
            settings.seed,
        )  # fmt: skip
        objective = objectives.build(config, spec)
        if type(objective) is not MaskedReconstruction:
            raise UserError(f"objective.name={config.objective.name!r}: only masked reconstruction is measured.")
        params = jax.jit(objective.init)(jax.random.key(settings.seed))
        runs = {
            "packed": _packed(objective, params, batch),
            "one window to a row": _one_by_one(objective, params, batch, settings.batch_size),
        }
        difference = float(np.abs(np.subtract(*(run(0) for run in runs.values()))).max())
        if difference > _TOLERANCE[harness.product_precision(dtype)]:
            raise RunError(f"the contenders' embeddings differ by up to {difference:.3g} at --missing {missing:g}.")
        for name, run in runs.items():
            contenders.append(harness.Contender(f"{name} {missing}", run))
            work[contenders[-1].name] = missing, _flops(objective, params, batch), name
    product, product_flops = matrix_product(dtype)
    timings = harness.race([*contenders, product], settings.repeats, settings.budget, progress, untimed=1)
    rate = product_flops / timings[product.name].median / 1e9
    results = []
    for label, (missing, flops, name) in work.items():
        gflops = flops / timings[label].median / 1e9
        # The devices of a CPU share its cores; the matrix product runs on one accelerator.
        devices = jax.device_count() if name == "packed" and jax.default_backend() != "cpu" else 1
        columns = {
            "name": name, "missing": missing, "dtype": dtype,
            "windows_per_second": settings.windows / timings[label].median,
            "windows_per_cpu_second": settings.windows / timings[label].cpu_median,
            "gflops": gflops, "share_of_matrix_product": gflops / rate / devices,
        }  # fmt: skip
        baselines = {other: f"{other} {missing}" for other in runs if other != name}
        results.append(harness.report_row(columns, label, baselines, timings))
    return harness.write_report(
        out, machine_before, settings, results, model=config.model.size, matrix_product_gflops={dtype: rate}
    )


def _packed(objective: MaskedReconstruction, params: Any, batch: Batch) -> Callable[[int], np.ndarray]:
    return lambda _: objective.embed(params, batch)


def _one_by_one(
    objective: MaskedReconstruction, params: Any, batch: Batch, batch_size: int
) -> Callable[[int], np.ndarray]:
    """Batches of one window to a row, as long as the fullest window of a batch."""
    encode = jax.jit(
        lambda length, params, part: pool(objective.encode_tokens(length, params, part), objective.tokens, "mean"),
        static_argnums=0,
    )

    def run(_: int) -> np.ndarray:
        parts = [
            {name: array[first : first + batch_size] for name, array in batch.items()}
            for first in range(0, len(batch["values"]), batch_size)
        ]
        return np.concatenate([encode(objective.embed_length(part), params, part) for part in parts])

    return run


def _flops(objective: MaskedReconstruction, params: Any, batch: Batch) -> float:
    segments = jnp.asarray(objective.read_tokens(batch), jnp.int32)
    shape = AttentionShape(segments, segments, objective.size.encoder, 1, passes=1)
    return float(useful_flops([shape], {"encoder": params["encoder"]}, objective.tokens))
