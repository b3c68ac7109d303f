"""Start and end of the processes of a run: how several become one, and how signals stop them together."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import jax
from jax._src import clusters, distributed  # JAX has no public name for the key-value store of its processes
from jax.experimental import multihost_utils

from lsm_jax.errors import RunError, UserError
from lsm_jax.train.joining import meet

JOIN_TIMEOUT = 600
_HEARTBEAT_SECONDS = 300
_EXIT_SECONDS = 30.0


def initialise(
    coordinator: str | None = None,
    process_id: int | None = None,
    process_count: int | None = None,
    join_timeout: int = JOIN_TIMEOUT,
) -> None:
    """Joins the other processes of this run, if there are any. Call it before anything touches a device.

    Args:
      coordinator: host:port of process 0. It needs the other two arguments as well. Without arguments a TPU pod or
        SLURM step is recognised by its environment.
      join_timeout: seconds to wait for all processes.

    Raises:
      UserError: some of the flags are missing or wrong.
      RunError: the other processes could not be reached.
    """
    flags = {"--coordinator": coordinator, "--process-id": process_id, "--process-count": process_count}
    given = [flag for flag, value in flags.items() if value is not None]
    if given and len(given) < len(flags):
        missing = ", ".join(flag for flag in flags if flag not in given)
        raise UserError(f"{', '.join(given)} need {missing} as well.")
    if coordinator and ":" not in coordinator:
        raise UserError(f"--coordinator {coordinator}: write HOST:PORT.")
    if process_count is not None and not 0 <= (process_id or 0) < process_count:
        raise UserError(f"--process-id {process_id} must be at least 0 and below --process-count {process_count}.")
    if not given and not several_processes(os.environ):
        if tasks := unused_tasks(os.environ):
            _say(
                f"SLURM's job has {tasks} tasks, but this process was not started by srun: it trains alone. Start it "
                "as `srun lsm train ...` to use them all."
            )
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        address, count, process, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
            process_count,
            process_id,
            None,
            None,
            join_timeout,
        )
        if address and count is not None and process is not None:
            meet(address, process, count, join_timeout, _say)
        # The watchdog is faster than JAX to notice a lost process, and says which.
        jax.distributed.initialize(
            address, count, process, devices,
            initialization_timeout=join_timeout, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        hint = "" if given else " If this is the only host, set TPU_SKIP_MDS_QUERY=1; else use --coordinator."
        raise RunError(f"the processes of this run did not find each other: {error}.{hint}") from error


def check_devices() -> None:
    """Finds the devices of this process.

    Raises:
      UserError: there is none of the kind that was asked for, or its driver fails.
    """
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        asked = jax.config.values["jax_platforms"]
        reason = str(error) or "no such device on this host"
        what = f"JAX_PLATFORMS={asked}" if asked else "the accelerators of this host"
        raise UserError(
            f"{what} cannot be used ({reason}). Ask the scheduler for such a device and check its driver and "
            "`launch/install cuda` or `tpu`; JAX_PLATFORMS=cpu trains without one."
        ) from error


def process_of() -> tuple[int, int]:
    """Number of this process and how many there are, without asking for a device."""
    return distributed.global_state.process_id, distributed.global_state.num_processes


def key_value_store() -> Any:
    """The client of JAX's coordination service, which all processes share; None for a single process."""
    return distributed.global_state.client


def exit_with(code: int, before: Callable[[], None]) -> None:
    """Makes this process exit with a code when the interpreter ends, after a last call.

    JAX and Orbax would wait at exit for processes that do not come any more.
    """

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        before()
        os._exit(code)

    atexit.register(leave)
    # Threads of libraries are joined before anything registered for exit runs.
    timer = threading.Timer(_EXIT_SECONDS, leave)
    timer.daemon = True
    timer.start()


def _say(text: str) -> None:
    print(f"lsm: {text}", file=sys.stderr, flush=True)


def several_processes(environment: Mapping[str, str]) -> bool:
    """Whether the environment says that this process is one of several, which JAX then finds by itself.

    That is a SLURM step of several tasks, or a Cloud TPU VM, whose metadata server knows the other hosts. On import
    JAX sets `TPU_ML_PLATFORM` where it finds TPU chips and `TPU_SKIP_MDS_QUERY` where it finds none.
    """
    in_step = all(name in environment for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"))
    if in_step and environment.get("SLURM_NTASKS", "1") != "1" and not unused_tasks(environment):
        return True
    if int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return True
    if hosts := environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES"):
        return "," in hosts
    return "TPU_ML_PLATFORM" in environment and "TPU_SKIP_MDS_QUERY" not in environment


def unused_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of a SLURM job whose shell or batch script started this process without srun; 0 everywhere else.

    `salloc` may run the shell in a step of its own, with one task, in which SLURM_NTASKS is that of the whole job.
    """
    tasks = int(environment.get("SLURM_NTASKS") or 1) if "SLURM_JOB_ID" in environment else 1
    by_hand = "SLURM_STEP_NODELIST" not in environment or environment.get("SLURM_STEP_NUM_TASKS") == "1"
    return tasks if tasks > 1 and by_hand else 0


class PreemptionHandler(contextlib.AbstractContextManager["PreemptionHandler"]):
    """Turns SIGTERM, Ctrl-C and a lost terminal into a stop between two steps. A second Ctrl-C stops at once.

    Several processes must stop at the same step. JAX's coordination service agrees on it and listens for SIGTERM, so
    the other two signals are passed on as SIGTERM.

    Attributes:
      by_keyboard: whether this process got Ctrl-C.
    """

    def __init__(self) -> None:
        self._received = False
        self.by_keyboard = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> PreemptionHandler:
        if threading.current_thread() is threading.main_thread():
            signals = {signal.SIGINT} if jax.process_count() > 1 else {signal.SIGINT, signal.SIGTERM}
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
                signals.add(signal.SIGHUP)
            self._previous = {number: signal.signal(number, self._receive) for number in signals}
        return self

    def should_stop(self, step: int) -> bool:
        """Whether to stop before this step; the same answer on all processes."""
        return multihost_utils.reached_preemption_sync_point(step) if jax.process_count() > 1 else self._received

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = True
        self.by_keyboard |= number == signal.SIGINT
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
