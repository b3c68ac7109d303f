"""A progress bar for long verbs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[..., None]]:
    """Shows a bar on the terminal; yields `update(done, total, what)`. What fails before it starts shows none.

    `what` is a line for another kind of work than the description says; it may be left out.
    """
    # Imported here, because the rest of the command line should not wait for it.
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(description, total=None)

        def update(done: int, total: int, what: str = "") -> None:
            progress.update(task, description=what or description, completed=done, total=total)

        try:
            yield update
        finally:
            progress.update(task, visible=progress.tasks[0].total is not None)
