"""What checkpoints do when storage fails: say so in one sentence, lose nothing, and never call whole what is not."""

from __future__ import annotations

import errno
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorstore
from test_checkpoints import Reported, assert_is, files_of, latest, save, shapes_of, state_at

from lsm_jax.errors import RunError, UserError
from lsm_jax.train import checkpoint_files, checkpoints
from lsm_jax.train.checkpoint_files import checksums, list_files, read_manifest, saved_steps, verify, write_manifest
from lsm_jax.train.checkpoints import Checkpoints, CheckpointState


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(checkpoints, "_FINAL_RETRY_SECONDS", (0.0, 0.0))


def failing(number: int, name: str, times: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Path that fails for the first paths of a name, as storage does."""
    left = [times]

    def method(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == name and left[0] > 0:
            left[0] -= 1
            raise OSError(number, "", str(path))
        return real(path, *args, **kwargs)

    return method


def test_a_missing_part_of_an_array_is_damage_though_all_files_are_as_they_were_written(tmp_path: Path) -> None:
    save(tmp_path, 1)
    tree = read_manifest(tmp_path / "1")["tree"]
    assert verify(tmp_path / "1") is None
    spec = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{tmp_path}/1/"}}
    tensorstore.KvStore.open(spec).result().write("state.params.head.kernel/0.0", None).result()
    write_manifest(tmp_path / "1", checksums(tmp_path / "1", list_files(tmp_path / "1")), tree)
    assert verify(tmp_path / "1") == "part 0.0 of array state/params/head/kernel is missing"


@pytest.mark.parametrize("name", ["manifest.json", "_METADATA"])
def test_a_passing_error_of_the_storage_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    save(tmp_path, 1, 2)
    monkeypatch.setattr(Path, "open", failing(errno.EIO, name, 2, Path.open))
    saved, reported = latest(tmp_path)
    assert_is(saved, 2)
    assert not reported


@pytest.mark.parametrize(
    ("number", "error", "sentence"),
    [
        (errno.EACCES, UserError, r"_METADATA cannot be read \(Permission denied: .*Give this user access"),
        (errno.EIO, RunError, r"_METADATA cannot be read \(Input/output error: .*when the storage answers"),
    ],
)
def test_unreadable_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception], sentence: str
) -> None:
    save(tmp_path, 1, 2)
    with monkeypatch.context() as patch, pytest.raises(error, match=sentence):
        patch.setattr(Path, "open", failing(number, "_METADATA", 99, Path.open))
        latest(tmp_path)
    assert sorted(saved_steps(tmp_path)) == [1, 2]
    assert_is(latest(tmp_path)[0], 2)


def test_an_unreadable_folder_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "checkpoints", 1)
    monkeypatch.setattr(Path, "iterdir", failing(errno.EACCES, "checkpoints", 99, Path.iterdir))
    with pytest.raises(UserError, match="checkpoints cannot be read"):
        latest(tmp_path / "checkpoints")


def content(step: int) -> CheckpointState:
    return CheckpointState(state_at(step), 10 * step, {"step": 1.5 * step})


@pytest.mark.parametrize(
    ("method", "name", "number", "reason"),
    [
        ("mkdir", "2.orbax-checkpoint-tmp", errno.EROFS, "Read-only file system"),
        ("write_text", "manifest.json", errno.ENOSPC, "No space left on device"),
        ("rename", "2.orbax-checkpoint-tmp", errno.EIO, "Input/output error"),
    ],
)
def test_a_failed_save_is_said_at_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, name: str, number: int, reason: str
) -> None:
    folder = tmp_path / "checkpoints"
    save(folder, 1)
    reported = Reported()
    saver = Checkpoints(folder, 2, reported)
    saver.restore_latest(shapes_of(state_at(0)))
    with monkeypatch.context() as patch:
        patch.setattr(Path, method, failing(number, name, 99, getattr(Path, method)))
        saver.save(content(2))
        saver.close()
    (sentence,) = reported
    assert sentence.startswith(f"checkpoint 2 could not be saved ({reason}: ")
    assert sentence.endswith("Training goes on, and the next one is tried as usual. The last whole one is 1.")
    assert [entry.name for entry in folder.iterdir()] == ["1"]
    save(folder, 3)
    assert sorted(saved_steps(folder)) == [1, 3]


def test_the_final_save_is_tried_again_and_then_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported = Reported()
    saver = Checkpoints(tmp_path, 2, reported)
    saver.save(content(1))
    monkeypatch.setattr(Path, "write_text", failing(errno.ENOSPC, "manifest.json", 2, Path.write_text))
    saver.save(content(2), final=True)
    assert len(reported) == 2
    assert verify(tmp_path / "2") is None
    monkeypatch.setattr(Path, "write_text", failing(errno.ENOSPC, "manifest.json", 99, Path.write_text))
    with pytest.raises(RunError, match=r"checkpoint 3 could not be saved \(No space left.*The last whole one is 2\."):
        saver.save(content(3), final=True)
    saver.close()


def test_an_old_checkpoint_that_cannot_be_deleted_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.rmtree

    def rmtree(folder: Path, **options: Any) -> None:
        if Path(folder).name == "1":
            raise PermissionError(errno.EACCES, "", str(folder))
        real(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    reported = save(tmp_path, 1, 2, 3, 4)
    assert reported == [
        f"checkpoint 1 is no longer needed and cannot be deleted (Permission denied: {tmp_path / '1'})."
    ]
    assert sorted(saved_steps(tmp_path)) == [1, 3, 4]


def test_what_has_just_been_written_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    monkeypatch.setattr(checkpoints, "verify", lambda checkpoint: verified.append(checkpoint.name))
    save(tmp_path, 1, 2, 3, 4)
    assert sorted(saved_steps(tmp_path)) == [3, 4]
    assert not verified
    save(tmp_path, 5)
    assert verified == ["4"]


_TWO_PROCESSES = """
import resource, signal, sys
from pathlib import Path
process, address, root, here = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
sys.path.insert(0, here)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import jax
jax.distributed.initialize(address, 2, process)
import dataclasses, json
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from test_checkpoints import CheckpointState, Checkpoints, Reported, state_at
from lsm_jax.errors import RunError
from lsm_jax.train import checkpoints
checkpoints._FINAL_RETRY_SECONDS = checkpoints.RETRY_SECONDS = ()

mesh = jax.make_mesh((2,), ("fsdp",))
halves, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["fsdp"], []))
noise = jax.jit(lambda: jax.random.uniform(jax.random.key(0), (64, 512)), out_shardings=halves)()

