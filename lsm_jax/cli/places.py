"""Places on the command line: a local path, or a `gs://` or `s3://` URL.

A verb works on local folders only. Before it runs, the URLs among its arguments are replaced by local copies of what is
there; afterwards, what it has written is uploaded. So each argument says what it names: a `run_folder`, a
`data_folder`, an `output` or an `output_dataset`; `local_path` takes no URL.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lsm_jax.errors import RunError, UserError

_Kind = Literal["run", "data", "output", "output dataset"]


@dataclasses.dataclass(frozen=True)
class _Remote:
    url: str
    kind: _Kind


def run_folder(text: str) -> Path | _Remote:
    """Argument type: folder of a run, or of runs."""
    return _place(text, "run")


def data_folder(text: str) -> Path | _Remote:
    """Argument type: folder of a dataset or of recordings."""
    return _place(text, "data")


def output(text: str) -> Path | _Remote:
    """Argument type: file or folder to write."""
    return _place(text, "output")


def output_dataset(text: str) -> Path | _Remote:
    """Argument type: folder of a dataset to write."""
    return _place(text, "output dataset")


def folder_or_url(text: str) -> Path | str:
    """Argument type: folder of a run that a verb opens itself."""
    place = _place(text, "run")
    return place if isinstance(place, Path) else place.url


def local_path(text: str) -> Path:
    """Argument type: file or folder on this machine."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: a file on this machine is needed here. Copy it first.")
    return Path(text)


def check_writable(file: Path) -> None:
    """UserError where a file of --out cannot be written; for verbs that compute for long before they write it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        is_new = not file.exists()
        file.open("ab").close()
        if is_new:
            file.unlink()
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another --out.") from None


@contextlib.contextmanager
def local_copies(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """The arguments with local copies in place of URLs; in the end, what is new there is uploaded.

    Raises:
      UserError, RunError: those of the store; and those of the verb, with the URL in place of its copy.
    """
    with contextlib.ExitStack() as stack:
        copies: list[_Copy] = []

        def local(value: object) -> object:
            if isinstance(value, list):
                return [local(each) for each in value]
            if not isinstance(value, _Remote):
                return value
            copies.append(_Copy(value, args, stack))
            return copies[-1].path

        values = {name: local(value) for name, value in vars(args).items()}
        urls = {name: value.url for name, value in vars(args).items() if isinstance(value, _Remote)}
        try:
            yield argparse.Namespace(**values, urls=urls)
        except (UserError, RunError) as error:
            sentence = str(error)
            for copy in copies:
                sentence = sentence.replace(str(copy.path), copy.url)
            raise type(error)(sentence) from error
        for copy in copies:
            copy.upload()


class _Copy:
    """A local copy of a URL.

    Attributes:
      path: what the verb sees in place of the URL.
    """

    def __init__(self, remote: _Remote, args: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        from lsm_jax import storage

        self.url, self._is_output = remote.url, remote.kind not in ("run", "data")
        if remote.kind == "run":
            self.path = _fetched_run(remote.url, args)
        elif remote.kind == "data":
            self.path = storage.fetch_folder(remote.url, storage.local_copy(remote.url, "data"))
        else:
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="lsm-output-"))
            self.path = Path(scratch) / remote.url.rpartition("/")[2]
            # The verb replaces a dataset only where it is told to, and nothing else.
            if remote.kind == "output dataset" and (there := storage.Store(remote.url).files()):
                self.path.mkdir()
                (self.path / ("channels.json" if "channels.json" in there else "no dataset")).touch()
        self._folder = self.path.parent if self._is_output else self.path
        self._before = self._states()

    def upload(self) -> None:
        from lsm_jax import storage

        changed = [name for name, state in self._states().items() if self._before.get(name) != state]
        if not changed:
            return
        if not self._is_output:
            storage.upload_folder(self._folder, self.url, changed)
            print(f"uploaded to {self.url}: {', '.join(changed[:5])}{' ...' if len(changed) > 5 else ''}")
        elif self.path.is_dir():
            storage.upload_folder(self.path, self.url)
            print(f"uploaded to {self.url}")
        else:  # a file, and those that the verb writes beside it
            parent = self.url.rpartition("/")[0]
            storage.upload_folder(self._folder, parent, changed)
            print(f"uploaded to {parent}: {', '.join(changed)}")

    def _states(self) -> dict[str, tuple[int, int]]:
        from lsm_jax import storage

        files = {name: (self._folder / name).stat() for name in storage.local_files(self._folder)}
        return {name: (file.st_size, file.st_mtime_ns) for name, file in files.items()}


def _fetched_run(url: str, args: argparse.Namespace) -> Path:
    """A run's copy, with a checkpoint if the verb reads one.

    A verb that can do without has `checkpoint_for`: the names of the arguments that ask for the model.
    """
    from lsm_jax import storage
    from lsm_jax.train.mirror import fetched_run, is_small

    if hasattr(args, "step"):
        return fetched_run(url, args.step, every=getattr(args, "curve", False))
    if any(getattr(args, name) for name in getattr(args, "checkpoint_for", ())):
        return fetched_run(url, required=False)
    return storage.fetch_folder(url, storage.local_copy(url, "copies"), is_small)


def _place(text: str, kind: _Kind) -> Path | _Remote:
    from lsm_jax.storage import location

    try:
        place = location(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return place if isinstance(place, Path) else _Remote(place, kind)
