"""What a file, or an entry of one, that cannot be read costs: itself and no other, with every row counted."""

from __future__ import annotations

import contextlib
import errno
import traceback
from collections.abc import Iterator
from pathlib import Path

from lsm_jax.errors import Preempted, RunError, UserError
from lsm_jax.ingest.files.source import UnreadableFile
from lsm_jax.ingest.report import IngestReport

UNREADABLE_ENTRY = "entry is not readable"
LOST_ROWS = "of a file or a person that was set aside"
# What the machine lacks is no fault of a file: the next file would meet it too.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_PACKAGE = Path(__file__).parents[2]


@contextlib.contextmanager
def reading(label: str, report: IngestReport, *, whole: bool = False) -> Iterator[None]:
    """Sets aside a file (or a person) that is unreadable, or that meets an error nobody foresaw.

    Rows that were read and not kept are set aside.

    Args:
      whole: nothing that was read before the fault is used: the rows that were kept are set aside too.

    Raises:
      UserError, RunError: the user must act, or the run cannot go on.
    """
    kept, unaccounted = report.rows_kept, report.rows_unaccounted
    try:
        yield
    except (UserError, RunError, Preempted):
        raise
    except UnreadableFile as error:
        report.set_aside(label, str(error))
    except BaseException as error:
        if is_of_the_machine(error) or not (isinstance(error, Exception) or is_panic(error)):
            raise
        report.set_aside(label, f"the reader failed ({failure(error)}); please report it")
    else:
        return
    if whole:
        report.rows_kept = kept
    report.quarantine(LOST_ROWS, label, rows=report.rows_unaccounted - unaccounted)


class UnusableEntry(ValueError):
    """An entry of a file that cannot be used. The message says why, in words that hold nothing of the entry."""


@contextlib.contextmanager
def entry(label: str, number: int, report: IngestReport) -> Iterator[None]:
    """Counts an entry of a file, such as a JSON object, as kept; one that is not as its format says is set aside."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        # The words of other errors may hold values of a person.
        report.quarantine(str(error) if isinstance(error, UnusableEntry) else UNREADABLE_ENTRY, label, [number])
    else:
        report.rows_kept += 1


def is_panic(error: BaseException) -> bool:
    """Whether a parser written in Rust panicked, which is not of class Exception and has a class in each library."""
    return type(error).__name__ == "PanicException"


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error is of a full disk, of memory, or of limits of the system."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OF_THE_MACHINE)


def failure(error: BaseException) -> str:
    """Kind and place of an error, without its message, which may hold values of a person."""
    frames = traceback.extract_tb(error.__traceback__)
    own = next((frame for frame in reversed(frames) if Path(frame.filename).is_relative_to(_PACKAGE)), None)
    place = f" at {Path(own.filename).relative_to(_PACKAGE).as_posix()}:{own.lineno}" if own else ""
    return f"{type(error).__name__}{place}"
