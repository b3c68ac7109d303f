"""Attention alone: every implementation against dense baselines, on the same tokens.

Our implementations read a packed row, the visible tokens first and padding behind them. The dense baselines mask the
missing tokens instead: `reference` (dense XLA), `jax` (`jax.nn.dot_product_attention` through XLA) and, if installed,
`torch` (PyTorch's `scaled_dot_product_attention`). All must agree at the visible tokens before anything is timed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float

from lsm_jax.errors import RunError, UserError
from lsm_jax.nn.attention import IMPLEMENTATIONS, attention
from lsm_jax.sharding import HEAD_AXIS
from lsm_jax.tools.bench import harness
from lsm_jax.tools.bench.settings import AttentionBench, Direction

_BASELINES = ("reference", "jax", "torch")
_TOLERANCE = {"float32": 1e-4, "tf32": 1e-2, "bfloat16": 5e-2}  # of the largest entry, for rounding


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """Inputs of one comparison: query, key, value and the output's cotangent, and which tokens are visible."""

    arrays: list[Float[np.ndarray, "r n h d"]]
    visible: Bool[np.ndarray, " n"]
    dtype: str
    direction: Direction

    @classmethod
    def random(cls, settings: AttentionBench, tokens: int, share: float, dtype: str, direction: Direction) -> _Inputs:
        """Normal numbers, with `share` of the tokens visible."""
        random = np.random.default_rng(settings.seed)
        shape = (4, settings.rows, tokens, settings.heads, settings.head_size)
        arrays = list(random.standard_normal(shape, np.float32))
        visible = np.zeros(tokens, bool)
        visible[random.permutation(tokens)[: max(round(share * tokens), 1)]] = True
        arrays[3][:, ~visible] = 0  # no loss depends on missing tokens
        return cls(arrays, visible, dtype, direction)

    @property
    def useful_flops(self) -> float:
        """Two per multiply-add between visible tokens: two products forward, four backward, no recomputation."""
        rows, _, heads, size = self.arrays[0].shape
        products = 2 if self.direction == "forward" else 6
        return products * 2.0 * rows * heads * size * float(self.visible.sum()) ** 2


@dataclasses.dataclass(frozen=True)
class _Compiled:
    """A contender ready to run.

    Attributes:
      run: computes the output and, backward, the gradients.
      visible_results: runs it and returns these at the visible tokens, in order, each [R, visible, H, D].
      peak_bytes: memory beside inputs and outputs, of all devices together, if known.
    """

    run: Callable[[], Any]
    visible_results: Callable[[], list[np.ndarray]]
    compile_seconds: float | None = None
    peak_bytes: int | None = None

    def timed_run(self, _: int) -> None:
        """One round; returns nothing, so that no results are kept."""
        self.run()