def state(step):
    made = jax.jit(lambda: state_at(step), out_shardings=whole)()
    return dataclasses.replace(made, ema={f"noise{i}": noise for i in range(20)})

def try_to(act):
    try:
        return act()
    except RunError as error:
        return str(error)

said = {}
def save(name, folder, step, **options):
    reported = Reported()
    saver = Checkpoints(root / folder, 2, reported)
    ended = try_to(lambda: saver.save(CheckpointState(state(step), step, {}), **options))
    saver.close()
    said[name] = [ended, *reported]

save("good", "good", 1)
save("apart", f"apart-{process}", 1)
save("apart at the end", f"apart-{process}", 1, final=True)
if process == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
save("full", "good", 2)
if process == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
save("after", "good", 3)

def shapes():
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state(0))

def restore(folder):
    saver = Checkpoints(root / folder, 2, Reported())
    content = saver.restore_latest(shapes())
    assert all((a == b).all() for a, b in zip(map(lambda s: s.data, content.state.ema["noise0"].addressable_shards),
                                              map(lambda s: s.data, noise.addressable_shards), strict=True))
    return content.position

said["restored"] = restore("good")
said["elsewhere"] = try_to(lambda: restore("good" if process == 0 else "apart-1"))
said["empty"] = try_to(lambda: restore("empty" if process == 0 else "good"))
print("SAID" + json.dumps(said))
"""


def test_two_processes_agree_on_what_is_whole(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-c", _TWO_PROCESSES]
    started = [
        subprocess.Popen(
            [*command, str(number), address, str(tmp_path), str(Path(__file__).parent)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    said = []
    try:
        for process in started:
            output, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-3000:]
            assert "Traceback" not in errors
            said.append(json.loads(output.partition("SAID")[2].splitlines()[0]))
    finally:
        for process in started:
            process.kill()
    lead, other = said
    assert lead["good"] == other["good"] == [None]
    apart = "all processes need the same --workdir on one file system"
    assert apart in lead["apart"][1] and "Training goes on" in lead["apart"][1]
    assert "process 1 has written it" in lead["apart"][1]
    assert not saved_steps(tmp_path / "apart-0")
    # The final save fails for both, with the same words.
    assert apart in lead["apart at the end"][0] == other["apart at the end"][0]
    assert "checkpoint 2 could not be saved (process 1: File too large: " in lead["full"][1]
    assert lead["after"] == [None]
    assert sorted(saved_steps(tmp_path / "good")) == [1, 3]
    assert lead["restored"] == other["restored"] == 3
    elsewhere = "process 1 finds checkpoint 3 damaged (manifest.json is missing), process 0 finds it whole"
    assert elsewhere in lead["elsewhere"] and elsewhere in other["elsewhere"]
    assert "process 0 finds no checkpoint in" in lead["empty"] and "others do" in other["empty"]
    # A shard of the other process is missing.
    shard = next(file for file in files_of(tmp_path / "good" / "3" / "ocdbt.process_1") if file.parent.name == "d")
    shard.unlink()
    assert verify(tmp_path / "good" / "3") == f"{shard.relative_to(tmp_path / 'good' / '3')} is missing"
