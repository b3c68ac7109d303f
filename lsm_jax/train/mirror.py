"""A run folder on an object store: each host works on a local copy, the store has what counts.

At the start the copy is made equal to the store, checkpoints excepted. A checkpoint is saved in the copy first: each
process uploads its own files, the first one fetches those of other hosts, completes the checkpoint, and uploads the
rest and then the manifest. Without its manifest a checkpoint in the store is not there. The other files of the run are
uploaded before the manifest, so that a checkpoint never has older metrics beside it.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import jax

from lsm_jax.errors import RunError, UserError
from lsm_jax.events import event_file
from lsm_jax.storage import (
    ChangedError,
    Store,
    StoredFile,
    fetch_folder,
    is_url,
    local_copy,
    local_files,
    only_process,
)
from lsm_jax.train.checkpoint_files import MANIFEST, Files, read_manifest, verify
from lsm_jax.train.lock import LOCK
from lsm_jax.train.messages import Messages
from lsm_jax.train.workdir import CHECKPOINTS

RUNS = "runs"  # the copies in which runs train; those that are only read are elsewhere
_SET_ASIDE = "damaged-manifest.json"


class RunStore:
    """The checkpoints and other files of a run in a store.

    Args:
      url: of the run.
      folder: the local copy.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self._store, self._folder = Store(url), folder
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._whole: set[int] = set()

    def fetch_small_files(self) -> None:
        """Makes the local copy equal to the store, without checkpoints.

        Messages of this run that never got there stay, once its log is in the store (`_put_back`).
        """
        url = self._store.url
        with only_process(self._folder.with_name(f"{self._folder.name}.start")):
            messages = {
                file.name: _text(file)
                for pattern in ("events*.jsonl", "hang-*.txt")
                for file in self._folder.glob(pattern)
            }
            for name in local_files(self._folder):
                if is_small(name):
                    (self._folder / name).unlink()
            fetch_folder(url, self._folder, is_small)
            whole = {str(step) for step in self.steps()}
            for entry in (self._folder / CHECKPOINTS).glob("*"):
                if entry.name not in whole:
                    shutil.rmtree(entry, ignore_errors=True)
            self._uploaded = {name: _state(self._folder / name) for name in local_files(self._folder)}
            self._put_back(messages)

    def _put_back(self, messages: Mapping[str, str]) -> None:
        """Adds what an earlier start of this run wrote here and could not upload; the next upload takes it along."""
        log = event_file(self._folder, 0)
        begun = _text(log).partition("\n")[0]
        if not begun or begun != messages.get(log.name, "").partition("\n")[0]:
            return  # another run, in a folder of the same name
        for name, text in messages.items():
            file = self._folder / name
            stored = _text(file)
            lines = {*stored.splitlines()}
            unsent = [line for line in text.splitlines() if line not in lines]
            if unsent:
                file.write_text(stored + "".join(f"{line}\n" for line in unsent), encoding="utf-8")

    def upload_small_files(self) -> None:
        """Uploads what has changed of the run's other files. A process other than the first has its own messages."""
        process = jax.process_index()
        names = [name for name in local_files(self._folder) if is_small(name) and not name.startswith("events-")]
        if process > 0:
            own = event_file(self._folder, process), self._folder / f"hang-{process}.txt"
            names = [file.name for file in own if file.is_file()]
        # Taken before the upload: what is written meanwhile is uploaded next time.
        states = {name: _state(self._folder / name) for name in names}
        changed = [name for name, state in states.items() if self._uploaded.get(name) != state]
        self._store.upload({name: self._folder / name for name in changed})
        self._uploaded |= {name: states[name] for name in changed}

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, damaged or not."""
        names = self._store.files(CHECKPOINTS)
        self._whole = {step for name in names if (step := _step(name, MANIFEST)) is not None}
        return sorted(self._whole)

    def set_aside_names(self) -> list[str]:
        """Checkpoints that were found damaged."""
        names = self._store.files(CHECKPOINTS)
        return [f"damaged {step}" for name in names if (step := _step(name, _SET_ASIDE)) is not None]

    def fetch(self, step: int) -> str | None:
        """Brings a checkpoint into the local copy; returns the first fault in words, None if there is none."""
        checkpoint = self._folder / CHECKPOINTS / str(step)
        with only_process(self._folder.with_name(f"{self._folder.name}.checkpoint")):
            manifest = self._store.read(f"{CHECKPOINTS}/{step}/{MANIFEST}")
            if manifest is None:
                return f"{MANIFEST} is missing in {self._store.url}"
            copied = (checkpoint / MANIFEST).is_file() and (checkpoint / MANIFEST).read_bytes() == manifest
            if copied and verify(checkpoint) is None:  # a damaged copy says nothing about the store
                return None
            shutil.rmtree(checkpoint, ignore_errors=True)
            arriving = checkpoint.with_name(f"{step}.arriving")
            shutil.rmtree(arriving, ignore_errors=True)
            arriving.mkdir(parents=True)
            (arriving / MANIFEST).write_bytes(manifest)
            try:
                self._download(step, arriving, read_manifest(arriving)["files"])
            except (ValueError, KeyError, TypeError):
                return f"{MANIFEST} cannot be read"
            except ChangedError as error:
                return str(error)
            arriving.rename(checkpoint)
        return None

    def push(self, step: int, folder: Path, names: Files) -> None:
        """Uploads files that this process has written, and its events."""
        self.upload_small_files()
        self._store.upload({f"{CHECKPOINTS}/{step}/{name}": folder / name for name in names})

    def pull(self, step: int, folder: Path, files: Files) -> None:
        """Fetches files that other hosts have written."""
        self._download(step, folder, {name: found for name, found in files.items() if not (folder / name).is_file()})

    def commit(self, step: int, folder: Path, pushed: Collection[str]) -> None:
        """Uploads the files that were not pushed and, last, the manifest."""
        self.upload_small_files()
        rest = [name for name in local_files(folder) if name not in pushed and name != MANIFEST]
        self._store.upload({f"{CHECKPOINTS}/{step}/{name}": folder / name for name in rest})
        self._store.delete([f"{CHECKPOINTS}/{step}/{_SET_ASIDE}"])
        self._store.write(f"{CHECKPOINTS}/{step}/{MANIFEST}", (folder / MANIFEST).read_bytes())
        self._whole.add(step)

    def begin(self, step: int) -> None:
        """Takes the manifest of an earlier checkpoint of the same step away, if there is one."""
        if step in self._whole:
            self._store.delete([f"{CHECKPOINTS}/{step}/{MANIFEST}"])
            self._whole.discard(step)

    def set_aside(self, step: int) -> None:
        """Takes a damaged checkpoint's manifest away. Its files stay until the step is saved again."""
        below = f"{CHECKPOINTS}/{step}"
        self._store.write(f"{below}/{_SET_ASIDE}", self._store.read(f"{below}/{MANIFEST}") or b"")
        self._store.delete([f"{below}/{MANIFEST}"])
        shutil.rmtree(self._folder / CHECKPOINTS / str(step), ignore_errors=True)

    def prune(self, keep: int, damaged: Collection[int] = ()) -> None:
        """Deletes whole checkpoints but the newest, and what cut uploads left before them.

        Args:
          damaged: steps that were found damaged, which are not counted among the newest.
        """
        names = self._store.files(CHECKPOINTS)
        steps = {step for name in names if (step := _step(name, MANIFEST)) is not None}
        whole = sorted(steps - {*damaged})[-keep:]
        aside = {step for name in names if (step := _step(name, _SET_ASIDE)) is not None}
        dead = [
            name
            for name in names
            if (step := _step(name)) is not None and whole and step < whole[-1] and step not in {*whole, *aside}
        ]
        # The manifests first: a checkpoint that is only partly deleted must not look whole.
        self._store.delete(name for name in dead if name.endswith(f"/{MANIFEST}"))
        self._store.delete(name for name in dead if not name.endswith(f"/{MANIFEST}"))

    def _download(self, step: int, folder: Path, files: Files) -> None:
        below = f"{CHECKPOINTS}/{step}/"
        store = Store(self._store.url + f"/{below}")
        expected = {name: StoredFile(int(size), "") for name, (size, _) in files.items()}
        store.download(expected, folder, {name: checksum for name, (_, checksum) in files.items()})


