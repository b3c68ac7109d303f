"""Keeps the tracebacks of a failed write off the terminal, which a run reports in one sentence.

When one array cannot be written, the others of the same save cannot either: Orbax's threads, their event loops and
TensorStore's callbacks print a traceback for each, thousands of lines in all.
"""

from __future__ import annotations

import functools
import logging
import sys


@functools.cache
def one_sentence_for_a_failed_write() -> None:
    """Drops what Orbax, its event loops and TensorStore print about writes that fail together."""
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).addFilter(lambda record: not _from_orbax(record))
    shown = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            shown(unraisable)

    sys.unraisablehook = hook


def _from_orbax(record: logging.LogRecord) -> bool:
    """Whether a record is a traceback of Orbax; those of event loops name the coroutine's file."""
    return bool(record.exc_info) and ("/orbax/" in record.pathname or "/orbax/" in record.getMessage())
