"""What a person sees while a run trains. A terminal or log reader that goes away must not end the run."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import IO, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class LastingStream(io.TextIOBase):
    """Passes text on until the other end is gone, and drops it from then on.

    Args:
      stream: a pipe, terminal or file.
      lost: called once, when it cannot be written any more.
    """

    def __init__(self, stream: TextIO, lost: Callable[[str], None] | None = None) -> None:
        self._stream, self._gone = stream, False
        self.lost = lost or (lambda _: None)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except ValueError:  # it is closed
            return False

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # rich chooses its characters by it
        return self._stream.encoding or "utf-8"

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._gone:
            return
        try:
            action()
        except (OSError, ValueError) as error:
            self._gone = True
            to_nowhere(self._stream)
            self.lost(str(error))


def to_nowhere(stream: TextIO) -> None:
    """Lets a stream whose other end is gone write to nowhere, so that the interpreter can close it without an error."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class ProgressReporter:
    """A progress bar on a terminal, or lines in a log file; silent unless `enabled`.

    Args:
      lost: called with the reason if nobody can read it any more.
    """

    def __init__(
        self, total: int, enabled: bool, console: Console | None = None, lost: Callable[[str], None] | None = None
    ) -> None:
        stream = LastingStream(sys.stderr, lost)
        self._console = console or Console(
            file=cast(IO[str], stream), quiet=not enabled, soft_wrap=True, highlight=False
        )
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._progress = Progress(*columns, console=self._console, disable=not (enabled and self._console.is_terminal))
        self._task = self._progress.add_task("training", total=total)
        self._progress.start()

    def message(self, text: str) -> None:
        """Prints a sentence, above the bar if there is one."""
        self._console.print(text, markup=False)

    def update(self, step: int, text: str) -> None:
        """Moves the bar, or prints a line where there is none."""
        if self._progress.disable:
            self.message(f"step {step}: {text}")
        self._progress.update(self._task, completed=step, description=text)

    def close(self) -> None:
        """Removes the bar."""
        self._progress.stop()
