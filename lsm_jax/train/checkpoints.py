"""Checkpoints: written by Orbax in the background, committed whole, verified before they are used.

A checkpoint is one folder, `checkpoints/STEP`, with the state, the data position and the clock. Its manifest has the
checksum of every file and the shape and type of every array. The manifest is written before Orbax renames the folder
into place, so that a checkpoint is complete or absent. A damaged one is reported and the one before it is used.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from lsm_jax.errors import UserError
from lsm_jax.sharding import named_parameters
from lsm_jax.train.state import State
from lsm_jax.train.timing import BUCKETS

MANIFEST = "manifest.json"
_MIN_KEPT = 2
_COMMIT_TIME = "_CHECKPOINT_METADATA"  # Orbax writes it after the manifest, and restores without it
_UNFINISHED = ".orbax-checkpoint-tmp"


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
      report: called with sentences about damage.
    """

    def __init__(self, folder: Path, keep: int, report: Callable[[str], None]) -> None:
        self._folder, self._keep, self._report = folder.absolute(), max(keep, _MIN_KEPT), report
        self._handler = _ManifestHandler()
        self._saver = ocp.AsyncCheckpointer(self._handler)
        self._verified: set[int] = set()
        # Verifying a checkpoint reads all of it, which must not block training.
        self._background = concurrent.futures.ThreadPoolExecutor(1)
        self._pruning: concurrent.futures.Future[None] | None = None
        self._closed = False
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            for unfinished in self._folder.glob(f"*{_UNFINISHED}*"):
                report(f"checkpoint {unfinished.name.partition('.')[0]} was never finished; it is removed.")
                shutil.rmtree(unfinished, ignore_errors=True)

    def save(self, content: CheckpointState) -> None:
        """Waits for an earlier save, copies everything off the devices, and writes it in the background."""
        self._finish_saving()
        item = _item(content.state, np.int64(content.position), content.seconds)
        self._handler.tree = _tree(item)
        self._saver.save(self._folder / str(int(content.state.step)), args=_Save(item))

    def restore_latest(self, shapes: State) -> CheckpointState | None:
        """The newest undamaged checkpoint, None if there is none. Damaged ones are renamed and reported.

        Args:
          shapes: shapes and shardings for the devices there are now, which may differ from those that saved it.

        Raises:
          UserError: the checkpoint has other parameters or another optimizer.
        """
        step = -1
        if jax.process_index() == 0:
            step = max(saved_steps(self._folder), default=-1)
            while step >= 0 and (fault := verify(self._folder / str(step))):
                self._report(f"checkpoint {step} is damaged ({fault}); it is set aside and the one before it is taken.")
                _set_aside(self._folder / str(step))
                step = max(saved_steps(self._folder), default=-1)
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step < 0:
            return None
        self._verified.add(step)
        checkpoint, item = self._folder / str(step), _item(shapes, np.int64(0), {})
        _check_tree(checkpoint, _read_manifest(checkpoint)["tree"], _tree(item))
        content = _read(checkpoint, item, partial=False)
        return CheckpointState(State(**content["state"]), int(content["position"]), _seconds(content))

    def wait(self) -> None:
        """Waits for the save that is being written."""
        self._saver.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and deletes old checkpoints. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._finish_saving()
        self._background.shutdown()
        if self._pruning:
            self._pruning.result()
        self._saver.close()

    def _finish_saving(self) -> None:
        self._saver.wait_until_finished()
        if jax.process_index() == 0:
            if self._pruning:
                self._pruning.result()
            self._pruning = self._background.submit(self._prune)

    def _prune(self) -> None:
        """Deletes checkpoints older than `keep` verified ones."""
        verified = 0
        for step in sorted(saved_steps(self._folder), reverse=True):
            folder = self._folder / str(step)
            if verified >= self._keep:
                shutil.rmtree(folder)
            elif step in self._verified or not (fault := verify(folder)):
                self._verified.add(step)
                verified += 1
            else:
                self._report(f"checkpoint {step} did not survive being written ({fault}); older ones are kept.")


def saved_steps(folder: Path) -> list[int]:
    """Steps with a committed checkpoint, damaged or not, in any order."""
    return [int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal() and entry.is_dir()]


def verify(checkpoint: Path) -> str | None:
    """Compares a checkpoint's files with its manifest; returns the first fault in words, None if there is none."""
    try:
        for name, (size, checksum) in _read_manifest(checkpoint)["files"].items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes instead of {size}"
            if _checksum(file) != checksum:
                return f"{name} has changed since it was written"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} cannot be read"
    return None


def restore_parameters(checkpoint: Path, shapes: Any) -> Any:
    """The parameters alone, averaged ones where the run keeps averages, with the shardings of `shapes`.

    Raises:
      UserError: the checkpoint has other parameters.
    """
    tree = _read_manifest(checkpoint)["tree"]
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


class _ManifestHandler(ocp.PyTreeCheckpointHandler):
    """Adds the manifest as the last file before Orbax commits the folder."""

    tree: dict[str, list[Any]]

    def __init__(self) -> None:
        super().__init__(type_handler_registry=_TYPES)

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        folder = Path(directory)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != _COMMIT_TIME]
        content = {
            "files": {str(file.relative_to(folder)): [file.stat().st_size, _checksum(file)] for file in files},
            "tree": self.tree,
        }
        (folder / MANIFEST).write_text(json.dumps({"checksum": _digest(content), "content": content}))


# Orbax finds the arguments of a handler by the classes registered for it.
@ocp.args.register_with_handler(_ManifestHandler, for_save=True)
class _Save(ocp.args.PyTreeSave):
    pass


@ocp.args.register_with_handler(_ManifestHandler, for_restore=True)
class _Restore(ocp.args.PyTreeRestore):
    pass


def _read_manifest(checkpoint: Path) -> Any:
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    if _digest(manifest["content"]) != manifest["checksum"]:
        raise ValueError("the manifest does not match its own checksum")
    return manifest["content"]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
    restore_args = jax.tree.map(
        lambda leaf: (
            ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else ocp.RestoreArgs(restore_type=np.ndarray)
        ),
        item,
    )
    with ocp.Checkpointer(_ManifestHandler()) as reader:
        args = _Restore(item, restore_args=restore_args, partial_restore=partial)
        return reader.restore(checkpoint.absolute(), args=args)


def _set_aside(checkpoint: Path) -> None:
    """Renames a damaged checkpoint: its step can be saved again, and its files can still be examined."""
    number = 0
    while (target := checkpoint.with_name(f"damaged-{checkpoint.name}-{number}")).exists():
        number += 1
    checkpoint.rename(target)
