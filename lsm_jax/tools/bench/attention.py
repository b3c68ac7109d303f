"""Attention alone: every implementation against dense baselines, on the same tokens.

Ours read a packed row: the visible tokens first, padding behind them. The dense baselines hold every position in place
with the missing ones masked, which is what one pays who does not pack: `reference` (dense XLA), `jax` (JAX's own
`dot_product_attention` through XLA) and, where it is installed, `torch` (PyTorch's `scaled_dot_product_attention`).
All must agree at the visible tokens before anything is timed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Bool, Float, Int

from lsm_jax.errors import RunError, UserError, nearest
from lsm_jax.nn.attention import IMPLEMENTATIONS, attention
from lsm_jax.sharding import HEAD_AXIS
from lsm_jax.tools.bench.harness import Contender, Timings, against, race, spread
from lsm_jax.tools.bench.report import machine, no_torch, torch_device, write_report

Direction = Literal["forward", "forward_backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "forward_backward")
DTYPES = ("float32", "bfloat16")
_BASELINES = ("reference", "jax", "torch")  # dense: they pay every position
_AGREEMENT = {"float32": 1e-4, "bfloat16": 5e-2}  # of the largest entry; rounding and no more


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured; a list of `tokens` is a sweep.

    Attributes:
      tokens: positions of a row.
      visible: shares of them that were observed.
      dtypes, directions: names in `DTYPES` and `DIRECTIONS`.
      only: contenders by name; empty: all that run here.
      rounds, budget: of each comparison, and seconds for all of them together.
    """

    tokens: tuple[int, ...] = (3744,)
    visible: tuple[float, ...] = (1.0, 0.5, 0.2)
    dtypes: tuple[str, ...] = ("float32",)
    directions: tuple[Direction, ...] = DIRECTIONS
    heads: int = 6
    head_size: int = 64
    rows: int = 1
    only: tuple[str, ...] = ()
    rounds: int = 10
    budget: float = 300.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class _Case:
    """One comparison: query, key, value and the output's cotangent in place, and which positions are visible."""

    inputs: list[Float[np.ndarray, "r n h d"]]
    seen: Bool[np.ndarray, " n"]
    dtype: str
    direction: Direction

    @property
    def packed(self) -> list[Float[np.ndarray, "r n h d"]]:
        """The inputs with the visible tokens moved to the front; zeros behind them."""
        rest = ((0, 0), (0, int((~self.seen).sum())), (0, 0), (0, 0))
        return [np.pad(array[:, self.seen], rest) for array in self.inputs]

    @property
    def useful_flops(self) -> float:
        """Two per multiply-add between visible tokens: two products forward, four backward; nothing recomputed."""
        rows, _, heads, size = self.inputs[0].shape
        products = 2 if self.direction == "forward" else 6
        return products * 2.0 * rows * heads * size * float(self.seen.sum()) ** 2


@dataclasses.dataclass(frozen=True)
class _Ready:
    """A contender that can run: returns the output and, backward, the gradients, all [R, N, H, D].

    Attributes:
      places: where the visible tokens are in what it returns.
      peak_bytes: memory beside inputs and outputs; None where it is not known.
      to_numpy: brings an array it returns here, float32.
    """

    run: Callable[[], Sequence[Any]]
    places: Int[np.ndarray, " visible"]
    compile_seconds: float | None = None
    peak_bytes: int | None = None
    to_numpy: Callable[[Any], np.ndarray] = lambda array: np.asarray(array, np.float32)

    def at_visible(self) -> list[np.ndarray]:
        """What it returns at the visible tokens."""
        return [self.to_numpy(array)[:, self.places] for array in self.run()]


def measure(settings: Settings, out: Path, progress: Callable[[int, int], None] | None = None) -> list[dict[str, Any]]:
    """Measures and writes `out`.

    Raises:
      UserError: a name in `only` is unknown.
      RunError: a contender computes something else than the others.
    """
    measured_on = machine()
    names = _contenders(settings.only)
    cases = list(itertools.product(settings.tokens, settings.visible, settings.dtypes, settings.directions))
    results: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for number, (tokens, visible, dtype, direction) in enumerate(cases):
        case = _case(settings, tokens, visible, dtype, direction)
        ready = dict(_make_ready(case, names, left_out))
        _check_agreement(case, ready)
        contenders = [Contender(name, _timed(made)) for name, made in ready.items()]
        timings = race(contenders, settings.rounds, settings.budget / len(cases))
        where = {"direction": direction, "tokens": tokens, "visible": visible, "dtype": dtype}
        results += [{"name": name, **where, **_result(case, name, ready[name], timings)} for name in ready]
        if progress:
            progress(number + 1, len(cases))
    write_report(out, measured_on, dataclasses.asdict(settings), results, left_out=left_out)
    return results


def _contenders(only: Sequence[str]) -> tuple[str, ...]:
    ours = [name for name in IMPLEMENTATIONS if name not in ("auto", "reference")]  # `auto` is one of the others
    known = (*_BASELINES, *ours)
    for name in only:
        if name not in known:
            raise UserError(f"--only {name}: no such contender.{nearest(name, known)} Known: {', '.join(known)}.")
    return tuple(only) or known


