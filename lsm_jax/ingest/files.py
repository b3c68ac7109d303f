"""Opens untrusted files: inside the source folder, of limited size, read in blocks.

Everything a reader opens comes through here. Symbolic links, devices and paths that leave the source folder are
refused. Sizes are limited, also after unpacking. A damaged file is set aside and the next one is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import itertools
import lzma
import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from lsm_jax.errors import UserError
from lsm_jax.ingest.cut_archives import members_of_cut, open_member
from lsm_jax.ingest.report import IngestReport

MIB = 1 << 20
Stream = io.BufferedReader | gzip.GzipFile | zipfile.ZipExtFile
# What reading a damaged or hostile archive can raise.
DAMAGE_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError, ValueError
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes above which input is refused."""

    file_bytes: int = 8192 * MIB  # of a file, or of an unpacked archive member
    ratio: float = 500.0  # unpacked over packed size of an archive member above 64 MiB (deflate reaches 1032)
    members: int = 10_000  # files in one archive
    line_bytes: int = MIB  # of one line of text
    workbook_bytes: int = 512 * MIB  # of an unpacked Excel workbook, which is parsed whole
    files: int = 1_000_000  # in a source folder


DEFAULT_LIMITS = Limits()


class UnreadableFile(Exception):
    """A file that cannot be used; the message says why. Readers report it and go on with the next file."""


class LimitedStream:
    """A stream that raises `UnreadableFile` for damage, and for more bytes than its limit whatever the archive says.

    It raises only once all that comes before has been read.
    """

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream, self._bytes_left = stream, limit
        self._fault: UnreadableFile | None = None
        # A decompressor that meets damage gives nothing of the piece it was asked for.
        self._piece_bytes = MIB if isinstance(stream, io.BufferedReader) else 4096

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, and fewer only before the end or a fault."""
        pieces, wanted = [], size if size >= 0 else self._bytes_left + 1
        while wanted and self._fault is None:
            try:
                piece = self._stream.read1(min(wanted, self._piece_bytes))
            except DAMAGE_ERRORS as error:
                self._fault = UnreadableFile(f"damaged file ({str(error) or type(error).__name__})")
                break
            if len(piece) > self._bytes_left:
                self._fault = UnreadableFile("unfolds to more than its limit (--max-file-mib)")
            pieces.append(piece[: self._bytes_left])
            self._bytes_left -= len(pieces[-1])
            wanted -= len(piece)
            if not piece:
                break
        content = b"".join(pieces)
        if self._fault is not None and not content and size:
            raise self._fault
        return content


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file on disk or a member of a zip archive."""

    root: Path  # the source folder, resolved
    path: str  # of the file on disk, relative to `root`, in POSIX form
    member: str = ""  # its name where `path` is a zip archive
    limits: Limits = DEFAULT_LIMITS
    header_offset: int | None = None  # where the member starts in an archive that was cut off

    @property
    def name(self) -> str:
        """The file name without a final .gz, which `open_file` unpacks. Formats are recognised by it."""
        name = PurePosixPath(self.member or self.path).name
        return name[: -len(".gz")] if self.is_gzip else name

    @property
    def is_gzip(self) -> bool:
        return (self.member or self.path).lower().endswith(".gz")

    @property
    def label(self) -> str:
        """The file's name in reports and errors."""
        return f"{self.path}!{self.member}" if self.member else self.path


def source_files(source: Path, report: IngestReport, limits: Limits = DEFAULT_LIMITS) -> Iterator[SourceFile]:
    """All readable files below `source` (a folder or one file), members of zips included, in sorted order.

    Symbolic links, devices, files above the limits and damaged archives are set aside in the report.

    Raises:
      UserError: `source` does not exist, or holds more than `limits.files` files.
    """
    if not source.exists():
        raise UserError(f"source {source} does not exist: give an existing folder or file with --source.")
    if not (source.is_dir() or source.is_file()):
        raise UserError(f"source {source} is neither a folder nor a file.")
    root = source.resolve()
    if root.is_file():
        yield from _expand(root.parent, root.name, report, limits)
        return

    def unreadable(error: OSError) -> None:
        folder = Path(error.filename).relative_to(root)
        if folder == Path():
            raise UserError(f"source {source} cannot be read: {error.strerror}.")
        report.set_aside(folder.as_posix(), f"a folder that cannot be read ({error.strerror})")

    count = 0
    for folder, folders, names in os.walk(root, onerror=unreadable, followlinks=False):
        relative = Path(folder).relative_to(root)
        folders.sort()
        for name in [*folders]:
            if Path(folder, name).is_symlink():
                report.set_aside((relative / name).as_posix(), "a symbolic link to a folder; links are not followed")
            elif not _is_utf8(name):
                report.set_aside((relative / name).as_posix(), f"a folder whose {_NOT_UTF8}")
            else:
                continue
            folders.remove(name)
        for name in sorted(names):
            count += 1
            if count > limits.files:
                raise UserError(f"{source} holds more than {limits.files} files: is it the right folder?")
            yield from _expand(root, (relative / name).as_posix(), report, limits)


