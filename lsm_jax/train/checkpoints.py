"""Checkpoints: written by Orbax beside the running step, committed whole, verified before anyone trusts them.

A checkpoint is one item, folder `checkpoints/STEP`, with everything that must survive: the state, the data position,
the clock. Its manifest is written inside the folder before Orbax renames it into place, so that either all of it is
there or none. The manifest has the checksum of every file and the shape and type of every array. What fails its
checksums is skipped with a sentence, and the one before it is taken.
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
from lsm_jax.train.clock import BUCKETS
from lsm_jax.train.state import State

MANIFEST = "manifest.json"
_FEWEST_KEPT = 2
_STAMP = "_CHECKPOINT_METADATA"  # Orbax adds the time of commit to it last, and does not need it to restore
_PARTIAL = ".orbax-checkpoint-tmp"

Tell = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
      state: on the devices.
      position: of the training loader.
      seconds: of the clock, by bucket.
    """

    state: State
    position: int
    seconds: Mapping[str, float]


class Checkpoints:
    """The checkpoints of a run that trains. All processes call all methods; the first one decides and deletes.

    Args:
      folder: `WORKDIR/checkpoints`.
      keep: verified checkpoints to keep, at least 2.
      tell: where sentences about damage go.
    """

    def __init__(self, folder: Path, keep: int, tell: Tell) -> None:
        self._folder, self._keep, self._tell = folder.absolute(), max(keep, _FEWEST_KEPT), tell
        self._handler = _ManifestHandler()
        self._saver = ocp.AsyncCheckpointer(self._handler)
        self._verified: set[int] = set()
        # Reading back what was just written must not hold up the loop.
        self._behind = concurrent.futures.ThreadPoolExecutor(1)
        self._pruning: concurrent.futures.Future[None] | None = None
        self._closed = False
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            for partial in self._folder.glob(f"*{_PARTIAL}*"):
                tell(f"checkpoint {partial.name.partition('.')[0]} was never finished; it is removed.")
                shutil.rmtree(partial, ignore_errors=True)

    def save(self, saved: Saved) -> None:
        """Copies everything off the devices and writes it in the background; waits for an earlier save first."""
        self._finish()
        item = _item(saved.state, np.int64(saved.position), saved.seconds)
        self._handler.tree = _tree(item)
        self._saver.save(self._folder / str(int(saved.state.step)), args=_Save(item))

    def restore_latest(self, shapes: State) -> Saved | None:
        """The newest whole checkpoint, laid out as `shapes` say, on however many devices and hosts there are now.

        Damaged ones are set aside and told. None where there is no whole one.

        Raises:
          UserError: the checkpoint is of other parameters or another optimizer.
        """
        step = -1
        if jax.process_index() == 0:
            step = max(steps(self._folder), default=-1)
            while step >= 0 and (fault := damage(self._folder / str(step))):
                self._tell(f"checkpoint {step} is damaged ({fault}); it is set aside and the one before it is taken.")
                _set_aside(self._folder / str(step))
                step = max(steps(self._folder), default=-1)
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step < 0:
            return None
        self._verified.add(step)
        return restore(self._folder / str(step), shapes)

    def close(self) -> None:
        """Waits for the last save and tidies up; once closed, does nothing."""
        if self._closed:
            return
        self._closed = True
        self._finish()
        self._behind.shutdown()
        if self._pruning:
            self._pruning.result()
        self._saver.close()

    def _finish(self) -> None:
        self._saver.wait_until_finished()
        if jax.process_index() == 0:
            if self._pruning:
                self._pruning.result()
            self._pruning = self._behind.submit(self._prune)

    def _prune(self) -> None:
        """Deletes the oldest, but only while enough newer ones have been read back and are whole."""
        whole = 0
        for step in sorted(steps(self._folder), reverse=True):
            folder = self._folder / str(step)
            if whole >= self._keep:
                shutil.rmtree(folder)
            elif step in self._verified or not (fault := damage(folder)):
                self._verified.add(step)
                whole += 1
            else:
                self._tell(f"checkpoint {step} did not survive being written ({fault}); older ones are kept.")


