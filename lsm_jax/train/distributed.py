"""Several processes as one run: found in the environment of a TPU pod or of SLURM, or given by flags."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from lsm_jax.errors import RunError, UserError


def initialise(coordinator: str | None = None, process_id: int | None = None, process_count: int | None = None) -> None:
    """Joins the other processes of this run, if it has any; must come before anything touches a device.

    Args:
      coordinator: host:port of the first process; with it the other two are needed too.

    Raises:
      UserError: some flags are missing.
      RunError: the others could not be reached.
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
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, process_count, process_id)
    except (RuntimeError, ValueError, OSError) as error:
        hint = "" if given else " Where this is the only host, set TPU_SKIP_MDS_QUERY=1; else say who is who by flags."
        raise RunError(f"the processes of this run did not find each other: {error}.{hint}") from error


def several_processes(environment: Mapping[str, str]) -> bool:
    """Whether this process may be one of several, which JAX then finds by itself.

    A scheduler's environment says so, or this is a Cloud TPU VM, whose metadata server knows the other hosts; JAX
    leaves two marks when it is imported: `TPU_ML_PLATFORM` where it finds chips, `TPU_SKIP_MDS_QUERY` where it finds
    none.
    """
    in_step = all(name in environment for name in ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"))
    if in_step and environment.get("SLURM_NTASKS", "1") != "1":
        return True
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return True
    if hosts:
        return "," in hosts
    return "TPU_ML_PLATFORM" in environment and "TPU_SKIP_MDS_QUERY" not in environment
