"""The check for silent data corruption: a step is computed twice, and all its results must be equal in every bit.

A device that computes wrongly rarely does so twice in the same way. The state is donated by a step, so the first of the
two works on a copy: during it the devices hold the state twice.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, UInt32

from lsm_jax.errors import RunError, UserError
from lsm_jax.events import Report
from lsm_jax.train.mesh import replicated
from lsm_jax.train.state import Batch, Metrics, Program, State
from lsm_jax.train.timing import Clock, TimedJit

# With either, XLA's programs for GPUs add in the same order every time.
_DETERMINISTIC = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")
_MAX_NAMED = 8


class CheckedSteps:
    """Training steps, some of which are computed twice and compared. All processes take them together.

    Args:
      step: computes a step from state and batch.
      every: steps between two that are compared; 0 is never.
      report: of this process, which reports wrong devices of its own.

    Raises:
      UserError: `every` is negative, or XLA may compute a step in different ways on a healthy GPU.
    """

    def __init__(self, step: TimedJit, program: Program, clock: Clock, every: int, report: Report) -> None:
        flags = os.environ.get("XLA_FLAGS", "")
        if every < 0:
            raise UserError(f"train.sdc_check_every={every} must be at least 0.")
        if every and jax.default_backend() == "gpu" and not any(flag in flags for flag in _DETERMINISTIC):
            raise UserError(
                f"train.sdc_check_every={every}: a healthy GPU may add in another order each time. Start with "
                f"XLA_FLAGS=--{_DETERMINISTIC[0]}=true, or leave the check out."
            )
        self._step, self._every, self._report = step, every, report
        self._devices = program.mesh.devices.reshape(-1)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, program.shapes)
        self._copy = TimedJit(
            jax.jit(lambda state: jax.tree.map(jnp.copy, state), in_shardings=(shardings,), out_shardings=shardings),
            clock,
        )
        self._digests = TimedJit(digests(program), clock)

    def __call__(self, number: int, state: State, batch: Batch) -> tuple[State, Metrics]:
        """Takes a step.

        Args:
          number: of the step, from 1.

        Returns:
          The new state and the metrics.

        Raises:
          RunError: the two results differ. Nothing that is newer than the state before the step may be used.
        """
        if not self._every or number % self._every:
            state, metrics = self._step(state, batch)
            return state, metrics
        repeated, repeated_metrics = self._step(self._copy(state), batch)
        expected = np.asarray(self._digests(repeated, repeated_metrics))
        del repeated  # it takes as much memory as the state
        state, metrics = self._step(state, batch)
        wrong = self._devices[np.asarray(self._digests(state, metrics)) != expected]
        if wrong.size:
            self._fail(number, list(wrong), repeated_metrics, metrics)
        return state, metrics

    def _fail(self, number: int, wrong: list[Any], first: Metrics, second: Metrics) -> None:
        listed = ", ".join(f"device {device.id} of process {device.process_index}" for device in wrong[:_MAX_NAMED])
        more = f" and {len(wrong) - _MAX_NAMED} more" if len(wrong) > _MAX_NAMED else ""
        values = "; ".join(
            f"{name.replace('_', ' ')} {float(first[name]):.9g} and {float(second[name]):.9g}"
            for name in ("loss", "gradient_norm")
        )
        sentence = (
            f"step {number} was computed twice and differs on {listed}{more} ({wrong[0].device_kind}; {values}): a "
            "device computes wrongly."
        )
        if own := [device.id for device in wrong if device.process_index == jax.process_index()]:
            self._report("sdc", sentence, step=number, devices=own)
        raise RunError(
            f"{sentence} Nothing of this step is saved. Take these machines (`host` of the event sdc) out of the job, "
            "then start the same command again: it goes on from the last checkpoint."
        )


def digests(program: Program) -> Any:
    """Jitted: (state, metrics) -> a digest of what each device of the mesh holds of them, known to all processes.

    Any single changed value changes the digest of its device.
    """

    def of_device(state: State, metrics: Metrics) -> UInt32[Array, " device"]:
        digest = jnp.zeros((), jnp.uint32)
        for leaf in jax.tree.leaves((state, metrics)):
            digest = digest * jnp.uint32(31) + _digest(leaf)  # factors that are odd lose no bit
        return digest[None]

    mesh = program.mesh
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, program.shapes)
    mapped = jax.shard_map(
        of_device, mesh=mesh, in_specs=(specs, PartitionSpec()), out_specs=PartitionSpec(mesh.axis_names),
        check_vma=False,
    )  # fmt: skip
    return jax.jit(mapped, out_shardings=replicated(mesh))


def _digest(values: Array) -> UInt32[Array, ""]:
    """The sum of the values' bits, each times an odd number that tells its place."""
    if values.dtype == jnp.bool_:
        values = values.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(values, f"uint{8 * values.dtype.itemsize}").reshape(-1).astype(jnp.uint32)
    return jnp.sum(bits * (2 * jax.lax.iota(jnp.uint32, bits.size) + 1), dtype=jnp.uint32)
