"""Where the time of a run goes: wall-clock buckets that survive restarts, compilation, and profiler traces."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from lsm_jax.errors import UserError
from lsm_jax.train.hardware import compiler_options

# `lost`: work after the last checkpoint that a crash threw away. `other`: time that nothing measured.
BUCKETS = ("compile", "step", "input", "evaluate", "checkpoint", "lost", "other")


class Clock:
    """Adds up the wall time of the main thread by bucket.

    Args:
      now: monotonic seconds; tests pass their own.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._started = now()
        self._earlier = dict.fromkeys(BUCKETS, 0.0)
        self._measured = dict.fromkeys(BUCKETS, 0.0)

    def restore(self, seconds: Mapping[str, float], lost: float = 0.0) -> None:
        """Adds the seconds of earlier starts of this run, and those of work that was lost."""
        self._earlier = {bucket: float(seconds.get(bucket, 0.0)) for bucket in BUCKETS}
        self._earlier["lost"] += lost

    @contextlib.contextmanager
    def measure(self, bucket: str) -> Iterator[None]:
        """Adds the time spent in the `with` block to a bucket. Nested blocks are not counted twice."""
        begin, before = self._now(), sum(self._measured.values())
        try:
            yield
        finally:
            nested = sum(self._measured.values()) - before
            self._measured[bucket] += self._now() - begin - nested

    def seconds(self) -> dict[str, float]:
        """Seconds by bucket over all starts. Their sum is the wall time of the run."""
        wall = self._now() - self._started
        current = self._measured | {"other": wall - sum(self._measured.values())}
        return {bucket: self._earlier[bucket] + current[bucket] for bucket in BUCKETS}


class TimedJit:
    """A jitted function that compiles at its first call; that time goes to the bucket `compile`."""

    def __init__(self, function: Any, clock: Clock) -> None:
        self._function, self._clock = function, clock
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled is None:
            with self._clock.measure("compile"):
                options = compiler_options(jax.default_backend()) or None
                self._compiled = self._function.lower(*arguments).compile(compiler_options=options)
        return self._compiled(*arguments)


class Trace:
    """A profiler trace of the steps `(first, last)` in `WORKDIR/profile`, for TensorBoard."""

    def __init__(self, steps: tuple[int, ...], workdir: Path) -> None:
        if len(steps) not in {0, 2}:
            raise UserError(f"train.profile_steps={steps} must be two steps, first and last.")
        self._first, self._last = steps or (-1, -1)
        self._folder, self._running = workdir / "profile", False

    def before(self, step: int) -> None:
        """Call before a training step, with the steps taken so far."""
        if step + 1 == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int) -> None:
        """Call after a training step, with the steps taken so far."""
        if step >= self._last:
            self.close()

    def close(self) -> None:
        """Ends a trace that is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
