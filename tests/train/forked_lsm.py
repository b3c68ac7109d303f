"""`lsm` in processes that are forked from one with all its imports: a start costs no imports, and can be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from lsm_jax.cli.main import main

Start = Callable[..., BaseProcess]


@contextlib.contextmanager
def forked_lsm(logs: Path) -> Iterator[Start]:
    """Gives `start(*arguments, compiled="")`, which starts `lsm ARGUMENTS` with one CPU device.

    Its output goes to `logs/N.log`, and programs that it compiles to the folder `compiled` if that is given. What still
    runs at the end is killed.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_NUM_CPU_DEVICES", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lsm_jax.cli.main", "lsm_jax.evals", "lsm_jax.train.loop"])
        started: list[BaseProcess] = []

        def start(*arguments: str, compiled: str | Path = "") -> BaseProcess:
            log = str(logs / f"{len(started)}.log")
            started.append(context.Process(target=_run, args=(arguments, log, str(compiled))))
            started[-1].start()
            return started[-1]

        try:
            yield start
        finally:
            for process in started:
                process.kill()
                process.join()


def _run(arguments: Sequence[str], log: str, compiled: str) -> None:
    with Path(log).open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    import jax

    if compiled:
        jax.config.update("jax_compilation_cache_dir", compiled)
    sys.exit(main(arguments))
