"""The lock of a run folder: one run at a time, whatever happened to the run before.

The lock is a file with the holder's host, process, start and a counter that grows every few seconds. The operating
system's lock on the file (`flock`) ends with its process, so a crashed run on the same machine leaves nothing behind.
Another machine may not see that lock on a network file system; there the counter tells whether the holder still runs.
Clocks of different hosts are never compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lsm_jax.errors import UserError
from lsm_jax.events import Report

LOCK = "run.lock"
BEAT_SECONDS = 5.0
_BEATS_TO_WAIT = 4  # without a change of the counter, the holder is taken for dead


class RunLock(contextlib.AbstractContextManager["RunLock"]):
    """Holds a run folder, from `with` to the end of the block. Only the first process of a run takes it.

    Args:
      report: told when a run that has not ended properly is replaced.
      lost: called with a sentence if another run has taken the folder over, because this one was stopped for long.
      beat: seconds between two changes of the counter.

    Attributes:
      token: of this holder.
      replaced: the token of the dead holder whose place it took; empty if there was none.

    Raises:
      UserError: another run holds the folder, or it cannot be written.
    """

    def __init__(self, workdir: Path, report: Report, lost: Callable[[str], None], beat: float = BEAT_SECONDS) -> None:
        self._file, self._report, self._lost, self._beat = workdir / LOCK, report, lost, beat
        self.token, self.replaced = uuid.uuid4().hex, ""
        self._holder = {
            "host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "machine": _machine(), "token": self.token, "beat": beat,
        }  # fmt: skip
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="run lock", daemon=True)

    def __enter__(self) -> RunLock:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = self._acquire()
            self._write(0)
        except OSError as error:
            raise UserError(f"{self._file.parent} cannot be used as --workdir: {error.strerror or error}.") from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._thread.join(self._beat)
        with contextlib.suppress(OSError):
            if _read(self._file).get("token") == self.token:
                self._file.unlink()
            os.close(self._descriptor)

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
            locked = _flock(descriptor)
            holder = _read(self._file)
            if locked is False:
                os.close(descriptor)
                raise UserError(in_use(self._file.parent, holder))
            if not _is_same_file(descriptor, self._file):
                os.close(descriptor)  # its holder has released and deleted it in between
                continue
            if holder and not (locked and holder.get("machine") == self._holder["machine"]):
                self._watch(holder, descriptor)
            if holder:
                self.replaced = str(holder.get("token", ""))
                say_took_over(self._report, holder)
                # A new file: if the old holder was only stopped, what it still writes is not read.
                self._file.unlink()
                os.close(descriptor)
                continue
            return descriptor

    def _watch(self, holder: dict[str, Any], descriptor: int) -> None:
        """UserError if the counter of a holder on another machine grows."""
        patience = _BEATS_TO_WAIT * float(holder.get("beat") or BEAT_SECONDS)
        say_waiting(self._report, self._file, holder, patience)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(min(0.5, patience / 10))
            now = _read(self._file)
            if now and now != holder:
                os.close(descriptor)
                raise UserError(in_use(self._file.parent, now))

    def _keep(self) -> None:
        count = 0
        while not self._released.wait(self._beat):
            count += 1
            try:
                holder = _read(self._file)
                if holder.get("token", self.token) != self.token:
                    self._lost(taken_over(self._file.parent, holder))
                    return
                self._write(count)
            except OSError:
                continue  # a passing error of the file system must not end the run

    def _write(self, count: int) -> None:
        text = json.dumps({**self._holder, "count": f"{count:012}"}).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))


def holds(workdir: Path, token: str, patience: float = 10.0) -> bool:
    """Whether this host sees the lock with this token in the folder, now or soon: network file systems are late."""
    end = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            if _read(workdir / LOCK).get("token") == token:
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)


def _machine() -> str:
    """This start of this machine; containers on it share it, and share its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _flock(descriptor: int) -> bool | None:
    """Takes the operating system's lock; False if another process has it, None where there are no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _read(file: Path) -> dict[str, Any]:
    """The holder; empty if there is none or it is just being written."""
    try:
        holder = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def in_use(place: Path | str, holder: dict[str, Any]) -> str:
    """Why a run may not start in a place, folder or URL, that another one holds."""
    return (
        f"{place} is in use by another run: {_named(holder)}. Stop that one or wait for its end, or use another "
        "--workdir."
    )


def taken_over(place: Path | str, holder: dict[str, Any]) -> str:
    """Why a run that was stopped for long may not go on."""
    return f"another run, {_named(holder)}, has taken {place} over: this one was stopped."


def say_took_over(report: Report, holder: dict[str, Any]) -> None:
    """Reports that this run replaces one that died."""
    report("took_over", f"the run of {_named(holder)} has not ended properly; this run goes on.", holder=holder)


def say_waiting(report: Report, lock: Path | str, holder: dict[str, Any], seconds: float) -> None:
    """Reports that a holder on another machine is watched before it is taken for dead."""
    sentence = f"{lock} names {_named(holder)}: waiting {seconds:.0f} s for a sign of life from it."
    report("waiting_for_lock", sentence, holder=holder)


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "a process that is just starting"
    since = f", since {holder['since']}" if "since" in holder else ""
    return f"process {holder.get('pid')} on {holder.get('host')}{since}"
