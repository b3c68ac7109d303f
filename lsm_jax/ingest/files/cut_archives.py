"""Zip archives without their table of contents, which is at the end: an archive that was cut off has none.

Each member has a header of its own before its bytes, and is found by it.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

MIB = 1 << 20
_HEADER = struct.Struct("<4s5H3I2H")
_HEADER_MARK = b"PK\x03\x04"
_SIZE_FOLLOWS, _NAME_IS_UTF8 = 1 << 3, 1 << 11  # flags
_UNKNOWN = 1 << 62  # a size that stands behind the bytes
_LONGEST_DESCRIPTOR = 24  # bytes of the sizes behind a member


def members_of_cut(stream: BinaryIO, ratio: float) -> Iterator[zipfile.ZipInfo]:
    """The members up to the cut, the last of which may be cut too. `header_offset` says where each is.

    Args:
      ratio: unpacked over packed size above which a member is a bomb; nothing is read behind it.
    """
    offset: int | None = 0
    while offset is not None:
        stream.seek(offset)
        member = _read_header(stream)
        if member is None:
            return
        end: int | None = stream.tell() + member.compress_size
        if member.compress_size == _UNKNOWN:
            end = _unpacked_end(stream, ratio)
        offset = None if end is None else _next_header(stream, end)
        yield member


def open_member(stream: BinaryIO, header_offset: int) -> zipfile.ZipExtFile:
    """The unpacked bytes of one of `members_of_cut`; KeyError where none has its header."""
    stream.seek(header_offset)
    member = _read_header(stream)
    if member is None:
        raise KeyError(header_offset)
    if member.compress_size == _UNKNOWN:
        member.file_size = _UNKNOWN
    return zipfile.ZipExtFile(stream, "r", member)


def _read_header(stream: BinaryIO) -> zipfile.ZipInfo | None:
    """The member whose header is here; the stream is then at its bytes."""
    offset, head = stream.tell(), stream.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_HEADER_MARK):
        return None
    _, _, flags, method, _, _, checksum, packed, unpacked, name_bytes, extra_bytes = _HEADER.unpack(head)
    name = stream.read(name_bytes)
    stream.seek(extra_bytes, os.SEEK_CUR)
    if len(name) < name_bytes:
        return None
    try:
        member = zipfile.ZipInfo(name.decode("utf-8" if flags & _NAME_IS_UTF8 else "cp437"))
    except UnicodeDecodeError:
        return None
    member.header_offset, member.flag_bits, member.compress_type = offset, flags, method
    member.compress_size, member.file_size, member.CRC = packed, unpacked, checksum
    if flags & _SIZE_FOLLOWS and member.is_dir():
        member.compress_size = member.file_size = member.CRC = 0
    elif flags & _SIZE_FOLLOWS or 0xFFFFFFFF in (packed, unpacked):
        if method != zipfile.ZIP_DEFLATED:
            return None  # only deflate tells its own end
        member.compress_size, member.file_size = _UNKNOWN, 0
        del member.CRC
    return member


def _unpacked_end(stream: BinaryIO, ratio: float) -> int | None:
    """Unpacks a member to find its end; None where there is none."""
    unpacker, packed, unpacked, piece = zlib.decompressobj(-zlib.MAX_WBITS), 0, 0, b""
    try:
        while not unpacker.eof:
            piece = unpacker.unconsumed_tail or stream.read(MIB)
            if not piece:
                return None
            unpacked += len(unpacker.decompress(piece, MIB))
            packed += len(piece) - len(unpacker.unconsumed_tail)
            if unpacked > 64 * MIB and unpacked > ratio * packed:
                return None
    except zlib.error:
        return None
    return stream.tell() - len(unpacker.unused_data)


def _next_header(stream: BinaryIO, end: int) -> int | None:
    """Where the next member's header is, behind the sizes of the last if they stand there."""
    stream.seek(end)
    place = stream.read(_LONGEST_DESCRIPTOR + len(_HEADER_MARK)).find(_HEADER_MARK)
    return end + place if place >= 0 else None
