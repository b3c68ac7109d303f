"""How the processes of a run meet, and what is said where they do not."""

from __future__ import annotations

import concurrent.futures
import json
import re
import socket
import time
from collections.abc import Iterator

import pytest

from lsm_jax.errors import RunError, UserError
from lsm_jax.train.joining import meet


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Meeting:
    """Processes that are threads of this one."""

    def __init__(self, port: int) -> None:
        self._port, self._pool = port, concurrent.futures.ThreadPoolExecutor(8)
        self.said: list[str] = []

    def start(self, process: int, count: int, timeout: float = 60) -> concurrent.futures.Future[None]:
        return self._pool.submit(meet, f"127.0.0.1:{self._port}", process, count, timeout, self.said.append)


@pytest.fixture
def meeting(port: int) -> Iterator[Meeting]:
    meeting = Meeting(port)
    yield meeting
    meeting._pool.shutdown()


def connect(port: int) -> socket.socket:
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.01)


def test_processes_meet_in_any_order_and_ignore_strangers(meeting: Meeting, port: int) -> None:
    early = meeting.start(2, 3)
    first = meeting.start(0, 3)
    with connect(port) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\n")
        late = meeting.start(1, 3)
        for process in (first, early, late):
            process.result(timeout=60)


def test_who_has_not_started_is_said_until_the_time_is_over(meeting: Meeting) -> None:
    processes = [meeting.start(number, 4, timeout=1.5) for number in (0, 2)]
    for process in processes:
        with pytest.raises(RunError, match="processes 1, 3 of 4 did not start within 2 s"):
            process.result(timeout=60)
    assert re.match(r"waiting for processes 1, 3 of 4 to start, for up to \d s more", meeting.said[-1])


def test_without_process_0_the_others_say_so(meeting: Meeting, port: int) -> None:
    with pytest.raises(RunError, match=f"process 0 could not be reached at 127.0.0.1:{port} within 2 s.*refused"):
        meeting.start(1, 2, timeout=1.5).result(timeout=60)
    assert f"process 1 waits for process 0 at 127.0.0.1:{port} (Connection refused)" in meeting.said[0]


@pytest.mark.parametrize(
    ("second", "words"),
    [((1, 4), r"process 1 \(host .*\) was started as one of 4 processes, process 0 as one of 3"),
     ((2, 3), "two processes, on .* and .*, have --process-id 2")],
)  # fmt: skip
def test_processes_that_number_themselves_differently_are_refused(
    meeting: Meeting, port: int, second: tuple[int, int], words: str
) -> None:
    first = meeting.start(0, 3)
    with connect(port) as joined:
        joined.sendall(json.dumps({"process": 2, "count": 3, "host": "b"}).encode() + b"\n")
        assert b"waiting" in joined.recv(1000)
        for process in (first, meeting.start(*second)):
            with pytest.raises(UserError, match=words):
                process.result(timeout=60)
        assert re.search(words, joined.makefile().read())


def test_a_process_that_ends_while_it_waits_may_be_started_again(meeting: Meeting, port: int) -> None:
    first = meeting.start(0, 3)
    with connect(port) as killed:
        killed.sendall(json.dumps({"process": 1, "count": 3, "host": "b"}).encode() + b"\n")
        assert b"waiting" in killed.recv(1000)
    for process in (meeting.start(1, 3), meeting.start(2, 3), first):
        process.result(timeout=60)


def test_a_taken_port_is_a_sentence(meeting: Meeting, port: int) -> None:
    with socket.create_server(("", port)), pytest.raises(UserError, match=f"cannot listen at port {port} of this host"):
        meeting.start(0, 2).result(timeout=60)
