"""How the processes of a run meet before JAX connects them: who is missing is said, and waiting has an end.

`jax.distributed.initialize` waits in silence and aborts the process when its time is over. So the processes first meet
at the address of process 0 by themselves, one JSON line each way, and start JAX when all are there.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from lsm_jax.errors import RunError, UserError

SAY_EVERY = 15.0
_TICK = 1.0
_MAX_LINE = 100_000  # bytes; whatever connects to the port is not trusted


def meet(address: str, process: int, count: int, timeout: float, say: Callable[[str], None]) -> None:
    """Returns when all processes have called it.

    Args:
      address: HOST:PORT of process 0, which listens there until all have come.
      timeout: seconds to wait.
      say: told every 15 s who is missing.

    Raises:
      RunError: not all came in time.
      UserError: the processes disagree about their numbers or count, or the port is taken.
    """
    host, _, port = address.rpartition(":")
    say_every = min(SAY_EVERY, timeout / 3)
    if process == 0:
        _Host(int(port), count, timeout, say_every, say).run()
    else:
        _join(host.strip("[]"), int(port), process, count, timeout, say_every, say)


class _Host:
    """Process 0: takes the others in."""

    def __init__(self, port: int, count: int, timeout: float, say_every: float, say: Callable[[str], None]) -> None:
        self._port, self._count, self._timeout, self._say_every, self._say = port, count, timeout, say_every, say
        self._joined: dict[int, tuple[socket.socket, str]] = {}

    def run(self) -> None:
        try:
            server = _listen(self._port)
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen at port {self._port} of this host ({error.strerror}). Does another run use "
                "it? Give all processes a --coordinator with another port."
            ) from error
        with server, contextlib.ExitStack() as stack:
            start = said = told = time.monotonic()
            while missing := self._missing():
                server.settimeout(_TICK / 4)
                with contextlib.suppress(TimeoutError):
                    connection = stack.enter_context(server.accept()[0])
                    self._take(connection)
                now = time.monotonic()
                text = f"{_listed(missing)} of {self._count}"
                if now - start > self._timeout:
                    self._refuse(
                        RunError(
                            f"{text} did not start within {self._timeout:.0f} s (--join-timeout). Processes 0 to "
                            f"{self._count - 1} must all be started with the same --coordinator."
                        )
                    )
                if now - said >= self._say_every:
                    said = now
                    self._say(f"waiting for {text} to start, for up to {self._timeout - (now - start):.0f} s more")
                if now - told >= _TICK:
                    told = now
                    self._send(f"waiting for {text}")
            self._send("", go=True)

    def _missing(self) -> list[int]:
        """The processes that have not come, or have ended while they waited; those may be started again."""
        self._joined = {number: joined for number, joined in self._joined.items() if self._is_open(number)}
        return [number for number in range(1, self._count) if number not in self._joined]

    def _take(self, connection: socket.socket) -> None:
        connection.settimeout(2)
        try:
            line = json.loads(next(_lines(connection)))
            number, count, host = int(line["process"]), int(line["count"]), str(line["host"])
        except (OSError, StopIteration, ValueError, KeyError, TypeError, RecursionError):
            connection.close()  # not a process of a run
            return
        if count != self._count:
            self._joined[-1] = connection, host
            self._refuse(
                UserError(
                    f"process {number} (host {host}) was started as one of {count} processes, process 0 as one of "
                    f"{self._count}. --process-count must be the same."
                )
            )
        if number in self._joined and self._is_open(number):
            first = self._joined[number][1]
            self._joined[-1] = connection, host
            self._refuse(
                UserError(f"two processes, on {first} and {host}, have --process-id {number}; each needs its own.")
            )
        self._joined[number] = connection, host

    def _is_open(self, number: int) -> bool:
        connection = self._joined[number][0]
        connection.setblocking(False)
        try:
            return connection.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _refuse(self, error: RunError | UserError) -> None:
        self._send(str(error), refused=2 if isinstance(error, UserError) else 1)
        raise error

    def _send(self, text: str, **more: Any) -> None:
        line = json.dumps({"text": text, **more}).encode() + b"\n"
        for number, (connection, _) in list(self._joined.items()):
            try:
                connection.settimeout(2)
                connection.sendall(line)
            except OSError:
                del self._joined[number]  # it has ended; it may be started again


def _join(
    host: str, port: int, process: int, count: int, timeout: float, say_every: float, say: Callable[[str], None]
) -> None:
    """Any other process: asks process 0 until it says go."""
    start = said = time.monotonic()
    problem = ""
    while time.monotonic() - start < timeout:
        try:
            # Process 0 listens for as long as we wait, and ends a little later where it started a little later.
            with socket.create_connection((host, port), timeout=5) as connection:
                connection.sendall(
                    json.dumps({"process": process, "count": count, "host": socket.gethostname()}).encode() + b"\n"
                )
                connection.settimeout(10 * _TICK)
                for line in _lines(connection):
                    answer = json.loads(line)
                    if answer.get("go"):
                        return
                    if code := answer.get("refused"):
                        raise (UserError if code == 2 else RunError)(answer["text"])
            problem = "it closed the connection"
        except (ValueError, AttributeError):
            problem = "another program answers"
        except OSError as error:
            problem = error.strerror or str(error)
        now = time.monotonic()
        if now - said >= say_every:
            said = now
            left = f"for up to {timeout - (now - start):.0f} s more"
            say(f"process {process} waits for process 0 at {host}:{port} ({problem}), {left}")
        time.sleep(min(_TICK, timeout / 10))
    raise RunError(
        f"process 0 could not be reached at {host}:{port} within {timeout:.0f} s (--join-timeout): {problem}. Is it "
        "running, is the address right, and does a firewall let the port through?"
    )


def _listen(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def _lines(connection: socket.socket) -> Iterator[bytes]:
    """Lines as they arrive, until the other side closes."""
    buffer = b""
    while len(buffer) < _MAX_LINE:
        if b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            yield line
        elif part := connection.recv(4096):
            buffer += part
        else:
            return


def _listed(processes: list[int]) -> str:
    shown = ", ".join(map(str, processes[:8])) + (f" and {len(processes) - 8} more" if len(processes) > 8 else "")
    return ("process " if len(processes) == 1 else "processes ") + shown
