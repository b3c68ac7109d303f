"""Steps that are computed twice: a device that computes wrongly is named, and nothing of its step is saved."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from short_training import short_config

from lsm_jax.errors import RunError, UserError
from lsm_jax.events import read_events
from lsm_jax.train.checkpoints import saved_steps
from lsm_jax.train.loop import train
from lsm_jax.train.run import load_run
from lsm_jax.train.state import State
from lsm_jax.train.step_check import CheckedSteps
from lsm_jax.train.timing import TimedJit
from lsm_jax.train.workdir import CHECKPOINTS


def with_a_flipped_bit(state: State) -> State:
    """One bit of one parameter is another one."""
    leaves, tree = jax.tree.flatten(state.params)
    values = np.array(leaves[3])
    values.view(np.uint32).reshape(-1)[5] ^= 1 << 12
    leaves[3] = jax.device_put(values, leaves[3].sharding)
    return dataclasses.replace(state, params=jax.tree.unflatten(tree, leaves))


def test_a_flipped_bit_ends_the_run_and_the_next_start_goes_on_as_if_nothing_had_been(
    half_hours: Path, whole_run: Path, tmp_path: Path
) -> None:
    config = short_config(half_hours, "train.sdc_check_every=3")
    call, steps = TimedJit.__call__, []

    def flips_in_the_second_step_6(self: TimedJit, *arguments: Any) -> Any:
        result = call(self, *arguments)
        if isinstance(result, tuple) and isinstance(result[0], State):
            steps.append(int(result[0].step))
            if steps.count(6) == 2:
                return with_a_flipped_bit(result[0]), result[1]
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimedJit, "__call__", flips_in_the_second_step_6)
        sentence = r"step 6 was computed twice and differs on device 0 of process 0 .* Nothing of this step is saved"
        with pytest.raises(RunError, match=sentence):
            train(config, tmp_path)
    assert steps == [1, 2, 3, 3, 4, 5, 6, 6]
    assert saved_steps(tmp_path / CHECKPOINTS) == [4]
    (event,) = [event for event in read_events(tmp_path) if event["event"] == "sdc"]
    assert (event["step"], event["host"], event["devices"]) == (6, socket.gethostname(), [0])

    assert train(config, tmp_path) == 12
    found, expected = load_run(tmp_path), load_run(whole_run)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


_ON_EIGHT_DEVICES = """
import json, types
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from lsm_jax.train.step_check import digests

mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))
values = {"split": np.arange(32, dtype=np.float32).reshape(8, 4), "whole": np.arange(3, dtype=np.float32) > 1}
specs = {"split": P("fsdp", "tensor"), "whole": P()}
state = {name: jax.device_put(values[name], NamedSharding(mesh, specs[name])) for name in values}
digest, metrics = digests(types.SimpleNamespace(mesh=mesh, shapes=state)), {"loss": np.float32(1)}
healthy = np.asarray(digest(state, metrics))

def differs(name, change, chosen):
    shards = []
    for shard in state[name].addressable_shards:
        part = np.array(shard.data)
        if shard.device in chosen:
            change(part)
        shards.append(jax.device_put(part, shard.device))
    array = jax.make_array_from_single_device_arrays(state[name].shape, state[name].sharding, shards)
    return np.flatnonzero(np.asarray(digest({**state, name: array}, metrics)) != healthy).tolist()

def swap(part):
    part[0, 0], part[0, 1] = part[0, 1], part[0, 0]

def flip(part):
    part[2] = not part[2]

devices = mesh.devices.reshape(-1)
print(json.dumps([
    differs("split", swap, {devices[5]}),
    differs("whole", flip, {devices[2], devices[7]}),
    differs("whole", flip, {}),
    np.flatnonzero(np.asarray(digest(state, {"loss": np.float32(2)})) != healthy).tolist(),
]))
"""


def test_the_device_that_holds_other_bits_is_found(run_with_devices: Callable[..., str]) -> None:
    found = json.loads(run_with_devices(_ON_EIGHT_DEVICES).splitlines()[-1])
    assert found == [[5], [2, 7], [], [*range(8)]]


def test_gpus_that_may_add_in_any_order_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    unused: Any = None
    with pytest.raises(UserError, match="Start with XLA_FLAGS=--xla_gpu_deterministic_ops=true"):
        CheckedSteps(unused, unused, unused, 3, unused)