def _case(settings: Settings, tokens: int, visible: float, dtype: str, direction: Direction) -> _Case:
    random = np.random.default_rng(settings.seed)
    shape = (settings.rows, tokens, settings.heads, settings.head_size)
    inputs = list(random.standard_normal((4, *shape), np.float32))
    seen = np.zeros(tokens, bool)
    seen[random.permutation(tokens)[: max(round(visible * tokens), 1)]] = True
    inputs[3][:, ~seen] = 0  # no loss asks for what is missing
    return _Case(inputs, seen, dtype, direction)


def _make_ready(case: _Case, names: Iterable[str], left_out: dict[str, str]) -> Iterable[tuple[str, _Ready]]:
    """Compiles the contenders; those that cannot run here are noted in `left_out` with the reason."""
    for name in names:
        try:
            yield name, _torch_ready(case) if name == "torch" else _jax_ready(case, name)
        except UserError as error:
            left_out[name] = str(error)


def _jax_ready(case: _Case, name: str) -> _Ready:
    in_place = name in _BASELINES
    arrays = [jnp.asarray(array, case.dtype) for array in (case.inputs if in_place else case.packed)]
    visible = case.seen if in_place else np.sort(case.seen)[::-1]
    # An argument, or XLA would fold what the mask makes of constants.
    segments = jnp.broadcast_to(jnp.asarray(visible, jnp.int32), arrays[0].shape[:2])

    def forward(query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array) -> jax.Array:
        if name == "jax":
            mask = (segments > 0)[:, None, None, :]
            return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")
        return attention(query, key, value, segments, segments, name)

    def both(
        query: jax.Array, key: jax.Array, value: jax.Array, cotangent: jax.Array, segments: jax.Array
    ) -> tuple[jax.Array, ...]:
        output, pull = jax.vjp(functools.partial(forward, segments=segments), query, key, value)
        return (output, *pull(cotangent))

    arguments = (*(arrays[:3] if case.direction == "forward" else arrays), segments)
    begun = time.perf_counter()
    mesh, by_head = _heads_over_devices()
    whole = NamedSharding(mesh, PartitionSpec())
    arguments = tuple(jax.device_put(each, whole if each is segments else by_head) for each in arguments)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = jax.jit(forward if case.direction == "forward" else both).lower(*arguments).compile()
    seconds = time.perf_counter() - begun
    memory = compiled.memory_analysis()
    return _Ready(
        run=lambda: jax.tree.leaves(jax.block_until_ready(compiled(*arguments))),
        places=np.flatnonzero(visible),
        compile_seconds=seconds,
        peak_bytes=memory and int(memory.temp_size_in_bytes),
    )


def _heads_over_devices() -> tuple[Mesh, NamedSharding]:
    """All devices, the cores of a CPU among them, share the heads, for every contender of JAX alike."""
    mesh = jax.make_mesh((jax.device_count(),), (HEAD_AXIS,), axis_types=(AxisType.Auto,))
    return mesh, NamedSharding(mesh, PartitionSpec(None, None, HEAD_AXIS))


def _torch_ready(case: _Case) -> _Ready:
    """PyTorch where JAX computes, in its own layout [R, H, N, D], the mask a boolean of the keys."""
    if reason := no_torch():
        raise UserError(reason)
    import torch

    device = torch.device(torch_device())
    arrays = [
        torch.from_numpy(array).to(device, getattr(torch, case.dtype)).transpose(1, 2).contiguous()
        for array in case.inputs
    ]
    mask = torch.from_numpy(case.seen).to(device)[None, None, None, :]
    inputs, cotangent = arrays[:3], arrays[3]

    def forward() -> list[Any]:
        with torch.no_grad():
            return [torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask)]

    def both() -> list[Any]:
        output = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask)
        return [output, *torch.autograd.grad(output, inputs, cotangent)]

    def finished(work: Callable[[], list[Any]]) -> list[Any]:
        returned = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return returned

    if case.direction == "forward_backward":
        for array in inputs:
            array.requires_grad_()
    work = forward if case.direction == "forward" else both
    places = np.flatnonzero(case.seen)
    to_numpy = lambda array: array.detach().float().cpu().transpose(1, 2).numpy()  # noqa: E731
    return _Ready(functools.partial(finished, work), places, to_numpy=to_numpy)


def _timed(ready: _Ready) -> Callable[[int], None]:
    """A round of it, whose results nobody keeps."""

    def run(_: int) -> None:
        ready.run()

    return run


def _check_agreement(case: _Case, ready: dict[str, _Ready]) -> None:
    """RunError unless all contenders compute the same: the speed of a wrong answer is none."""
    expected: list[np.ndarray] = []
    for name, made in ready.items():
        arrays = made.at_visible()
        expected = expected or arrays
        for ours, theirs in zip(arrays, expected, strict=True):
            difference = float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-3))
            if not difference <= _AGREEMENT[case.dtype]:
                raise RunError(
                    f"{name} ({case.dtype}, {case.direction}) differs from {next(iter(ready))} by {difference:.1e} "
                    f"of the largest entry at {len(made.places)} visible of {len(case.seen)} tokens."
                )


def _result(case: _Case, name: str, ready: _Ready, timings: dict[str, Timings]) -> dict[str, Any]:
    timing = timings[name]
    seconds = spread(timing.seconds)
    return {
        "seconds": seconds["median"],
        "gflops": case.useful_flops / seconds["median"] / 1e9,
        "spread": seconds,
        "cpu_seconds": float(np.median(timing.cpu_seconds)),
        "compile_seconds": ready.compile_seconds,
        "peak_bytes": ready.peak_bytes,
        "times_faster_than": against(timings, name, {baseline: baseline for baseline in _BASELINES}),
    }
