"""Opens untrusted files: inside the source folder, of limited size, read in blocks.

Everything a reader opens comes through here. Symbolic links, devices and paths that leave the source folder are
refused. Sizes are limited, also after unpacking. A damaged file is set aside and the next one is read.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import lzma
import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from lsm_jax.ingest.files.cut_archives import open_member
from lsm_jax.ingest.files.source import MIB, Limits, SourceFile, UnreadableFile

Stream = io.BufferedReader | gzip.GzipFile | zipfile.ZipExtFile
# What reading a damaged or hostile archive can raise.
DAMAGE_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, RuntimeError, ValueError
)  # fmt: skip


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


@contextlib.contextmanager
def open_file(file: SourceFile) -> Iterator[LimitedStream]:
    """The unpacked file as a stream of bytes.

    Raises:
      UnreadableFile: a link, a path that leaves the source folder, not a plain file, too large, damaged.
    """
    with contextlib.ExitStack() as stack:
        try:
            stream = _open_member(file, stack) if file.member else stack.enter_context(open_plain(file))
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
        return stack.enter_context(open_member(stack.enter_context(open_plain(file)), file.header_offset))
    archive = stack.enter_context(_open_archive(file))
    member = archive.getinfo(file.member)
    check_member(member, file.limits)
    return cast(zipfile.ZipExtFile, stack.enter_context(archive.open(member)))


_idle_archives: dict[tuple[object, ...], zipfile.ZipFile] = {}  # at most one
_idle_lock = threading.Lock()


@contextlib.contextmanager
def _open_archive(file: SourceFile) -> Iterator[zipfile.ZipFile]:
    """The zip that holds a member. The last one stays open, since exports have thousands of members in one directory.

    Raises:
      UnreadableFile, DAMAGE_ERRORS: it cannot be opened.
    """
    plain = open_plain(file)
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
                check_member(member, file.limits)
            size = sum(member.file_size for member in archive.infolist())
            if size > limit:
                raise UnreadableFile(f"workbook unfolds to {size // MIB} MiB, limit {limit // MIB} MiB")
            damaged = archive.testzip()
    except DAMAGE_ERRORS as error:
        raise UnreadableFile(f"not a readable Excel workbook ({error})") from error
    if damaged:
        raise UnreadableFile(f"damaged workbook (checksum of {damaged})")
    return content


def open_plain(file: SourceFile) -> io.BufferedReader:
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


def check_member(member: zipfile.ZipInfo, limits: Limits) -> None:
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
