"""Object stores: `gs://` and `s3://` URLs, through fsspec. No other module talks to a store.

A store has objects, no folders: an object appears whole or not at all, but several cannot appear together, and nothing
can be renamed. So the framework works on local copies. `fetch_folder` brings a folder here; `upload_folder` writes one,
its marker last, so that a folder without its marker is not there yet.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from lsm_jax.errors import RunError, UserError
from lsm_jax.retries import retry

# Without its marker, a folder is not there: fetching it is refused, and uploading it writes the marker last.
MARKERS = ("manifest.json", "dataset_info.json", "card.json")
RETRY_SECONDS = (1.0, 4.0)  # after those of the client library
_TRANSFERS = 8  # at the same time
_READ_AT_ONCE = 8 * 2**20
_RECORD = ".fetched.jsonl"
_PARTIAL = ".partial"
# Their own file system classes: gcsfs by default adds a second client, which asks the bucket for its kind.
_CLIENTS = {"gs": ("gcsfs.core", "GCSFileSystem"), "s3": ("s3fs.core", "S3FileSystem")}
_LOGIN = {
    "gs": "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "`aws configure`, AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
_NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "ProfileNotFound", "DefaultCredentialsError", "RefreshError",
}  # fmt: skip

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """An object.

    Attributes:
      size: in bytes.
      version: another one after every write.
    """

    size: int
    version: str


class Store:
    """The objects below a URL, by their path below it. Errors of the store are tried again, then said in a sentence.

    Raises (all methods):
      UserError: no credentials or not enough of them, no such bucket, or the extra `stores` is not installed.
      RunError: the store does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._scheme, _, self._root = self.url.partition("://")
        if not self._root.strip("/"):
            raise UserError(f"{url}: name a bucket, as in {self._scheme}://BUCKET/FOLDER.")
        self._client = _client(self._scheme)

    def files(self, below: str = "") -> dict[str, StoredFile]:
        """The objects of a folder and its folders, by path."""
        found = self._attempt(lambda: self._client.find(self._path(below), detail=True))
        if not found:
            # A missing bucket lists as empty with some servers; this call fails on it.
            self._attempt(lambda: self._client.ls(self._root.partition("/")[0], refresh=True))
        prefix = f"{self._root}/"
        files = {
            path.removeprefix(prefix): StoredFile(int(info["size"]), str(info.get("ETag") or info.get("etag") or ""))
            for path, info in found.items()
            if path.startswith(prefix) and info["type"] == "file"
        }
        return {name: file for name, file in sorted(files.items()) if _is_plain(name)}

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is no such object."""
        return self._attempt(lambda: self._client.cat_file(self._path(name)), absent=lambda: None)

    def write(self, name: str, content: bytes) -> None:
        """Writes an object in one step."""
        self._send(name, len(content), lambda path: self._client.pipe_file(path, content))

    def upload(self, files: Mapping[str, Path]) -> None:
        """Writes files as objects, several at a time. Each appears in one step, in no order."""

        def upload(name: str) -> None:
            file = files[name]
            if (size := file.stat().st_size) > _READ_AT_ONCE:
                self._send(name, size, lambda path: self._client.put_file(str(file), path))
            else:  # it may grow while it is uploaded
                self.write(name, file.read_bytes())

        _in_parallel(upload, files)

    def download(
        self,
        files: Mapping[str, StoredFile],
        folder: Path,
        checksums: Mapping[str, str] | None = None,
        arrived: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Brings objects into a local folder, several at a time. Each file appears there whole or not at all.

        Args:
          checksums: SHA-256 that the files must have.
          arrived: called with the name of each.

        Raises:
          UserError: no space left for them.
          RunError: an object is another one than `files` says.
        """
        check_space(folder, sum(file.size for file in files.values()), self.url)

        def download(name: str) -> None:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(file.name + _PARTIAL)
            changed = ChangedError(f"{self.url}/{name} is not as it was uploaded, with {files[name].size} bytes")

            def receive() -> None:  # again if it is another object: the transfer may have damaged it
                try:
                    self._client.get_file(self._path(name), str(partial))
                except FileNotFoundError:
                    raise changed from None
                if partial.stat().st_size != files[name].size or (checksums and _checksum(partial) != checksums[name]):
                    partial.unlink()
                    raise changed

            self._attempt(receive)
            partial.replace(file)
            arrived(name)

        _in_parallel(download, files)

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects, several at a time. Those that are not there count as deleted."""
        _in_parallel(
            lambda name: self._attempt(lambda: self._client.rm_file(self._path(name)), absent=lambda: None), names
        )

    def _send(self, name: str, size: int, put: Callable[[str], object]) -> None:
        """Writes an object, and again if less or more has arrived: what is uploaded may be the only copy."""
        path = self._path(name)

        def send() -> None:
            put(path)
            if (arrived := self._client.info(path)["size"]) != size:
                raise ChangedError(f"{self.url}/{name} arrived with {arrived} bytes instead of {size}")

        self._attempt(send)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}".rstrip("/")

    def _attempt(self, call: Callable[[], _T], absent: Callable[[], _T] | None = None) -> _T:
        """What the call returns, or what `absent` does where there is no such object."""

        def may_pass(error: Exception, _: int) -> bool:
            return not isinstance(error, FileNotFoundError) and not _is_refusal(error)

        try:
            return retry(call, RETRY_SECONDS, may_pass)
        except ChangedError:
            raise
        except FileNotFoundError:
            if absent:
                return absent()
            bucket = f"{self._scheme}://{self._root.partition('/')[0]}"
            raise UserError(f"{self.url}: there is no bucket {bucket}. Make it, or name another.") from None
        except Exception as error:
            why = f"{type(error).__name__}: {_first_line(error)}"
            if _is_refusal(error):
                raise UserError(
                    f"{self.url}: the store refuses access ({why}). Log in with {_LOGIN[self._scheme]}; the "
                    "account must be allowed to list, read, write and delete objects there."
                ) from None
            raise RunError(
                f"{self.url}: the store does not answer ({why}). Start the same command again when it does."
            ) from None


class ChangedError(RunError):
    """An object is not the one that was expected."""


def is_url(place: Path | str) -> bool:
    """Whether this names a place in a store."""
    return isinstance(place, str) and place.partition("://")[0] in _CLIENTS and "://" in place


def location(text: str) -> Path | str:
    """A place as the command line takes it: a URL stays text, because a `Path` would drop a slash of it."""
    if "://" in text and not is_url(text):
        raise UserError(f"{text}: no such kind of store; gs:// and s3:// are known.")
    return text.rstrip("/") if is_url(text) else Path(text)


def local_copy(url: str, purpose: str) -> Path:
    """Where this host keeps its copy of a URL: below LSM_STORE_CACHE, or the user's cache folder."""
    base = os.environ.get("LSM_STORE_CACHE")
    cache = Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lsm_jax/stores"
    scheme, _, path = url.rstrip("/").partition("://")
    if not _is_plain(path):
        raise UserError(f"{url}: a URL may not hold `..`, or two slashes in a row.")
    return cache.absolute() / purpose / scheme / path


