"""The lock of a run in an object store: an object with the holder and a counter that grows.

Two runs on one host are kept apart by the lock of their local copy (`train.lock`), which needs no waiting.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from lsm_jax.errors import RunError, UserError
from lsm_jax.events import Report
from lsm_jax.storage import Store
from lsm_jax.train.lock import LOCK, in_use, say_took_over, say_waiting, taken_over

BEAT_SECONDS = 10.0
_BEATS_TO_WAIT = 3  # without a change of the counter, the holder is taken for dead


class StoreLock(contextlib.AbstractContextManager["StoreLock"]):
    """Holds a run in a store, from `with` to the end of the block. Only the first process of a run takes it.

    Args:
      token: of this start of the run.
      report: told when a run that has not ended properly is replaced.
      lost: called with a sentence if another run has taken the lock over, because this one was stopped for long.
      beat: seconds between two changes of the counter.
      replaced: token of a dead holder of the local copy's lock. Its run cannot be alive, so it is not waited for.

    Raises:
      UserError: another run holds it.
    """

    def __init__(
        self,
        store: Store,
        token: str,
        report: Report,
        lost: Callable[[str], None],
        beat: float = BEAT_SECONDS,
        replaced: str = "",
    ) -> None:
        self._store, self._token, self._report, self._lost, self._beat = store, token, report, lost, beat
        self._holder = {
            "host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "token": token,
        }  # fmt: skip
        self._replaced = replaced
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="store lock", daemon=True)

    def __enter__(self) -> StoreLock:
        holder = _read(self._store)
        # The host's name does not tell: containers and users of one host have copies of their own.
        if holder and holder.get("token") != self._replaced:
            self._watch(holder)
        if holder:
            say_took_over(self._report, holder)
        self._write(0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join(self._beat)
        with contextlib.suppress(UserError, RunError):
            if _read(self._store).get("token") == self._token:
                self._store.delete([LOCK])

    def _watch(self, holder: dict[str, Any]) -> None:
        patience = _BEATS_TO_WAIT * self._beat
        say_waiting(self._report, self._store.url, holder, patience)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(self._beat / 4)
            now = _read(self._store)
            if not now:
                return
            if now != holder:
                raise UserError(in_use(self._store.url, now))

    def _keep(self) -> None:
        count = 0
        while not self._released.wait(self._beat):
            count += 1
            # A passing error of the store must not end the run.
            with contextlib.suppress(UserError, RunError):
                holder = _read(self._store)
                if holder and holder.get("token") != self._token:
                    self._lost(taken_over(self._store.url, holder))
                    return
                self._write(count)

    def _write(self, count: int) -> None:
        self._store.write(LOCK, json.dumps({**self._holder, "count": count}).encode())


def holds(store: Store, token: str) -> bool:
    """Whether this process sees the lock with this token."""
    return bool(_read(store).get("token") == token)


def _read(store: Store) -> dict[str, Any]:
    try:
        holder = json.loads(store.read(LOCK) or b"{}")
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}
