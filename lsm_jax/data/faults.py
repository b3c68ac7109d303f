"""Failed reads and corrupt records: what is tried again, what is set aside, and who is told.

A read that fails is tried again, because file systems of clusters fail for seconds. A record that stays unreadable
while its file can be opened, that does not decode, or that is not the one its dataset was written with is corrupt. It
is set aside, and what reads it goes on without it, up to a limit. A file that cannot even be opened is an error: while
a file system is away, no good record may be lost.

Readers run in threads and worker processes, which must not write to the log of a run. They `add` what they meet, it
travels with the batch (`drain`), and the process that takes the batch reports it (`handle`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lsm_jax.errors import RunError, UserError
from lsm_jax.events import Report, json_lines
from lsm_jax.retries import retry

CORRUPT_RECORDS = "corrupt_records.jsonl"
_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between tries
_LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, RecursionError)
_DAMAGE = ("Corrupted", "Invalid", "ArrayRecord file should be")  # how sentences of the native reader begin
_MAX_NAMED = 10  # records in an error message

_T = TypeVar("_T")


class RecordError(UserError):
    """A record that cannot be used.

    Attributes:
      shard: name of its file.
      reason: what is wrong with it.
    """

    def __init__(self, directory: Path, shard: str, within: int, reason: str) -> None:
        file = directory / shard
        super().__init__(
            f"{file}: record {within} is damaged ({reason}). Restore the file, or write the dataset again."
        )
        self.shard, self.reason = shard, reason


@dataclasses.dataclass(frozen=True)
class CorruptRecord:
    """A record that was set aside.

    Attributes:
      dataset, fingerprint: name and `Dataset.fingerprint`.
      record: its number in the split, from 0.
      shard: name of its file.
    """

    dataset: str
    fingerprint: str
    split: str
    record: int
    shard: str
    reason: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What identifies the record."""
        return self.fingerprint, self.split, self.record

    def __str__(self) -> str:
        return f"record {self.record} of the {self.split} split of {self.dataset} ({self.shard}: {self.reason})"


@dataclasses.dataclass(frozen=True)
class FailedRead:
    """A read that failed and was tried again."""

    file: str
    reason: str


Note = CorruptRecord | FailedRead


