"""Opening files of strangers: inside the folder, of a bearable size, one block at a time.

Everything a reader opens comes through here. Symbolic links, devices and paths that leave the source
folder are refused; sizes are capped, also of what a zip unfolds to; a damaged file is set aside and
the next one read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from lsm_jax.errors import UserError
from lsm_jax.ingest.report import IngestReport

MIB = 1 << 20
# What reading a damaged or hostile archive can raise.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, UnicodeDecodeError)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes beyond which input is refused rather than read.

    Attributes:
      file_bytes: of a file, or of an archive member once unfolded.
      ratio: unfolded over packed size of an archive member above 64 MiB (deflate itself ends at 1032).
      members: files in one archive.
      line_bytes: of one line of text.
      workbook_bytes: of an Excel workbook, unfolded; it is parsed whole.
      files: files in a source folder.
    """

    file_bytes: int = 8192 * MIB
    ratio: float = 500.0
    members: int = 10_000
    line_bytes: int = MIB
    workbook_bytes: int = 512 * MIB
    files: int = 1_000_000


DEFAULT_LIMITS = Limits()


class Refused(Exception):
    """A file that is not read; the message says why. Readers report it and go on."""


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A readable file: a plain one, or a member of a zip.

    Attributes:
      root: the source folder, resolved.
      path: the file on disk, relative to `root`, in POSIX form.
      member: the member's name when `path` is a zip, else "".
      size: bytes, unfolded (as declared; reading is capped as well).
    """

    root: Path
    path: str
    member: str = ""
    size: int = 0

    @property
    def name(self) -> str:
        """Last part of the name, without the .gz that `opened` unpacks: what formats are recognised by."""
        return PurePosixPath(self.member or self.path).name.removesuffix(".gz")

    @property
    def label(self) -> str:
        """How the file is called in reports and errors."""
        return f"{self.path}!{self.member}" if self.member else self.path


def source_root(source: Path) -> Path:
    """The resolved source, a folder or a single file.

    Raises:
      UserError: it does not exist or is neither.
    """
    if not source.exists():
        raise UserError(f"source {source} does not exist: give an existing folder or file with --source.")
    if not (source.is_dir() or source.is_file()):
        raise UserError(f"source {source} is neither a folder nor a file.")
    return source.resolve()


def source_files(source: Path, report: IngestReport, limits: Limits = DEFAULT_LIMITS) -> Iterator[SourceFile]:
    """All readable files below `source`, members of zips included, in sorted order.

    Refused ones (symbolic links, devices, too large, damaged archives) are set aside in the report.

    Raises:
      UserError: `source` does not exist, or holds more than `limits.files` files.
    """
    root = source_root(source)
    if root.is_file():
        yield from _expand(root.parent, root.name, report, limits)
        return
    seen = 0
    for folder, folders, names in os.walk(root, followlinks=False):
        links = {name for name in folders if Path(folder, name).is_symlink()}
        for name in sorted(links):
            report.set_aside(_relative(root, folder, name), "a symbolic link to a folder; links are not followed")
        nameless = {name for name in folders if not _is_text(name)} - links
        for name in sorted(nameless):
            report.set_aside(_relative(root, folder, name), f"a folder whose {_NOT_TEXT}")
        folders[:] = sorted(set(folders) - links - nameless)
        for name in sorted(names):
            seen += 1
            if seen > limits.files:
                raise UserError(f"{source} holds more than {limits.files} files: is it the right folder?")
            yield from _expand(root, _relative(root, folder, name), report, limits)


@contextlib.contextmanager
def opened(file: SourceFile, limits: Limits = DEFAULT_LIMITS) -> Iterator[Readable]:
    """The file as a stream of bytes that ends with `Refused` once it outgrows its limit.

    Raises:
      Refused: a link, a path that leaves the source folder, not a plain file, too large, damaged.
    """
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(_open_plain(file.root, file.path, limits))
        if not file.member:
            packed = file.path.lower().endswith(".gz")
            yield _Capped(gzip.GzipFile(fileobj=plain), limits.file_bytes) if packed else plain
            return
        try:
            archive = stack.enter_context(zipfile.ZipFile(plain))
            member = stack.enter_context(archive.open(_checked_member(archive.getinfo(file.member), limits)))
        except KeyError:
            raise Refused("the archive has no such member") from None
        except DAMAGE as error:
            raise Refused(f"damaged archive ({error})") from error
        yield _Capped(member, limits.file_bytes)


def read_whole(file: SourceFile, limits: Limits = DEFAULT_LIMITS, most: int = 64 * MIB) -> bytes:
    """All bytes of a small file (at most `most`).

    Raises:
      Refused: see `opened`; also when the file is larger than `most`.
    """
    with opened(file, limits) as stream:
        try:
            content = stream.read(most + 1)
        except DAMAGE as error:
            raise Refused(f"damaged file ({error})") from error
    if len(content) > most:
        raise Refused(f"larger than {most // MIB} MiB, far more than a file of its kind")
    return content


def checked_workbook(file: SourceFile, limits: Limits = DEFAULT_LIMITS) -> bytes:
    """An Excel workbook's bytes, after its inner zip was found to unfold to a bearable size.

    Raises:
      Refused: not a workbook, damaged, or too large.
    """
    content = read_whole(file, limits, most=limits.workbook_bytes)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unfolded = sum(_checked_member(member, limits).file_size for member in archive.infolist())
            if unfolded > limits.workbook_bytes:
                raise Refused(f"workbook unfolds to {unfolded // MIB} MiB, limit {limits.workbook_bytes // MIB} MiB")
            damaged = archive.testzip()
    except DAMAGE as error:
        raise Refused(f"not a readable Excel workbook ({error})") from error
    if damaged:
        raise Refused(f"damaged workbook (checksum of {damaged})")
    return content


_NOT_TEXT = "name is not UTF-8, perhaps of an old archive: rename it"


def _is_text(name: str) -> bool:
    """Whether a name is UTF-8; on Linux any bytes may be one, and Python hands them on as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _relative(root: Path, folder: str, name: str) -> str:
    return Path(folder, name).relative_to(root).as_posix()


