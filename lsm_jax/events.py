"""What happens in a run beside its metrics: one JSON line per event and process, and a sentence on the terminal."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

EVENTS = "events.jsonl"
_LATEST = 1e11  # seconds since 1970; later times are damage


class Report(Protocol):
    """`EventLog.report`, as components take it."""

    def __call__(self, event: str, sentence: str, *, step: int | None = None, **details: Any) -> None: ...


class EventLog:
    """The events of one process of a run.

    A line has `time` (seconds since 1970), `process`, `host`, `event` (a name of docs/reference/runs.md), `step`,
    `sentence` and the details. It may be called from any thread. A line that cannot be written is dropped: the log must
    never end a run.

    Args:
      file: the log of this process; None writes none.
      process: its number.
      show: called with each sentence.
    """

    def __init__(self, file: Path | None, process: int, show: Callable[[str], None]) -> None:
        self._file, self._process, self._show = file, process, show
        self._host, self._lock = socket.gethostname(), threading.RLock()  # showing may report

    def report(self, event: str, sentence: str, *, step: int | None = None, **details: Any) -> None:
        """Writes an event and shows its sentence.

        Args:
          step: steps taken, where the event belongs to one.
          details: further JSON values.
        """
        line = {"time": time.time(), "process": self._process, "host": self._host, "event": event}
        line |= {"step": step} if step is not None else {}
        text = json.dumps({**line, "sentence": sentence, **details}, default=str) + "\n"
        with self._lock:
            if self._file:
                with contextlib.suppress(OSError):
                    _append(self._file, text)
            self._show(sentence)


def _append(file: Path, text: str) -> None:
    """Adds a line. If a crash or a full disk has cut the last one short, it is ended first: only that one is lost."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as stream:
        if stream.seek(0, os.SEEK_END):
            stream.seek(-1, os.SEEK_END)
            text = text if stream.read() == b"\n" else f"\n{text}"
        stream.write(text.encode())


def event_file(workdir: Path, process: int) -> Path:
    """The log of a process: processes on several hosts cannot safely append to the same file."""
    return workdir / (EVENTS if process == 0 else f"events-{process}.jsonl")


def read_events(workdir: Path) -> list[dict[str, Any]]:
    """The events of all processes in the order of their time, without lines that a crash cut short."""
    events = []
    for file in sorted(workdir.glob("events*.jsonl")):
        for event in json_lines(file.read_text(encoding="utf-8", errors="replace")):
            when = event.get("time")
            if isinstance(when, (int, float)) and 0 <= when < _LATEST:
                events.append(event)
    return sorted(events, key=lambda event: event["time"])


def json_lines(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file with one in each line, without lines that a crash cut short."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(content := json.loads(line), dict):
                yield content