class ReadFaults:
    """The corrupt records that are known, and what is still to be reported.

    Args:
      limit: corrupt records that are set aside before it is an error (`data.max_corrupt`).
      report: None prints to stderr.
    """

    def __init__(self, limit: int, report: Report | None = None) -> None:
        self.limit, self._report = limit, report or _print
        self._file: Path | None = None
        self._known: dict[tuple[str, str, int], CorruptRecord] = {}
        self._reported: set[tuple[str, str, int]] = set()
        self._added = threading.local()

    def begin_run(self, workdir: Path, process: int, report: Report) -> None:
        """From now on reports to the log of a run and lists corrupt records in its folder.

        Each process has a list of its own. Records on the lists of earlier starts are not read again.
        """
        name = CORRUPT_RECORDS if process == 0 else CORRUPT_RECORDS.replace(".", f"-{process}.")
        self._file, self._report = workdir / name, report
        self._known.update({record.key: record for record in read_corrupt_records(workdir)})
        self._reported.update(self._known)

    @property
    def count(self) -> int:
        """Corrupt records that have been reported."""
        return len(self._reported)

    def records(self, fingerprint: str) -> list[CorruptRecord]:
        """Those of a dataset that have been reported."""
        return [self._known[key] for key in sorted(self._reported) if key[0] == fingerprint]

    def known(self, fingerprint: str, split: str, record: int) -> CorruptRecord | None:
        """The corrupt record at a place, if there is one. Its file is not read again."""
        return self._known.get((fingerprint, split, record))

    def add(self, note: Note) -> None:
        """Takes note of a fault; any thread may call it.

        Raises:
          RunError: more corrupt records than the limit.
        """
        self._of_this_thread().append(note)
        if isinstance(note, CorruptRecord):
            self._known[note.key] = note
            self._check_limit()

    def drain(self) -> tuple[Note, ...]:
        """What this thread has added since its last call."""
        notes = tuple(self._of_this_thread())
        self._of_this_thread().clear()
        return notes

    def handle(self, notes: Iterable[Note]) -> None:
        """Reports faults: each corrupt record once, on the terminal and in the list.

        Raises:
          RunError: more corrupt records than the limit.
        """
        self._report_all(notes)
        if len(self._known) > self.limit:
            self._report_all([*self._known.values()])  # those of batches that will not be taken, too
        self._check_limit()

    def report_pending(self) -> None:
        """Reports what this thread has added; RunError as by `handle`."""
        self.handle(self.drain())

    def _of_this_thread(self) -> list[Note]:
        notes: list[Note] = self._added.__dict__.setdefault("notes", [])
        return notes

    def _report_all(self, notes: Iterable[Note]) -> None:
        for note in notes:
            if isinstance(note, FailedRead):
                sentence = f"a read of {note.file} failed and was tried again: {note.reason}"
                self._report("read_retried", sentence, file=note.file, reason=note.reason)
            elif note.key not in self._reported:
                self._known[note.key] = note
                self._reported.add(note.key)
                content = dataclasses.asdict(note)
                self._append(content)
                self._report("corrupt_record", f"set aside: {note}", **content)

    def _append(self, content: Mapping[str, Any]) -> None:
        if self._file:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(content) + "\n")
            except OSError as error:
                self._report("list_not_written", f"{self._file} cannot be written ({error.strerror})")

    def _check_limit(self) -> None:
        records = [*self._known.values()]
        if len(records) <= self.limit:
            return
        named = "; ".join(map(str, records[:_MAX_NAMED]))
        more = f"; and {len(records) - _MAX_NAMED} more" if len(records) > _MAX_NAMED else ""
        forget = f" and delete {self._file}" if self._file else ""
        raise RunError(
            f"{len(records)} corrupt records are more than data.max_corrupt={self.limit}: {named}{more}. Restore these "
            f"files{forget}, or go on without the records by a higher --config.data.max_corrupt."
        )

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process, which adds and drains but never reports."""
        return {"limit": self.limit, "_known": self._known}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["limit"])  # type: ignore[misc]
        self._known.update(state["_known"])


def read_corrupt_records(workdir: Path) -> list[CorruptRecord]:
    """The records that all processes of a run have listed, without lines that a crash cut short."""
    records = []
    for file in sorted(workdir.glob(CORRUPT_RECORDS.replace(".", "*."))):
        for content in json_lines(file.read_text(encoding="utf-8", errors="replace")):
            with contextlib.suppress(TypeError):  # it has other fields
                records.append(CorruptRecord(**content))
    return records


def with_retries(read: Callable[[], _T], failed: Callable[[Exception], object] = lambda _: None) -> _T:
    """The result of `read`, which is called again after a failure of the file system; the last failure is raised.

    Args:
      failed: called with each failure that is followed by another try.
    """

    def again(error: Exception, failures: int) -> bool:
        # Damage rarely passes: one more try tells a damaged file from a read that came back damaged.
        tries = len(_WAITS) if may_pass(error) else 1
        of_reading = isinstance(error, (OSError, RuntimeError))  # the native reader raises RuntimeError
        if not of_reading or isinstance(error, _LASTING) or failures >= tries:
            return False
        failed(error)
        return True

    return retry(read, _WAITS, again)


def may_pass(error: Exception) -> bool:
    """Whether a failure is of the file system and not of the content of a file."""
    return isinstance(error, (OSError, RuntimeError)) and bool(str(error)) and not str(error).startswith(_DAMAGE)


def first_line(error: Exception) -> str:
    """The first line of an error message, at most 160 characters."""
    return (str(error) or type(error).__name__).splitlines()[0][:160]


def _print(event: str, sentence: str, *, step: int | None = None, **details: Any) -> None:  # noqa: ARG001
    print(sentence, file=sys.stderr, flush=True)