@contextlib.contextmanager
def open_file(file: SourceFile) -> Iterator[LimitedStream]:
    """The unpacked file as a stream of bytes.

    Raises:
      UnreadableFile: a link, a path that leaves the source folder, not a plain file, too large, damaged.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream = _open_member(file, stack) if file.member else stack.enter_context(_open_plain(file))
        except KeyError:
            raise UnreadableFile("the archive has no such member") from None
        except DAMAGE_ERRORS as error:
            raise UnreadableFile(f"damaged archive ({error})") from error
        if file.is_gzip:
            stream = gzip.GzipFile(fileobj=stream)
        yield LimitedStream(stream, file.limits.file_bytes)


def _open_member(file: SourceFile, stack: contextlib.ExitStack) -> Stream:
    """The unpacked bytes of a member; KeyError if there is none of this name."""
    if file.header_offset is not None:
        return stack.enter_context(open_member(stack.enter_context(_open_plain(file)), file.header_offset))
    archive = stack.enter_context(_open_archive(file))
    member = archive.getinfo(file.member)
    _check_member(member, file.limits)
    return cast(zipfile.ZipExtFile, stack.enter_context(archive.open(member)))


_idle_archives: dict[tuple[object, ...], zipfile.ZipFile] = {}  # at most one
_idle_lock = threading.Lock()


@contextlib.contextmanager
def _open_archive(file: SourceFile) -> Iterator[zipfile.ZipFile]:
    """The zip that holds a member. The last one stays open, since exports have thousands of members in one directory.

    Raises:
      UnreadableFile, DAMAGE_ERRORS: it cannot be opened.
    """
    plain = _open_plain(file)
    status = os.fstat(plain.fileno())
    # A child process would share the position in the file with its parent.
    key = (os.getpid(), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    with _idle_lock:
        archive = _idle_archives.pop(key, None)
    try:
        archive = archive or _OwnedArchive(plain)
    finally:
        if archive is None or archive.fp is not plain:
            plain.close()
    try:
        yield archive
    finally:
        with _idle_lock:
            for unused in _idle_archives.values():
                unused.close()
            _idle_archives.clear()
            _idle_archives[key] = archive


class _OwnedArchive(zipfile.ZipFile):
    """A zip that closes its file when it is closed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        super().__init__(file)

    def close(self) -> None:
        super().close()
        self._file.close()


def first_bytes(file: SourceFile, size: int = 4096) -> bytes:
    """The start of a file, to recognise its format; empty where it cannot be read."""
    try:
        with open_file(file) as stream:
            return stream.read(size)
    except UnreadableFile:
        return b""


def read_bytes(file: SourceFile, max_bytes: int = 64 * MIB) -> bytes:
    """All bytes of a small file.

    Raises:
      UnreadableFile: see `open_file`; also when the file is larger than `max_bytes`.
    """
    with open_file(file) as stream:
        content = stream.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise UnreadableFile(f"larger than {max_bytes // MIB} MiB, far more than a file of its kind")
        stream.read(1)  # raises if the content ended by damage
    return content


def read_workbook(file: SourceFile) -> bytes:
    """The bytes of an Excel workbook, after a check of what its inner zip unpacks to.

    Raises:
      UnreadableFile: not a workbook, damaged, or too large.
    """
    limit = file.limits.workbook_bytes
    content = read_bytes(file, limit)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                _check_member(member, file.limits)
            size = sum(member.file_size for member in archive.infolist())
            if size > limit:
                raise UnreadableFile(f"workbook unfolds to {size // MIB} MiB, limit {limit // MIB} MiB")
            damaged = archive.testzip()
    except DAMAGE_ERRORS as error:
        raise UnreadableFile(f"not a readable Excel workbook ({error})") from error
    if damaged:
        raise UnreadableFile(f"damaged workbook (checksum of {damaged})")
    return content


