"""The two ways a command ends badly, and the sentence it leaves behind."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: a person must change something. The command line exits with code 2.

    The message says what is wrong, where (file:line, key or channel) and how to fix it.
    """


class RunError(Exception):
    """A run that was rightly asked for has failed. The command line exits with code 1."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A clause offering the known names nearest to `name`, empty when none is near."""
    candidates = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(candidate) for candidate in candidates)}?" if candidates else ""
