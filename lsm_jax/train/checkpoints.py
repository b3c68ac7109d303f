"""Checkpoints: written by Orbax in the background, committed whole, verified before they are used.

A checkpoint is one folder, `checkpoints/STEP`, with the state, the data position and the clock. Its manifest has the
checksum of every file and the shape and type of every array. When all processes have written, the first one sees that
every part of every array is there, writes the manifest and renames the folder into place. So a checkpoint is complete
or absent. A damaged one is reported and the one before it is used.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lsm_jax.errors import RunError, UserError
from lsm_jax.events import Report
from lsm_jax.sharding import named_parameters
from lsm_jax.train.checkpoint_files import (
    RETRY_SECONDS,
    changed_size,
    checksums,
    entries,
    list_files,
    missing_part,
    read_manifest,
    reason,
    retried,
    saved_steps,
    verify,
    write_manifest,
)
from lsm_jax.train.messages import Messages
from lsm_jax.train.mirror import RunStore
from lsm_jax.train.quiet import one_sentence_for_a_failed_write
from lsm_jax.train.state import State
from lsm_jax.train.timing import BUCKETS

__all__ = ["CheckpointState", "Checkpoints", "restore_clock", "restore_parameters", "saved_steps", "verify"]

_MIN_KEPT = 2
_FINAL_RETRY_SECONDS = (1.0, 4.0)  # a preempted run has about 30 s in all
_UNFINISHED = ".orbax-checkpoint-tmp"
_DAMAGED = "damaged-"
_ONE_WORKDIR = "all processes need the same --workdir on one file system"


@dataclasses.dataclass(frozen=True)
class CheckpointState:
    """The content of a checkpoint.

    Attributes:
      state: on the devices.
      position: training batches taken.
      seconds: of the clock, by bucket.
    """

    state: State
    position: int
    seconds: Mapping[str, float]


class Checkpoints:
    """Saves and restores the checkpoints of a training run. All processes call all methods; the first one deletes.

    Args:
      folder: `WORKDIR/checkpoints`.
      keep: verified checkpoints to keep, at least 2.
      report: takes the events.
      store: has what counts; `folder` is then a copy that processes of other hosts do not see.
    """

    def __init__(self, folder: Path, keep: int, report: Report, store: RunStore | None = None) -> None:
        self._folder, self._keep, self._report = folder.absolute(), max(keep, _MIN_KEPT), report
        self._store = store
        self._written_to: Path | None = None
        self._process, self._processes = jax.process_index(), jax.process_count()
        one_sentence_for_a_failed_write()
        self._messages, self._saves = Messages(), itertools.count()
        self._handler = ocp.PyTreeCheckpointHandler(type_handler_registry=_TYPES)
        self._saver = concurrent.futures.ThreadPoolExecutor(1, "save")
        # Verifying old checkpoints may read all of them, and must hold up neither training nor saving.
        self._pruner = concurrent.futures.ThreadPoolExecutor(1, "prune")
        self._saving: concurrent.futures.Future[str] | None = None
        self._verified: set[int] = set()
        self._undeletable: set[int] = set()

    def save(self, content: CheckpointState, final: bool = False) -> None:
        """Waits for an earlier save, copies everything off the devices, and writes it in the background.

        A save that fails is an event: training goes on, and the next one is tried as usual.

        Args:
          final: no other save follows. It is waited for and tried again.

        Raises:
          RunError: the final save failed.
        """
        self._finish_saving()
        self._begin(content, final)
        for seconds in _FINAL_RETRY_SECONDS if final else ():
            if not self._finish_saving():
                return
            time.sleep(seconds)
            self._begin(content, final)
        if final and (fault := self._finish_saving()):
            raise RunError(
                f"checkpoint {int(content.state.step)} could not be saved ({fault}). {self._last_whole()} Remove "
                "the cause, and start the same command again."
            )

    @property
    def saving(self) -> bool:
        """Whether a save in the background has not been committed yet."""
        return self._saving is not None and not self._saving.done()

    def restore_latest(self, shapes: State) -> CheckpointState | None:
        """The newest undamaged checkpoint, None if none was ever saved. Damaged ones are reported and renamed.

        Args:
          shapes: shapes and shardings for the devices there are now, which may differ from those that saved it.

        Raises:
          UserError: the checkpoint has other parameters or another optimizer, or all checkpoints are damaged, or this
            user may not read them.
          RunError: they cannot be read.
        """
        self._finish_saving()
        (steps, set_aside), *others = self._messages.gather(self._list)
        if not steps and any(found for found, _ in others):
            raise RunError(f"process 0 finds no checkpoint in {self._folder}, others do: {_ONE_WORKDIR}.")
        damaged: dict[int, str] = {}
        for step in steps:
            if not (fault := self._verify_together(step)):
                break
            damaged[step] = fault
        else:
            if not (damaged or set_aside):
                return None
            listed = "; ".join([*(f"{step} is damaged: {fault}" for step, fault in damaged.items()), *set_aside])
            raise UserError(
                f"{self._folder} has no whole checkpoint ({listed}). Put one back from a copy, or begin again at step "
                "0 with --start-over, which keeps all files."
            )
        self._messages.gather(lambda: self._set_aside(damaged) if self._process == 0 else None)
        checkpoint, item = self._folder / str(step), _item(shapes, np.int64(0), {})
        restored: list[Any] = []

        def restore() -> None:
            _check_tree(checkpoint, read_manifest(checkpoint)["tree"], _tree(item))
            restored.append(_read(checkpoint, item, partial=False))

        self._messages.gather(restore)
        self._verified.add(step)
        (content,) = restored
        return CheckpointState(State(**content["state"]), int(content["position"]), _seconds(content))

    def close(self) -> None:
        """Waits for the last save and deletes old checkpoints. A second call does nothing."""
        self._finish_saving()
        self._saver.shutdown()
        self._pruner.shutdown()
        if self._store and self._written_to:
            self._clear_copies(self._written_to)

    def _begin(self, content: CheckpointState, final: bool) -> None:
        """Copies the content off the devices and lets it be written."""
        begun, item = time.monotonic(), _item(content.state, np.int64(content.position), content.seconds)
        step = int(content.state.step)
        save = _Save(next(self._saves), step, final, begun, self._folder / f"{step}{_UNFINISHED}", _tree(item))
        fault, writes = "", []
        try:
            if self._process == 0:
                if self._store:
                    self._store.begin(step)
                shutil.rmtree(save.folder, ignore_errors=True)
                save.folder.mkdir(parents=True)
        except Exception as error:
            fault = reason(error)
        if self._process == 0:
            self._messages.send(f"{save.number}/created", fault)
        fault = self._messages.receive(f"{save.number}/created", 0)
        try:
            if self._store:
                if self._written_to:
                    self._clear_copies(self._written_to)
                save.folder.mkdir(parents=True, exist_ok=True)
                self._written_to = save.folder
            if not fault:
                # In a notebook the main thread has an event loop already, which allows no other.
                copied = self._handler.async_save(epath.Path(save.folder), args=ocp.args.PyTreeSave(item))
                writes = self._saver.submit(asyncio.run, copied).result()
        except Exception as error:
            fault = reason(error)
        self._saving = self._saver.submit(self._write, save, writes, fault)

    def _finish_saving(self) -> str:
        """Waits for a save; returns why it failed (the same on all processes), nothing if it did not."""
        saving, self._saving = self._saving, None
        return saving.result() if saving else ""

    def _write(self, save: _Save, writes: Sequence[Any], fault: str) -> str:
        """Waits for what this process writes, says so to the first process, and waits for its decision."""
        files: Mapping[str, tuple[int, str]] = {}
        try:
            for write in writes:
                write.result()
            files = checksums(save.folder, _written_by(save.folder, self._process))
            if self._store and not fault:
                self._store.push(save.step, save.folder, files)
        except Exception as error:
            fault = fault or reason(error)
        self._messages.send(f"{save.number}/written", json.dumps([fault, files]))
        if self._process == 0:
            self._messages.send(f"{save.number}/outcome", self._commit(save))
        fault = self._messages.receive(f"{save.number}/outcome", 0)
        if not fault:
            self._verified.add(save.step)
        if self._process == 0:
            self._after(save, fault)
        return fault

    def _commit(self, save: _Save) -> str:
        """Commits a checkpoint if all of it is there; returns why not."""
        try:
            files: dict[str, tuple[int, str]] = {}
            for process in range(self._processes):
                fault, written = json.loads(self._messages.receive(f"{save.number}/written", process))
                if fault:
                    return f"process {process}: {fault}" if self._processes > 1 else str(fault)
                if self._store:
                    self._store.pull(save.step, save.folder, written)
                if fault := changed_size(save.folder, written):
                    return f"{fault}, but process {process} has written it: {_ONE_WORKDIR}"
                files |= written
            # All processes have begun this save, so none waits for a message of the one before.
            self._messages.forget(str(save.number - 1))
            self._handler.finalize(epath.Path(save.folder))
            pushed = set(files)
            files |= checksums(save.folder, [name for name in list_files(save.folder) if name not in files])
            if fault := missing_part(save.folder, save.tree):
                return f"{fault}: not all processes wrote to this folder"
            write_manifest(save.folder, files, save.tree)
            if self._store:
                self._store.commit(save.step, save.folder, pushed)
            save.folder.rename(self._folder / str(save.step))
            save.bytes = sum(size for size, _ in files.values())
            return ""
        except Exception as error:
            return reason(error)

    def _after(self, save: _Save, fault: str) -> None:
        """Says how a save ended, and deletes what is no longer needed."""
        if fault:
            shutil.rmtree(save.folder, ignore_errors=True)
            then = "" if save.final else " Training goes on, and the next one is tried as usual."
            sentence = f"checkpoint {save.step} could not be saved ({fault}).{then} {self._last_whole()}"
            self._report("save_failed", sentence, step=save.step, reason=fault)
            return
        seconds = time.monotonic() - save.begun
        sentence = f"checkpoint {save.step} saved: {save.bytes / 1e6:.3g} MB in {seconds:.2g} s"
        self._report("checkpoint_saved", sentence, step=save.step, bytes=save.bytes, seconds=seconds)
        self._pruner.submit(self._prune)

    def _clear_copies(self, folder: Path) -> None:
        """Deletes what this process has left of a save: on hosts without the first process nobody else does."""
        shutil.rmtree(folder / f"ocdbt.process_{self._process}", ignore_errors=True)
        with contextlib.suppress(OSError):  # it is gone, or others of this host have files there
            folder.rmdir()

    def _last_whole(self) -> str:
        return f"The last whole one is {max(self._verified)}." if self._verified else "There is no whole one yet."

    def _prune(self) -> None:
        """Deletes checkpoints older than `keep` verified ones. Whatever fails here is an event."""
        verified, damaged = 0, []
        try:
            for step in sorted(saved_steps(self._folder), reverse=True):
                if verified >= self._keep:
                    self._delete(step)
                elif step in self._verified or not (fault := verify(self._folder / str(step))):
                    self._verified.add(step)
                    verified += 1
                else:
                    damaged.append(step)
                    sentence = f"checkpoint {step} did not survive being written ({fault}); older ones are kept."
                    self._report("checkpoint_damaged", sentence, step=step, reason=fault)
        except Exception as error:
            sentence = f"old checkpoints are kept, because a newer one could not be verified ({reason(error)})."
            self._report("checkpoint_unreadable", sentence)
            return
        if self._store:
            try:
                self._store.prune(self._keep, damaged)
            except Exception as error:
                self._report("checkpoint_not_deleted", f"old checkpoints stay in the store ({reason(error)}).")

    def _delete(self, step: int) -> None:
        try:
            shutil.rmtree(self._folder / str(step))
        except OSError as error:
            if step not in self._undeletable:
                self._undeletable.add(step)
                sentence = f"checkpoint {step} is no longer needed and cannot be deleted ({reason(error)})."
                self._report("checkpoint_not_deleted", sentence, step=step, reason=reason(error))

    def _list(self) -> tuple[list[int], list[str]]:
        """Steps with a checkpoint, newest first, and the names of damaged ones. What a crash left is removed."""
        names = entries(self._folder)
        for name in names if self._process == 0 else ():
            if _UNFINISHED in name:
                step = name.partition(".")[0]
                self._report("checkpoint_unfinished", f"checkpoint {step} was never finished; it is removed.")
                shutil.rmtree(self._folder / name, ignore_errors=True)
        if self._store:
            return self._store.steps()[::-1], self._store.set_aside_names()
        return sorted(saved_steps(self._folder), reverse=True), sorted(n for n in names if n.startswith(_DAMAGED))

    def _verify_together(self, step: int) -> str | None:
        """The first fault of a checkpoint. Each process reads its share of the files.

        Raises:
          RunError: the processes do not see the same checkpoint.
        """
        checkpoint, store = self._folder / str(step), self._store
        if store and (faults := [fault for fault in self._messages.gather(lambda: store.fetch(step)) if fault]):
            return str(faults[0])
        for seconds in (*RETRY_SECONDS, None):
            faults = self._messages.gather(lambda: verify(checkpoint, self._process, self._processes))
            if not any(faults) or faults[0]:
                return faults[0]
            # Process 0 has not read this file. On a network file system another process may not see it yet.
            process = next(process for process, fault in enumerate(faults) if fault)
            confirmed = self._messages.gather(lambda: verify(checkpoint) if self._process == 0 else None)[0]
            if confirmed:
                return str(confirmed)
            if seconds is not None:
                time.sleep(seconds)
        raise RunError(
            f"process {process} finds checkpoint {step} damaged ({faults[process]}), process 0 finds it whole: "
            f"{_ONE_WORKDIR}."
        )

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        """Renames damaged checkpoints: their steps can be saved again, and their files can still be examined."""
        for step, fault in damaged.items():
            checkpoint, number = self._folder / str(step), 0
            while (target := self._folder / f"{_DAMAGED}{step}-{number}").exists():
                number += 1
            try:
                if self._store:
                    self._store.set_aside(step)
                else:
                    checkpoint.rename(target)
            except OSError as error:
                raise RunError(f"{checkpoint} is damaged ({fault}) and cannot be renamed ({reason(error)}).") from error
            sentence = f"checkpoint {step} is damaged ({fault}); it is set aside and the one before it is taken."
            self._report("checkpoint_damaged", sentence, step=step, reason=fault)


@dataclasses.dataclass
class _Save:
    """A save under way.

    Attributes:
      number: of this run's saves, for its messages.
      folder: where it is written until it is committed.
    """

    number: int
    step: int
    final: bool
    begun: float
    folder: Path
    tree: dict[str, list[Any]]
    bytes: int = 0


def restore_parameters(checkpoint: Path, shapes: Any) -> Any:
    """The parameters alone, averaged ones where the run keeps averages, with the shardings of `shapes`.

    Raises:
      UserError: the checkpoint has other parameters.
      RunError: it cannot be read.
    """
    tree = read_manifest(checkpoint)["tree"]
    name = "ema" if any(path.startswith("state/ema/") for path in tree) else "params"
    item = {"state": {name: shapes}}
    found = {path: kind for path, kind in tree.items() if path.startswith(f"state/{name}/")}
    _check_tree(checkpoint, found, _tree(item))
    return _read(checkpoint, item, partial=True)["state"][name]


def restore_clock(checkpoint: Path) -> dict[str, float]:
    """Seconds by bucket that the run had taken when the checkpoint was saved."""
    return _seconds(_read(checkpoint, {"clock": dict.fromkeys(BUCKETS, np.float64(0))}, partial=True))


# Replicas share the writing of an array. For small arrays that would take longer than writing them whole.
_TYPES = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)),
    (np.ndarray, ocp.type_handlers.NumpyHandler()),
    (np.number, ocp.type_handlers.ScalarHandler()),
    (int, ocp.type_handlers.ScalarHandler()),
)


def _written_by(folder: Path, process: int) -> list[str]:
    """The files that Orbax wrote on one process, which has a store of its own until all are merged."""
    own = f"ocdbt.process_{process}"
    return [str(Path(own) / name) for name in list_files(folder / own)]


def _item(state: State, position: Any, seconds: Mapping[str, float]) -> dict[str, Any]:
    """A checkpoint's content as the tree of arrays that Orbax stores."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    clock = {bucket: np.float64(seconds.get(bucket, 0.0)) for bucket in BUCKETS}
    return {"state": fields, "position": position, "clock": clock}


def _seconds(content: Mapping[str, Any]) -> dict[str, float]:
    return {bucket: float(value) for bucket, value in content["clock"].items()}


def _tree(item: Any) -> dict[str, list[Any]]:
    """Shape and type by path."""
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in named_parameters(item)}


def _check_tree(checkpoint: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for path in sorted({*found, *expected}):
        if found.get(path) != expected.get(path):
            raise UserError(
                f"{checkpoint} has {found.get(path, 'nothing')} at {path}, but the configuration makes "
                f"{expected.get(path, 'nothing')}: it belongs to another model or optimizer. Use another --workdir."
            )


def _read(checkpoint: Path, item: Any, partial: bool) -> Any:
    """Restores arrays; raises as `retried`. No process waits for another."""
    restore_args = jax.tree.map(
        lambda leaf: (
            ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else ocp.RestoreArgs(restore_type=np.ndarray)
        ),
        item,
    )
    args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=partial)
    reader = ocp.PyTreeCheckpointHandler(type_handler_registry=_TYPES)
    return retried(checkpoint, lambda: reader.restore(epath.Path(checkpoint.absolute()), args=args))