def steps(folder: Path) -> list[int]:
    """Steps with a committed checkpoint, whole or damaged, in no order."""
    return [int(entry.name) for entry in folder.glob("*") if entry.name.isdecimal() and entry.is_dir()]


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, in words; None for a whole one."""
    try:
        manifest = _manifest(checkpoint)
        for name, (size, checksum) in manifest["files"].items():
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


def restore(checkpoint: Path, shapes: State) -> Saved:
    """Everything in a checkpoint; UserError where its arrays are not those of `shapes`."""
    item = _item(shapes, np.int64(0), {})
    _check_tree(checkpoint, _manifest(checkpoint)["tree"], _tree(item))
    content = _read(checkpoint, item, partial=False)
    return Saved(State(**content["state"]), int(content["position"]), _seconds(content))


def restore_parameters(checkpoint: Path, shapes: Any) -> Any:
    """The parameters that leave a run, averaged ones where the run keeps them, as `shapes` say."""
    tree = _manifest(checkpoint)["tree"]
    name = "ema" if any(path.startswith("state/ema/") for path in tree) else "params"
    item = {"state": {name: shapes}}
    found = {path: kind for path, kind in tree.items() if path.startswith(f"state/{name}/")}
    _check_tree(checkpoint, found, _tree(item))
    return _read(checkpoint, item, partial=True)["state"][name]


def restore_clock(checkpoint: Path) -> dict[str, float]:
    """Seconds by bucket that the run had taken when it saved this."""
    return _seconds(_read(checkpoint, {"clock": dict.fromkeys(BUCKETS, np.float64(0))}, partial=True))


# Replicas share the writing of an array; cutting small ones up takes longer than writing them.
_TYPES = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)),
    (np.ndarray, ocp.type_handlers.NumpyHandler()),
    (np.number, ocp.type_handlers.ScalarHandler()),
    (int, ocp.type_handlers.ScalarHandler()),
)


class _ManifestHandler(ocp.PyTreeCheckpointHandler):
    """Adds the manifest as the last file before the folder is committed."""

    tree: dict[str, list[Any]]

    def __init__(self) -> None:
        super().__init__(type_handler_registry=_TYPES)

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        folder = Path(directory)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != _STAMP]
        content = {
            "files": {str(file.relative_to(folder)): [file.stat().st_size, _checksum(file)] for file in files},
            "tree": self.tree,
        }
        (folder / MANIFEST).write_text(json.dumps({"checksum": _digest(content), "content": content}))


# Orbax finds what a handler takes by the classes registered for it.
@ocp.args.register_with_handler(_ManifestHandler, for_save=True)
class _Save(ocp.args.PyTreeSave):
    pass


@ocp.args.register_with_handler(_ManifestHandler, for_restore=True)
class _Restore(ocp.args.PyTreeRestore):
    pass


def _manifest(checkpoint: Path) -> Any:
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
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    clock = {bucket: np.float64(seconds.get(bucket, 0.0)) for bucket in BUCKETS}
    return {"state": fields, "position": position, "clock": clock}


def _seconds(content: Mapping[str, Any]) -> dict[str, float]:
    return {bucket: float(value) for bucket, value in content["clock"].items()}


def _tree(item: Any) -> dict[str, list[Any]]:
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in named_parameters(item)}


def _check_tree(checkpoint: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for path in sorted({*found, *wanted}):
        if found.get(path) != wanted.get(path):
            raise UserError(
                f"{checkpoint} has {found.get(path, 'nothing')} at {path}, but the configuration makes "
                f"{wanted.get(path, 'nothing')}: it belongs to another model or optimizer. Use another --workdir."
            )


def _read(checkpoint: Path, item: Any, partial: bool) -> Any:
    arguments = jax.tree.map(
        lambda leaf: (
            ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else ocp.RestoreArgs(restore_type=np.ndarray)
        ),
        item,
    )
    with ocp.Checkpointer(_ManifestHandler()) as reader:
        wanted = _Restore(item, restore_args=arguments, partial_restore=partial)
        return reader.restore(checkpoint.absolute(), args=wanted)


def _set_aside(checkpoint: Path) -> None:
    """Renames a damaged checkpoint, so that its step can be saved again and a person can look at it."""
    number = 0
    while (target := checkpoint.with_name(f"damaged-{checkpoint.name}-{number}")).exists():
        number += 1
    checkpoint.rename(target)
