"""What surrounds a run: the lock of its folder, the agreement of its processes, and the watchdog."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from lsm_jax.config import Config
from lsm_jax.events import EventLog, event_file
from lsm_jax.train.agreement import check_agreement
from lsm_jax.train.lock import RunLock
from lsm_jax.train.processes import check_devices, process_of
from lsm_jax.train.terminal import LastingStream
from lsm_jax.train.watchdog import Watchdog


@contextlib.contextmanager
def guarded(config: Config, workdir: Path) -> Iterator[Watchdog]:
    """Nothing is compiled or written outside of this block.

    Raises:
      UserError: another run uses the folder, the processes differ, or there is no device.
      RunError: another process was lost.
    """
    process, _ = process_of()
    stream = LastingStream(sys.stderr)
    report = EventLog(event_file(workdir, process), process, lambda text: print(text, file=stream, flush=True)).report
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(workdir, config.train, report))
        lock = stack.enter_context(RunLock(workdir, report, watchdog.end)) if process == 0 else None
        check_agreement(config, workdir, lock.token if lock else None)
        check_devices()
        yield watchdog