@contextlib.contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """One process of this host at a time; the others wait. The lock goes with the process that holds it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_folder(url: str, folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> Path:
    """Makes a local folder equal to a URL and returns it. Files that are here already are not fetched again.

    Several processes of a host may ask at the same time: one fetches. A fetch that was cut short goes on where it was.

    Args:
      wanted: which files; by path below the URL. Others stay as they are.

    Raises:
      UserError, RunError: as `Store`, or no space is left.
    """
    store = Store(url)
    with only_process(folder):
        remote = {name: file for name, file in store.files().items() if wanted(name)}
        here = _fetched(folder)
        for name in [name for name in here if wanted(name) and name not in remote]:
            (folder / name).unlink(missing_ok=True)
        missing = {
            name: file
            for name, file in remote.items()
            if here.get(name) != file or not (folder / name).is_file() or (folder / name).stat().st_size != file.size
        }
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _RECORD).open("a", encoding="utf-8") as record:

            def arrived(name: str) -> None:
                record.write(json.dumps([name, remote[name].size, remote[name].version]) + "\n")
                record.flush()

            store.download(missing, folder, arrived=arrived)
    return folder


def upload_folder(folder: Path, url: str, names: Iterable[str] | None = None) -> int:
    """Writes a local folder to a URL; returns how many files. A marker is deleted first and written last.

    Args:
      names: which files, by path within the folder; all where left out, and then objects that are not here are deleted
        from folders that have a marker.
    """
    store, chosen = Store(url), local_files(folder) if names is None else list(names)
    marked = {str(PurePosixPath(name).parent): name for name in chosen if PurePosixPath(name).name in MARKERS}
    store.delete(marked.values())
    store.upload({name: folder / name for name in chosen if name not in marked.values()})
    if names is None:
        for parent in marked:
            below = f"{parent}/" if parent != "." else ""
            store.delete(name for name in store.files() if name.startswith(below) and name not in chosen)
    store.upload({name: folder / name for name in marked.values()})
    return len(chosen)


def local_files(folder: Path) -> list[str]:
    """The files of a local folder and its folders, by path, without those that only a copy has."""
    return [
        str(file.relative_to(folder))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != _RECORD and not file.name.endswith((_PARTIAL, ".new", ".lock"))
    ]


def check_space(folder: Path, needed: int, what: str) -> None:
    """UserError if a folder's disk has less space than needed."""
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    if (free := shutil.disk_usage(there).free) < needed:
        raise UserError(
            f"{what} needs {needed / 1e9:.3g} GB in {folder}, which has {free / 1e9:.3g} GB free. Make room, or name "
            "another folder in LSM_STORE_CACHE."
        )


def _fetched(folder: Path) -> dict[str, StoredFile]:
    """What a folder's files were when they were fetched."""
    files = {}
    with contextlib.suppress(OSError):
        for line in (folder / _RECORD).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                name, size, version = json.loads(line)
                files[str(name)] = StoredFile(int(size), str(version))
    return files


@functools.cache
def _client(scheme: str) -> Any:
    module, name = _CLIENTS[scheme]
    try:
        client = getattr(importlib.import_module(module), name)
    except ImportError:
        raise UserError(f"{scheme}:// needs the extra `stores`: pip install -e '.[stores]' in the checkout.") from None
    # They log a traceback of what is raised anyway.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    return client(use_listings_cache=False, skip_instance_cache=True)


def _is_refusal(error: Exception) -> bool:
    """Whether the store knows this caller not, or not well enough: trying again would not help."""
    names = {kind.__name__ for kind in type(error).__mro__}
    code = str(getattr(error, "code", ""))
    return (
        isinstance(error, PermissionError)
        or bool(names & _NO_CREDENTIALS)
        or code in ("401", "403")
        or str(error).startswith("Forbidden")
    )


def _is_plain(name: str) -> bool:
    """Whether a path stays within its folder."""
    return bool(name) and all(part not in ("", ".", "..") for part in name.split("/"))


def _in_parallel(act: Callable[[str], object], names: Iterable[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(_TRANSFERS) as threads:
        futures = [threads.submit(act, name) for name in names]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