@contextlib.contextmanager
def run_folder(workdir: Path | str) -> Iterator[tuple[Path, RunStore | None]]:
    """The local folder of a run, and its store if `workdir` is a URL. In the end, what is new is uploaded.

    Raises:
      UserError, RunError: as `Store`.
    """
    if not is_url(workdir):
        yield Path(workdir), None
        return
    url = str(workdir).rstrip("/")
    folder = local_copy(url, RUNS)
    store = RunStore(url, folder)
    # No process writes into a copy that another one on its host is still fetching.
    Messages().gather(store.fetch_small_files)
    try:
        yield folder, store
    except BaseException:
        try:
            store.upload_small_files()
        except (UserError, RunError) as error:
            print(f"the run's last messages were not uploaded: {error} They are in {folder}.", file=sys.stderr)
        raise
    store.upload_small_files()


def fetched_run(url: str, step: int | None = None, every: bool = False, required: bool = True) -> Path:
    """A local copy of a run to read: without checkpoints but that of a step, the newest whole one, or every one.

    Args:
      required: False for a copy without a checkpoint where there is no whole one.

    Raises:
      UserError: no such checkpoint, or as `Store`.
    """
    folder = local_copy(url, "copies")
    store = RunStore(url, folder)
    fetch_folder(url, folder, is_small)
    steps = store.steps()
    if step is not None and step not in steps:
        listed = ", ".join(map(str, steps)) or "none"
        raise UserError(f"{url} has no checkpoint of step {step}; it has {listed}.")
    with contextlib.suppress(FileNotFoundError):
        for entry in (folder / CHECKPOINTS).iterdir():
            if entry.name not in map(str, steps):
                shutil.rmtree(entry, ignore_errors=True)
    faults = []
    for candidate in steps[::-1] if step is None else [step]:
        if fault := store.fetch(candidate):
            faults.append(f"{candidate} is damaged ({fault})")
        elif not every:
            if faults:
                print(f"{url}: checkpoint {'; '.join(faults)}; {candidate} is taken.", file=sys.stderr)
            return folder
    if not required:
        return folder
    if len(faults) == len(steps) or (faults and step is not None):
        raise UserError(f"{url} has no whole checkpoint" + (f": {'; '.join(faults)}." if faults else " yet."))
    return folder


def is_small(name: str) -> bool:
    """Whether a file of a run, or of a folder of runs, is of no checkpoint."""
    return f"/{CHECKPOINTS}/" not in f"/{name}" and name != LOCK


def _step(name: str, file: str = "") -> int | None:
    """The step of a checkpoint's object; None if it is of no checkpoint, or not this file of it."""
    _, step, *rest = (*name.split("/"), "")
    return (
        int(step) if name.startswith(f"{CHECKPOINTS}/") and step.isdecimal() and (not file or rest[0] == file) else None
    )


def _text(file: Path) -> str:
    """The content of a file of messages, which a crash may have cut; empty without one."""
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _state(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
