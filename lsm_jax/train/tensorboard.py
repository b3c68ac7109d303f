"""TensorBoard events of a run. They repeat `metrics.jsonl`, so that they are given up where they cannot be written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tensorboardX import SummaryWriter


class TensorBoard:
    """Writes scalars until it fails; then says so, once, and writes none.

    Args:
      purge_step: records from this step on were undone.
      failed: called with the reason.
    """

    def __init__(self, folder: Path, purge_step: int, failed: Callable[[str], None]) -> None:
        self._failed = failed
        self._writer: SummaryWriter | None = None
        with self._giving_up():
            self._writer = SummaryWriter(str(folder), purge_step=purge_step, write_to_disk=True)

    def write(self, step: int, scalars: Iterable[tuple[str, float]]) -> None:
        """Adds the scalars of a step."""
        for name, value in scalars:
            with self._giving_up():
                self._check()
                if self._writer:
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes out what is left."""
        with self._giving_up():
            self._check()
            if self._writer:
                self._writer.close()

    def _check(self) -> None:
        """The library writes in a thread; when that has failed, adding to its full queue would block for ever."""
        if self._writer and not self._writer.file_writer.event_writer._worker.is_alive():
            self._writer.file_writer.event_writer._event_queue.cancel_join_thread()
            raise OSError("its file cannot be written")

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            self._failed(error.strerror or str(error))
