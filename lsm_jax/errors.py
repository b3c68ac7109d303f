"""The errors that the command line reports as one sentence and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input (exit code 2). The message says what is wrong, where (file:line, key or channel), and how to fix it."""


class RunError(Exception):
    """A run with correct input failed (exit code 1)."""


class Preempted(Exception):
    """A run was asked to stop, and has saved (exit code 75): the same command resumes it."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A sentence that suggests the known names most similar to `name`; empty if none is similar."""
    candidates = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(candidate) for candidate in candidates)}?" if candidates else ""