def _expand(root: Path, path: str, report: IngestReport, limits: Limits) -> Iterator[SourceFile]:
    """The file itself, or the members of a zip."""
    if not _is_text(path):
        report.set_aside(path, f"its {_NOT_TEXT}")
        return
    try:
        with _open_plain(root, path, limits) as stream:
            if not path.lower().endswith(".zip"):
                yield SourceFile(root, path, size=os.fstat(stream.fileno()).st_size)
                return
            with zipfile.ZipFile(stream) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
    except Refused as refusal:
        report.set_aside(path, str(refusal))
        return
    except DAMAGE as error:
        report.set_aside(path, f"damaged archive, perhaps cut off while it was copied ({error})")
        return
    if len(members) > limits.members:
        report.set_aside(path, f"archive of {len(members)} files, limit {limits.members}")
        return
    for member in members:
        try:
            checked = _checked_member(member, limits)
            yield SourceFile(root, path, member=checked.filename, size=checked.file_size)
        except Refused as refusal:
            report.set_aside(f"{path}!{member.filename}", str(refusal))


def _open_plain(root: Path, path: str, limits: Limits) -> BinaryIO:
    """Opens a plain file below `root`. The last step never follows a link; the folder is checked resolved."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise Refused("its path leaves the source folder")
    full = root / path
    try:
        if not full.parent.resolve().is_relative_to(root.resolve()):
            raise Refused("its path leaves the source folder through a link")
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Refused("a symbolic link; links are not followed" if full.is_symlink() else str(error)) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise Refused("not a plain file")
    if status.st_size > limits.file_bytes:
        os.close(descriptor)
        raise Refused(
            f"{status.st_size // MIB} MiB, limit {limits.file_bytes // MIB} MiB: if it is meant, raise --max-file-mib"
        )
    return os.fdopen(descriptor, "rb")


def _checked_member(member: zipfile.ZipInfo, limits: Limits) -> zipfile.ZipInfo:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
        raise Refused("its path leaves the archive")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise Refused("a symbolic link inside an archive")
    if member.flag_bits & 1:
        raise Refused("encrypted: unpack it with its password first")
    if name.suffix.lower() == ".zip":
        raise Refused("an archive inside an archive: unpack the outer one first")
    ratio = member.file_size / max(member.compress_size, 1)
    if member.file_size > limits.file_bytes or (member.file_size > 64 * MIB and ratio > limits.ratio):
        raise Refused(
            f"would unfold to {member.file_size // MIB} MiB, {ratio:.0f} times its packed size; limits are "
            f"{limits.file_bytes // MIB} MiB (--max-file-mib) and {limits.ratio:.0f} times"
        )
    return member


class _Capped:
    """A stream that refuses to yield more than its limit, whatever the archive's directory claims."""

    def __init__(self, stream: Readable, limit: int) -> None:
        self._stream, self._left = stream, limit

    def read(self, size: int = -1, /) -> bytes:
        content = self._stream.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise Refused("unfolds to more than its limit (--max-file-mib)")
        return content