def measure(settings: AttentionBench, out: Path, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Measures, writes `out` and returns what it wrote.

    Raises:
      UserError: a name in `only` is unknown, or no contender runs here.
      RunError: a contender computes something else than the others.
    """
    machine_before = harness.machine()
    known = (*_BASELINES, *(name for name in IMPLEMENTATIONS if name not in ("auto", "reference")))
    harness.check_names(settings.only, known)
    cases = list(itertools.product(settings.tokens, settings.visible, settings.dtype, settings.directions))
    results: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for number, (tokens, share, dtype, direction) in enumerate(cases, start=1):
        inputs = _Inputs.random(settings, tokens, share, dtype, direction)
        compiled: dict[str, _Compiled] = {}
        for name in settings.only or known:
            try:
                compiled[name] = _compile_torch(inputs) if name == "torch" else _compile_jax(inputs, name)
            except UserError as error:  # it cannot run here
                left_out[name] = str(error)
        if not compiled:
            continue
        _check_agreement(inputs, compiled)
        contenders = [harness.Contender(name, each.timed_run) for name, each in compiled.items()]
        timings = harness.race(contenders, settings.repeats, settings.budget / len(cases))
        for name, each in compiled.items():
            median = timings[name].median
            columns = {
                "name": name,
                "direction": direction,
                "tokens": tokens,
                "visible": share,
                "dtype": dtype,
                "seconds": median,
                "gflops": inputs.useful_flops / median / 1e9,
                "cpu_seconds": timings[name].cpu_median,
                "compile_seconds": each.compile_seconds,
                "peak_bytes": each.peak_bytes,
            }
            results.append(harness.report_row(columns, name, {label: label for label in _BASELINES}, timings))
        if progress:
            progress(number, len(cases))
    if not results:
        raise UserError(f"nothing to measure: {'; '.join(f'{name}: {reason}' for name, reason in left_out.items())}")
    devices = len(harness.bench_devices(settings.heads))
    return harness.write_report(out, machine_before, settings, results, left_out=left_out, devices_used=devices)


def _compile_jax(inputs: _Inputs, name: str) -> _Compiled:
    visible, arrays = inputs.visible, inputs.arrays
    if name not in _BASELINES:  # packed
        order = np.argsort(~visible, kind="stable")
        visible, arrays = visible[order], [array[:, order] for array in arrays]
    backward = inputs.direction == "forward_backward"

    def forward(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        if name == "jax":
            mask = (segments > 0)[:, None, None, :]
            return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")
        return attention(query, key, value, segments, segments, name)

    # The segments are an argument: XLA would fold what depends on a constant mask.
    def results(segments: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, cotangent: jax.Array) -> Any:
        if not backward:
            return [forward(query, key, value, segments)]
        output, vjp = jax.vjp(functools.partial(forward, segments=segments), query, key, value)
        return [output, *vjp(cotangent)]

    begun = time.perf_counter()
    # The devices, such as the cores of a CPU, share the heads.
    mesh = Mesh(harness.bench_devices(arrays[0].shape[2]), (HEAD_AXIS,), axis_types=(AxisType.Auto,))
    by_head = NamedSharding(mesh, PartitionSpec(None, None, HEAD_AXIS))
    segments = np.broadcast_to(visible.astype(np.int32), arrays[0].shape[:2])
    arguments = (
        jax.device_put(segments, NamedSharding(mesh, PartitionSpec())),
        *(jax.device_put(jnp.asarray(array, inputs.dtype), by_head) for array in arrays),
    )
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = jax.jit(results).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    run = lambda: jax.block_until_ready(compiled(*arguments))  # noqa: E731
    return _Compiled(
        run,
        visible_results=lambda: [np.asarray(array, np.float32)[:, visible] for array in run()],
        compile_seconds=time.perf_counter() - begun,
        peak_bytes=memory and int(memory.temp_size_in_bytes) * mesh.size,
    )


def _compile_torch(inputs: _Inputs) -> _Compiled:
    """PyTorch on the platform of JAX, in its own layout [R, H, N, D], with a boolean mask of the keys."""
    if reason := harness.why_no_torch():
        raise UserError(reason)
    import torch

    device, backward = torch.device(harness.torch_device()), inputs.direction == "forward_backward"
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX
    *arguments, cotangent = (
        torch.from_numpy(array).to(device, getattr(torch, inputs.dtype)).transpose(1, 2).contiguous()
        for array in inputs.arrays
    )
    visible = torch.from_numpy(inputs.visible).to(device)
    for array in arguments:
        array.requires_grad_(backward)

    def run() -> list[Any]:
        with torch.set_grad_enabled(backward):
            output = torch.nn.functional.scaled_dot_product_attention(*arguments, attn_mask=visible[None, None, None])
            returned = [output, *(torch.autograd.grad(output, arguments, cotangent) if backward else ())]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return returned

    return _Compiled(
        run, lambda: [array.detach()[:, :, visible].transpose(1, 2).float().cpu().numpy() for array in run()]
    )


def _check_agreement(inputs: _Inputs, compiled: dict[str, _Compiled]) -> None:
    """RunError unless all contenders return the same at the visible tokens."""
    expected: list[np.ndarray] = []
    for name, each in compiled.items():
        arrays = each.visible_results()
        expected = expected or arrays
        for array, other in zip(arrays, expected, strict=True):
            difference = float(np.abs(array - other).max() / max(np.abs(other).max(), 1e-3))
            if not difference <= _TOLERANCE[harness.product_precision(inputs.dtype)]:
                raise RunError(
                    f"{name} ({inputs.dtype}, {inputs.direction}) differs from {next(iter(compiled))} by "
                    f"{difference:.1e} of the largest entry at {inputs.visible.sum()} visible of "
                    f"{len(inputs.visible)} tokens."
                )
