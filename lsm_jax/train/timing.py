"""Where the time of a run goes: wall-clock buckets that survive restarts, compilation, and profiler traces."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from lsm_jax.errors import UserError
from lsm_jax.train.hardware import compiler_options
from lsm_jax.train.messages import Messages
from lsm_jax.train.workdir import CLOCK, replace_text

# `start`: from the start of the process to the first step: imports, joining, opening data. `down`: no process ran.
# `lost`: work after the last checkpoint that a crash threw away. `other`: time that nothing measured.
BUCKETS = ("start", "compile", "step", "input", "evaluate", "checkpoint", "lost", "down", "other")


# perf_counter, because a system clock that is set while the run goes on must not change its durations.
_SINCE_1970 = time.time() - time.perf_counter()


def seconds_since_1970() -> float:
    """The time by a clock that nobody sets."""
    return _SINCE_1970 + time.perf_counter()


class Clock:
    """Adds up the wall time of a run by bucket, over all its starts.

    Args:
      started: seconds since 1970 at which this start began; None is now.
      now: seconds since 1970; tests pass their own.

    Attributes:
      bucket: what the run is doing.
    """

    bucket = "start"

    def __init__(self, started: float | None = None, now: Callable[[], float] = seconds_since_1970) -> None:
        self._now = now
        self.started = now() if started is None else started
        self.first_started = self.started
        self._earlier = dict.fromkeys(BUCKETS, 0.0)
        self._measured = dict.fromkeys(BUCKETS, 0.0)

    def restore(self, seconds: Mapping[str, float], signs: LifeSigns) -> None:
        """Adds the earlier starts of this run.

        Args:
          seconds: by bucket, of the checkpoint; empty if there is none.
          signs: of the start before. What it did after its checkpoint is `lost`.
        """
        self.first_started = min(signs.first_started, self.started)
        earlier = {bucket: float(seconds.get(bucket, 0.0)) for bucket in BUCKETS}
        earlier["down"] = max(signs.down, earlier["down"]) + max(self.started - signs.last_alive, 0.0)
        earlier["lost"] += max(self.started - self.first_started - sum(earlier.values()), 0.0)
        self._earlier = earlier

    @contextlib.contextmanager
    def measure(self, bucket: str) -> Iterator[None]:
        """Adds the time spent in the `with` block to a bucket. Nested blocks are not counted twice."""
        begin, before, outer = self._now(), sum(self._measured.values()), self.bucket
        self.bucket = bucket
        try:
            yield
        finally:
            self.bucket = outer
            nested = sum(self._measured.values()) - before
            self._measured[bucket] += self._now() - begin - nested

    def begin_loop(self) -> None:
        """Counts everything up to now that was not measured as `start`."""
        self.bucket = "other"
        self._measured["start"] += self._now() - self.started - sum(self._measured.values())

    def write(self, workdir: Path) -> None:
        """Leaves a sign of life in the run's folder."""
        LifeSigns(self.first_started, self._now(), self._earlier["down"]).write(workdir)

    def seconds(self) -> dict[str, float]:
        """Seconds by bucket over all starts. Their sum is the wall time since the first start."""
        wall = self._now() - self.started
        current = self._measured | {"other": wall - sum(self._measured.values())}
        return {bucket: self._earlier[bucket] + current[bucket] for bucket in BUCKETS}


def process_started() -> float:
    """Seconds since 1970 at which this process began; now, where the system does not tell."""
    try:
        since_boot = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf(
            "SC_CLK_TCK"
        )
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.time()


@dataclasses.dataclass(frozen=True)
class LifeSigns:
    """Kept in a run's folder, so that the next start knows what happened before it.

    Attributes:
      first_started, last_alive: seconds since 1970.
      down: seconds without a process, up to the newest start.
    """

    first_started: float
    last_alive: float
    down: float

    @classmethod
    def read(cls, workdir: Path) -> LifeSigns | None:
        """Those of an earlier start; None for a new run, or if the file is damaged."""
        try:
            content = json.loads((workdir / CLOCK).read_text(encoding="utf-8"))
            return cls(*(float(content[field.name]) for field in dataclasses.fields(cls)))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def write(self, workdir: Path) -> None:
        """Writes the file in one step, if that is possible: a full disk must not end a run."""
        with contextlib.suppress(OSError):
            replace_text(workdir / CLOCK, json.dumps(dataclasses.asdict(self)))


class TimedJit:
    """A jitted function that compiles at its first call; that time goes to the bucket `compile`.

    All processes of a run call it. None begins before all have compiled: on CPUs, the first sum over processes fails if
    another process comes to it 30 s later.
    """

    def __init__(self, function: Any, clock: Clock) -> None:
        self._function, self._clock = function, clock
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled is None:
            with self._clock.measure("compile"):
                options = compiler_options(jax.default_backend()) or None
                self._compiled = self._function.lower(*arguments).compile(compiler_options=options)
                Messages().gather(lambda: None)
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
