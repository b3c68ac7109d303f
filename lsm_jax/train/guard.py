"""What surrounds a run: the lock of its folder, the agreement of its processes, and the watchdog."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from lsm_jax.config import Config
from lsm_jax.events import EventLog, event_file
from lsm_jax.storage import Store, is_url, local_copy
from lsm_jax.train import store_lock
from lsm_jax.train.agreement import check_agreement
from lsm_jax.train.lock import RunLock, holds
from lsm_jax.train.mirror import RUNS
from lsm_jax.train.processes import check_devices, process_of
from lsm_jax.train.store_lock import StoreLock
from lsm_jax.train.terminal import LastingStream
from lsm_jax.train.watchdog import Watchdog


@contextlib.contextmanager
def guarded(config: Config, workdir: Path | str) -> Iterator[Watchdog]:
    """Nothing is compiled or written outside of this block.

    Args:
      workdir: a folder, or the URL of one in a store.

    Raises:
      UserError: another run uses the folder, the processes differ, or there is no device.
      RunError: another process was lost.
    """
    process, _ = process_of()
    folder = local_copy(str(workdir), RUNS) if is_url(workdir) else Path(workdir)
    stream = LastingStream(sys.stderr)
    report = EventLog(event_file(folder, process), process, lambda text: print(text, file=stream, flush=True)).report
    with contextlib.ExitStack() as stack:
        watchdog = stack.enter_context(Watchdog(folder, config.train, report))
        lock = stack.enter_context(RunLock(folder, report, watchdog.end)) if process == 0 else None
        token, sees = lock.token if lock else None, partial(holds, folder)
        if is_url(workdir):
            store = Store(str(workdir))
            if lock:
                stack.enter_context(StoreLock(store, lock.token, report, watchdog.end, replaced=lock.replaced))
            sees = partial(store_lock.holds, store)
        check_agreement(config, workdir, token, sees)
        check_devices()
        yield watchdog
