"""Lists the files of a source and the members of its zip archives; those that cannot be read are set aside."""

from __future__ import annotations

import itertools
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lsm_jax.errors import UserError
from lsm_jax.ingest.files.cut_archives import members_of_cut
from lsm_jax.ingest.files.opening import DAMAGE_ERRORS, check_member, open_plain
from lsm_jax.ingest.files.source import DEFAULT_LIMITS, Limits, SourceFile, UnreadableFile
from lsm_jax.ingest.report import IngestReport


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
        with open_plain(SourceFile(root, path, limits=limits)) as stream:
            if not path.lower().endswith(".zip"):
                yield SourceFile(root, path, limits=limits)
                return
            members, is_cut = _list_members(stream, path, report, limits)
    except UnreadableFile as error:
        report.set_aside(path, str(error))
        return
    if len(members) > limits.members:
        report.set_aside(path, f"archive of {len(members):,} files, limit {limits.members:,}: unpack it into a folder")
        return
    by_name = {member.filename: member for member in members if not member.is_dir()}
    if repeated := sum(not member.is_dir() for member in members) - len(by_name):
        report.set_aside(path, f"{repeated} files have the name of another in it; of each name the last is read")
    for member in by_name.values():
        try:
            check_member(member, limits)
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
