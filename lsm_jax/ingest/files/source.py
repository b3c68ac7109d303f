"""A file of a source, and the sizes above which it is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes above which input is refused."""

    file_bytes: int = 8192 * MIB  # of a file, or of an unpacked archive member
    ratio: float = 500.0  # unpacked over packed size of an archive member above 64 MiB (deflate reaches 1032)
    members: int = 200_000  # files in one archive
    line_bytes: int = MIB  # of one line of text
    workbook_bytes: int = 512 * MIB  # of an unpacked Excel workbook, which is parsed whole
    files: int = 1_000_000  # in a source folder


DEFAULT_LIMITS = Limits()


class UnreadableFile(Exception):
    """A file that cannot be used; the message says why. Readers report it and go on with the next file."""


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
