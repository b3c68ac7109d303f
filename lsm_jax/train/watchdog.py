"""Ends a run that hangs: with a sentence, the stacks of all threads and an exit code, instead of silence.

Two things can hang. This process may take no step, because a device or a file system does not answer. Or another
process is gone or stopped, and collective operations wait for it. While the main thread hangs, none of its Python code
runs. A thread of the watchdog therefore ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from lsm_jax.config import TrainConfig
from lsm_jax.errors import RunError, UserError
from lsm_jax.events import Report
from lsm_jax.train.agreement import Disagreement
from lsm_jax.train.peers import End, Peers
from lsm_jax.train.processes import exit_with, key_value_store, process_of

_SAY_EVERY = 15.0  # seconds of silence of a process until, and between, the sentences about it
_BEAT_SECONDS = 2.0
_STOPPED = 10.0  # a pause of this watchdog of so many seconds means that this process itself was stopped
_SAVE_SECONDS = 20.0  # for a save in the background to be committed before the process ends
_DUMP_SECONDS = 5.0
_SLOW_PHASES = {"start", "compile", "evaluate", "checkpoint"}
_SLOW = 10  # these phases may take so many times `train.hang_timeout`


class Watchdog(contextlib.AbstractContextManager["Watchdog"]):
    """Watches the main thread of this process, and the other processes of the run.

    Args:
      workdir: gets `hang-PROCESS.txt`, the stacks of all threads, when this process is ended.
      config: `hang_timeout` and `lost_timeout`.
      report: told who is missing, and why the run ends.

    Attributes:
      phase: returns what the main thread is doing, a bucket of the clock.
      saving: returns whether a save in the background is not committed yet.
    """

    def __init__(self, workdir: Path, config: TrainConfig, report: Report) -> None:
        self._workdir, self._report = workdir, report
        self._hang_timeout, self._lost_timeout = config.hang_timeout, config.lost_timeout
        self._say_every = min(_SAY_EVERY, self._lost_timeout / 3) if self._lost_timeout > 0 else _SAY_EVERY
        self._step, self._moved, self._last_phase = 0, time.monotonic(), "start"
        self.phase: Callable[[], str] = lambda: "start"
        self.saving: Callable[[], bool] = lambda: False
        self._process, count = process_of()
        self._peers: Peers | None = None
        if count > 1:
            beat = min(_BEAT_SECONDS, self._say_every / 4)
            self._peers = Peers(key_value_store(), self._process, count, self._state, beat)
            _delay_abort()
        self._impatient, self._said = False, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def progress(self, step: int) -> None:
        """Call after each step and each part of a long evaluation."""
        self._step, self._moved = step, time.monotonic()

    def finish(self) -> None:
        """Call when the work of the run is done. How this process ends from now on concerns no other."""
        self._stop.set()
        if self._peers:
            self._peers.close()
            self._peers = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Tells the other processes if this one fails, so that they do not wait for it."""
        if self._peers and error is not None and _of_communication(error):
            # The thread ends this process with a better sentence if another one is missing.
            self._impatient = True
            self._stop.wait(max(self._lost_timeout, 3 * self._say_every) + _SAVE_SECONDS)
        self._stop.set()
        if error is None:
            self.finish()
        if not self._peers:
            return
        code = 2 if isinstance(error, UserError) else 130 if isinstance(error, KeyboardInterrupt) else 1
        text = str(error) if isinstance(error, (UserError, RunError)) else f"{type(error).__name__}: {error}"
        if not isinstance(error, Disagreement):
            where = f"process {self._process} (host {socket.gethostname()})"
            self._peers.announce(End(f"{where} has failed: {text}", code))
        exit_with(code, self._peers.leave)

    def end(self, sentence: str, code: int = 1, event: str = "ended", alone: bool = False) -> None:
        """Ends this process at once, from any thread; never returns.

        Args:
          alone: the first process is gone, which commits checkpoints and passes on what processes tell each other.
        """
        exits = threading.Timer(_SAVE_SECONDS + 4 * _DUMP_SECONDS, os._exit, [code])
        exits.daemon = True
        exits.start()
        file = self._workdir / f"hang-{self._process}.txt"
        # A refused input needs no stacks.
        dumped = code == 1 and _within(_DUMP_SECONDS, lambda: _dump_stacks(file))
        until = time.monotonic() + _SAVE_SECONDS
        while not alone and time.monotonic() < until and self.saving():
            time.sleep(0.1)
        stacks = f" What every thread was doing is in {file}." if dumped else ""
        _within(_DUMP_SECONDS, lambda: self._report(event, sentence, step=self._step))
        _within(_DUMP_SECONDS, lambda: print(f"lsm train: failed: {sentence}{stacks}", file=sys.stderr, flush=True))
        if self._peers and not alone:
            _within(2 * _DUMP_SECONDS, self._peers.leave)
        os._exit(code)

    def _state(self) -> str:
        return f"at step {self._step}, in {self.phase()!r}"

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(min(1.0, self._say_every / 4)):
            now = time.monotonic()
            if now - before > _STOPPED:
                self._moved += now - before
                if self._peers:
                    self._peers.forgive(now - before)
            before = now
            if peers := self._peers:
                self._check_peers(peers)
            self._check_main_thread()

    def _check_peers(self, peers: Peers) -> None:
        if peers.end:
            self.end(peers.end.sentence, peers.end.code)
        lost_after = self._say_every if self._impatient else self._lost_timeout
        if lost_after > 0 and (lost := peers.silent(lost_after)):
            sentence = (
                f"{peers.named(lost)} gave no sign of life for {lost_after:.0f} s: killed, stopped or cut off from the "
                "network. The run goes on from its last checkpoint when all processes are started again."
            )
            if 0 not in lost:
                _within(_DUMP_SECONDS, lambda: peers.announce(End(sentence, 1)))
            self.end(sentence, event="process_lost", alone=0 in lost)
        silent = peers.silent(self._say_every)
        if silent and time.monotonic() - self._said >= self._say_every:
            self._said = time.monotonic()
            ends = f" The run ends after {self._lost_timeout:.0f} s." if self._lost_timeout > 0 else ""
            self._report(
                "waiting_for_processes",
                f"waiting for {peers.named(silent)}: no sign of life for {self._say_every:.0f} s or more.{ends}",
                step=self._step,
            )

    def _check_main_thread(self) -> None:
        phase = self.phase()
        if phase != self._last_phase:
            self._last_phase, self._moved = phase, time.monotonic()
        seconds = time.monotonic() - self._moved
        limit = self._hang_timeout * (_SLOW if phase in _SLOW_PHASES else 1)
        if 0 < limit < seconds:
            key = "train.hang_timeout" + (f" x {_SLOW}" if phase in _SLOW_PHASES else "")
            sentence = (
                f"process {self._process} (host {socket.gethostname()}) hangs: no progress for {limit:.0f} s ({key}) "
                f"{self._state()}."
            )
            if self._peers:
                sentence += f" The others: {self._peers.states()}."
                self._peers.announce(End(sentence, 1))
            self.end(sentence, event="hang")


def _of_communication(error: BaseException) -> bool:
    """Whether the loss of another process may have caused an error: a collective operation failed."""
    words = ("gloo", "nccl", "connection", "coordination", "unavailable", "deadline_exceeded", "barrier")
    return isinstance(error, Exception) and any(word in str(error).lower() for word in words)


def _dump_stacks(file: Path) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}, process id {os.getpid()}\n")
        stream.flush()
        faulthandler.dump_traceback(stream, all_threads=True)


def _within(seconds: float, action: Callable[[], object]) -> bool:
    """Does something that may hang or fail; whether it was done in time."""
    done = threading.Event()

    def run() -> None:
        with contextlib.suppress(Exception):
            action()
            done.set()

    threading.Thread(target=run, daemon=True).start()
    return done.wait(seconds)


def _delay_abort() -> None:
    """Lets the watchdog speak when JAX aborts this process, which it does as soon as the first process is gone.

    The handler of SIGABRT is the C library's `sleep`: it gets the number of the signal, 6, as its seconds.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))