_NOT_UTF8 = "name is not UTF-8, perhaps of an old archive: rename it"


def _is_utf8(name: str) -> bool:
    """Whether a file name is UTF-8. Linux allows any bytes; Python shows invalid ones as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _expand(root: Path, path: str, report: IngestReport, limits: Limits) -> Iterator[SourceFile]:
    """The file itself, or the members of a zip."""
    if not _is_utf8(path):
        report.set_aside(path, f"its {_NOT_UTF8}")
        return
    try:
        with _open_plain(SourceFile(root, path, limits=limits)) as stream:
            if not path.lower().endswith(".zip"):
                yield SourceFile(root, path, limits=limits)
                return
            members, is_cut = _list_members(stream, path, report, limits)
    except UnreadableFile as error:
        report.set_aside(path, str(error))
        return
    if len(members) > limits.members:
        report.set_aside(path, f"archive of {len(members)} files, limit {limits.members}")
        return
    by_name = {member.filename: member for member in members if not member.is_dir()}
    if repeated := sum(not member.is_dir() for member in members) - len(by_name):
        report.set_aside(path, f"{repeated} files have the name of another in it; of each name the last is read")
    for member in by_name.values():
        try:
            _check_member(member, limits)
        except UnreadableFile as error:
            report.set_aside(f"{path}!{member.filename}", str(error))
        else:
            yield SourceFile(root, path, member.filename, limits, member.header_offset if is_cut else None)


def _list_members(
    stream: BinaryIO, path: str, report: IngestReport, limits: Limits
) -> tuple[list[zipfile.ZipInfo], bool]:
    """The members of an archive, and whether it is cut off: then they are those before the cut."""
    try:
        with zipfile.ZipFile(stream) as archive:
            return archive.infolist(), False
    except DAMAGE_ERRORS as error:
        members = [*itertools.islice(members_of_cut(stream, limits.ratio), limits.members)]
        kept = f"; the {len(members)} files at its start are read" if members else ""
        report.set_aside(path, f"damaged archive, perhaps cut off while it was copied ({error}){kept}")
        return members, True


def _open_plain(file: SourceFile) -> io.BufferedReader:
    """Opens the file on disk. Its folder is checked after resolving links; the file must not be a link."""
    root, parts = file.root, PurePosixPath(file.path)
    if parts.is_absolute() or ".." in parts.parts:
        raise UnreadableFile("its path leaves the source folder")
    full = root / parts
    try:
        if not full.parent.resolve().is_relative_to(root.resolve()):
            raise UnreadableFile("its path leaves the source folder through a link")
        # O_NONBLOCK: opening a named pipe must not wait for a writer.
        descriptor = os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        message = (
            "a symbolic link; links are not followed" if full.is_symlink() else f"cannot be read ({error.strerror})"
        )
        raise UnreadableFile(message) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UnreadableFile("not a plain file")
    if status.st_size > file.limits.file_bytes:
        os.close(descriptor)
        size, limit = status.st_size // MIB, file.limits.file_bytes // MIB
        raise UnreadableFile(f"{size} MiB, limit {limit} MiB: if the file is correct, raise --max-file-mib")
    return os.fdopen(descriptor, "rb")


def _check_member(member: zipfile.ZipInfo, limits: Limits) -> None:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
        raise UnreadableFile("its path leaves the archive")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UnreadableFile("a symbolic link inside an archive")
    if member.flag_bits & 1:
        raise UnreadableFile("encrypted: unpack it with its password first")
    if name.suffix.lower() == ".zip":
        raise UnreadableFile("an archive inside an archive: unpack the outer one first")
    ratio = member.file_size / max(member.compress_size, 1)
    if member.file_size > limits.file_bytes or (member.file_size > 64 * MIB and ratio > limits.ratio):
        raise UnreadableFile(
            f"would unfold to {member.file_size // MIB} MiB, {ratio:.0f} times its packed size; limits are "
            f"{limits.file_bytes // MIB} MiB (--max-file-mib) and {limits.ratio:.0f} times"
        )
