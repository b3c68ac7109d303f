"""The files of a checkpoint: are they all there, unchanged, and do they hold every part of every array?

A file that is missing or has changed is damage. A file that cannot be read says nothing about the checkpoint: reading
is tried again, and then fails with a sentence.
"""

from __future__ import annotations

import concurrent.futures
import errno
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tensorstore

from lsm_jax.errors import RunError, UserError
from lsm_jax.retries import retry

MANIFEST = "manifest.json"
# Orbax writes the others after the manifest, and restores without them.
_NOT_LISTED = {MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"}
RETRY_SECONDS = (0.5, 2.0, 8.0)
_HASHING_THREADS = 8
# There is no such file, now or later.
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_IMPOSSIBLE_NAME = {errno.ENAMETOOLONG, errno.ELOOP}

_T = TypeVar("_T")
# Size in bytes and SHA-256 by path within the checkpoint.
Files = Mapping[str, tuple[int, str]]
# Shape and type by path of an array.
Tree = Mapping[str, Any]


def retried(path: Path, read: Callable[[], _T]) -> _T:
    """What `read` returns; errors of the storage are tried again.

    Args:
      path: what it reads, for the sentence.

    Raises:
      FileNotFoundError, NotADirectoryError, IsADirectoryError: there is no such file.
      UserError: this user may not read it.
      RunError: the storage fails again and again.
    """

    def of_storage(error: Exception, _: int = 0) -> bool:
        number = error_number(error)
        return number is not None and number not in _IMPOSSIBLE_NAME and not isinstance(error, _ABSENT)

    try:
        return retry(read, RETRY_SECONDS, of_storage)
    except Exception as error:
        if not of_storage(error):
            raise
        why = f"{path} cannot be read ({reason(error)}). That is no sign of damage, and nothing was changed."
        if error_number(error) in (errno.EACCES, errno.EPERM):
            raise UserError(f"{why} Give this user access, then start the same command again.") from error
        raise RunError(f"{why} Start the same command again when the storage answers.") from error


def error_number(error: BaseException) -> int | None:
    """The error number of the operating system behind an exception; TensorStore has it in the text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else None


def reason(error: BaseException) -> str:
    """What went wrong, on one line."""
    number = error_number(error)
    if number is None:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    names = [error.filename] if isinstance(error, OSError) else re.findall(r'"(/[^"]+|\w+://[^"]+)"', str(error))[-1:]
    return ": ".join([os.strerror(number), *(str(name) for name in names if name)])


def saved_steps(folder: Path) -> list[int]:
    """Steps with a committed checkpoint, damaged or not, in any order.

    Raises:
      UserError, RunError: the folder cannot be read.
    """
    return [int(name) for name in entries(folder) if name.isdecimal()]


def entries(folder: Path) -> list[str]:
    """The names in a folder, none if there is no such folder; raises as `saved_steps`."""
    try:
        return retried(folder, lambda: [entry.name for entry in folder.iterdir()])
    except _ABSENT:
        return []


def list_files(folder: Path) -> list[str]:
    """Paths within a folder of the files that a manifest lists."""
    files = retried(folder, lambda: [file for file in sorted(folder.rglob("*")) if file.is_file()])
    return [str(file.relative_to(folder)) for file in files if file.name not in _NOT_LISTED]


def checksums(folder: Path, names: Iterable[str]) -> dict[str, tuple[int, str]]:
    """Size and checksum of files, read in parallel; raises as `retried`."""

    def checksum(name: str) -> tuple[int, str]:
        file = folder / name
        with file.open("rb") as stream:
            return file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest()

    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(_HASHING_THREADS) as threads:
        results = threads.map(lambda name: retried(folder / name, lambda: checksum(name)), names)
        return dict(zip(names, results, strict=True))


def write_manifest(folder: Path, files: Files, tree: Tree) -> None:
    """Writes what `verify` compares with."""
    content = {"files": {name: list(found) for name, found in files.items()}, "tree": tree}
    (folder / MANIFEST).write_text(json.dumps({"checksum": _digest(content), "content": content}), encoding="utf-8")


def read_manifest(checkpoint: Path) -> Any:
    """`files` and `tree` of a checkpoint; ValueError if the manifest is damaged, or raises as `retried`."""
    file = checkpoint / MANIFEST
    manifest = json.loads(retried(file, lambda: file.read_text(encoding="utf-8")))
    if _digest(manifest["content"]) != manifest["checksum"]:
        raise ValueError("the manifest does not match its own checksum")
    return manifest["content"]


def verify(checkpoint: Path, share: int = 0, shares: int = 1) -> str | None:
    """Compares a checkpoint's files with its manifest, and its arrays with what the manifest says of them.

    Args:
      share, shares: verify one part of that many. The parts take about the same time.

    Returns:
      The first fault in words, None if there is none.

    Raises:
      UserError, RunError: a file cannot be read.
    """
    try:
        content = read_manifest(checkpoint)
        listed = {name: (size, checksum) for name, (size, checksum) in content["files"].items()}
        own = sorted(listed, key=lambda name: (listed[name][0], name))[share::shares]
        if fault := changed_size(checkpoint, {name: listed[name] for name in own}):
            return fault
        found = checksums(checkpoint, own)
        if changed := [name for name in own if found[name] != listed[name]]:
            return f"{changed[0]} has changed since it was written"
        return missing_part(checkpoint, content["tree"]) if share == 0 else None
    except FileNotFoundError as error:
        return f"{Path(error.filename or checkpoint).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} cannot be read"


def changed_size(checkpoint: Path, files: Files) -> str | None:
    """The first file that is missing or has another size, in words."""
    for name, (size, _) in files.items():
        file = checkpoint / name
        try:
            found = retried(file, file.stat).st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
    return None


def missing_part(checkpoint: Path, tree: Tree) -> str | None:
    """The first array of which a part is not stored, in words. Orbax commits a checkpoint without asking this."""

    def read() -> tuple[set[str], dict[str, bytes]]:
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{checkpoint}/"}})
        opened = store.result()
        layouts = {path: opened.read(f"{_stored_name(path)}/.zarray") for path in tree}
        keys = {key.decode() for key in opened.list().result()}
        return keys, {path: layout.result().value for path, layout in layouts.items()}

    try:
        keys, layouts = retried(checkpoint, read)
    except ValueError as error:
        return f"the index of its arrays cannot be read: {reason(error)}"
    for path, (shape, _) in tree.items():
        if not layouts[path]:
            return f"array {path} is missing"
        layout = json.loads(layouts[path])
        if layout["shape"] != shape:
            return f"array {path} has shape {layout['shape']} instead of {shape}"
        counts = [-(-size // part) for size, part in zip(shape, layout["chunks"], strict=True)]
        for index in itertools.product(*map(range, counts)):
            part = layout["dimension_separator"].join(map(str, index)) or "0"
            if f"{_stored_name(path)}/{part}" not in keys:
                return f"part {part} of array {path} is missing"
    return None


def _stored_name(path: str) -> str:
    return path.replace("/", ".")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
