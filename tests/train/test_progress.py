"""What a person reads while a run trains: a bar on a terminal, lines in a log, nothing from the other processes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lsm_jax.train.terminal import ProgressReporter


@pytest.mark.parametrize(("speaks", "printed"), [(True, "begun\nstep 10: loss 0.5\n"), (False, "")])
def test_a_log_gets_a_line_per_record_from_the_first_process_only(speaks: bool, printed: str) -> None:
    log = io.StringIO()
    terminal = ProgressReporter(total=20, enabled=speaks, console=Console(file=log, quiet=not speaks, soft_wrap=True))
    terminal.message("begun")
    terminal.update(10, "loss 0.5")
    terminal.close()
    assert log.getvalue() == printed
