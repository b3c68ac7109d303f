"""Where the time of a run goes: buckets that sum to wall time and survive restarts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

# `lost` is work that a crash threw away and a later start had to do again; `other` is what nobody measured.
BUCKETS = ("compile", "step", "input", "evaluate", "checkpoint", "lost", "other")


class Clock:
    """Measures named stretches of the main thread.

    Args:
      now: seconds, ever rising; tests bring their own.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._started = now()
        self._earlier = dict.fromkeys(BUCKETS, 0.0)
        self._measured = dict.fromkeys(BUCKETS, 0.0)

    def restore(self, seconds: Mapping[str, float], lost: float = 0.0) -> None:
        """Takes over the seconds of earlier starts, and those whose work is gone."""
        self._earlier = {bucket: float(seconds.get(bucket, 0.0)) for bucket in BUCKETS}
        self._earlier["lost"] += lost

    @contextlib.contextmanager
    def measure(self, bucket: str) -> Iterator[None]:
        """Adds the time inside the `with` to a bucket, less what stretches inside it measure for theirs."""
        begin, before = self._now(), sum(self._measured.values())
        try:
            yield
        finally:
            inside = sum(self._measured.values()) - before
            self._measured[bucket] += self._now() - begin - inside

    def seconds(self) -> dict[str, float]:
        """Seconds by bucket over all starts; their sum is the wall time of the run."""
        wall = self._now() - self._started
        here = self._measured | {"other": wall - sum(self._measured.values())}
        return {bucket: self._earlier[bucket] + here[bucket] for bucket in BUCKETS}
