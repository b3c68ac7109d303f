"""The other processes of a run: their signs of life, and the news that one of them ends.

The key-value store of JAX's coordination service carries both; the first process serves it. Each process writes a
counter every few seconds. The first process reads them all, the others notice if the store itself does not answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

_PREFIX = "lsm_jax/peers"
_DONE = "done"  # in place of the counter of a process that ended well
_REFUSED_SECONDS = 2.0  # errors of the store for this long mean that the first process is gone
_LEAVE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class End:
    """Why all processes of a run must end.

    Attributes:
      sentence: for the person; names process and host.
      code: exit code.
    """

    sentence: str
    code: int


class Peers:
    """Signs of life of the processes of a run.

    Args:
      store: the client of JAX's coordination service.
      process, count: the number of this process, and how many there are.
      state: called for what a sign of life tells besides: a few words.
      beat: seconds between two signs of life.
    """

    def __init__(self, store: Any, process: int, count: int, state: Callable[[], str], beat: float) -> None:
        self._store, self._process, self._count, self._state, self._beat = store, process, count, state, beat
        self._watched = [other for other in range(count) if other != process] if process == 0 else [0]
        self._heard = dict.fromkeys(self._watched, time.monotonic())
        self._last: dict[int, str] = {}
        self._hosts: dict[int, str] = {}
        self._refused_since: float | None = None
        self.end: End | None = None  # as another process, or this one, has announced
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signs of life", daemon=True)
        self._thread.start()

    def silent(self, seconds: float) -> list[int]:
        """The processes without a sign of life for this long."""
        now, since = time.monotonic(), self._refused_since
        gone = since is not None and self._process != 0 and now - since > _REFUSED_SECONDS
        return [other for other in self._watched if gone or now - self._heard[other] > seconds]

    def forgive(self, seconds: float) -> None:
        """Takes back a silence during which this process was stopped itself."""
        self._heard = {other: heard + seconds for other, heard in self._heard.items()}

    def named(self, processes: list[int]) -> str:
        """Numbers, hosts and last known states of processes, for a sentence."""
        listed = [f"process {other} (host {self._hosts.get(other, 'unknown')})" for other in processes[:8]]
        return ", ".join(listed) + (f" and {len(processes) - 8} more" if len(processes) > 8 else "")

    def states(self) -> str:
        """What the other processes were doing at their last sign of life, as far as this one knows."""
        states = {other: _parsed(line)[2] for other, line in sorted(self._last.items())}
        return "; ".join(f"process {other} (host {self._hosts[other]}) {state}" for other, state in states.items())

    def announce(self, end: End) -> None:
        """Makes all processes end. The first announcement counts."""
        with contextlib.suppress(Exception):
            self._store.key_value_set(f"{_PREFIX}/end", json.dumps(dataclasses.asdict(end)))

    def close(self) -> None:
        """Says that this process has ended well."""
        self._stop.set()
        self._thread.join(_LEAVE_SECONDS)
        with contextlib.suppress(Exception):
            self._store.key_value_set(f"{_PREFIX}/alive/{self._process}", self._line(_DONE), True)

    def leave(self) -> None:
        """Call before the process exits with a failure: the first process, which serves the store, goes last."""
        with contextlib.suppress(Exception):
            self._store.key_value_set(f"{_PREFIX}/left/{self._process}", "", True)
            end = time.monotonic() + _LEAVE_SECONDS
            while self._process == 0 and time.monotonic() < end:
                if len(self._store.key_value_dir_get(f"{_PREFIX}/left/")) == self._count:
                    time.sleep(0.2)  # the last one is about to exit
                    return
                time.sleep(0.1)

    def _line(self, count: object) -> str:
        return json.dumps([count, socket.gethostname(), self._state()])

    def _run(self) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            try:
                self._store.key_value_set(f"{_PREFIX}/alive/{self._process}", self._line(count), True)
                self._hear()
                if text := self._value("end"):
                    self.end = End(**json.loads(text))
                self._refused_since = None
            except Exception:  # JAX has no types for these
                self._refused_since = self._refused_since or time.monotonic()
            self._stop.wait(0.5 if self._refused_since else self._beat)

    def _hear(self) -> None:
        if self._process == 0:
            lines = {
                int(key.rpartition("/")[2]): line for key, line in self._store.key_value_dir_get(f"{_PREFIX}/alive/")
            }
        else:
            lines = {0: self._value("alive/0")}
        for other in self._watched:
            line = lines.get(other)
            if line and (line != self._last.get(other) or _parsed(line)[0] == _DONE):
                self._last[other], self._hosts[other] = line, _parsed(line)[1]
                self._heard[other] = time.monotonic()

    def _value(self, key: str) -> str:
        """The value of a key; empty if nobody has set it."""
        try:
            return str(self._store.key_value_try_get(f"{_PREFIX}/{key}"))
        except Exception as error:  # JAX has no type of its own for this
            if "NOT_FOUND" in str(error):
                return ""
            raise


def _parsed(line: str) -> tuple[Any, str, str]:
    count, host, state = json.loads(line)
    return count, host, state
