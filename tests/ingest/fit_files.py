"""Writes small FIT files, by the protocol that Garmin publishes, so that tests need no recording of anybody."""

from __future__ import annotations

import struct
from collections.abc import Sequence

FIT_EPOCH = 631065600
# Numbers of messages and of their fields with the code of `struct`.
FILE_ID, SESSION, RECORD, ACTIVITY, MONITORING, MONITORING_INFO = 0, 18, 20, 34, 55, 103
HEART_RATES, STRESS, SPO2, SLEEP, RESPIRATION, HRV_STATUS, HRV = 211, 227, 269, 275, 297, 370, 371
TIMESTAMP = (253, "I")
WALKING, RUNNING, SEDENTARY = 6, 1, 8
_BASE_TYPES = {"B": 0x02, "b": 0x01, "H": 0x84, "h": 0x83, "I": 0x86, "enum": 0x00}
_CRC = [0x0000, 0xCC01, 0xD801, 0x1400, 0xF001, 0x3C00, 0x2800, 0xE401]
_CRC += [0xA001, 0x6C00, 0x7800, 0xB401, 0x5000, 0x9C01, 0x8801, 0x4400]

Field = tuple[int, str]  # number, and the code of its type
Message = tuple[int, dict[Field, int]]


def crc(content: bytes) -> int:
    value = 0
    for byte in content:
        for nibble in (byte & 0xF, byte >> 4):
            value = (value >> 4) ^ _CRC[value & 0xF] ^ _CRC[nibble]
    return value


def definition(local: int, number: int, fields: Sequence[Field]) -> bytes:
    kinds = (bytes((name, struct.calcsize(_code(code)), _BASE_TYPES[code])) for name, code in fields)
    return struct.pack("<BBBHB", 0x40 | local, 0, 0, number, len(fields)) + b"".join(kinds)


def data(header: int, fields: dict[Field, int]) -> bytes:
    values = (struct.pack("<" + _code(code), value) for (_, code), value in fields.items())
    return bytes((header,)) + b"".join(values)


def _code(code: str) -> str:
    return "B" if code == "enum" else code


def with_frame(body: bytes) -> bytes:
    """The body with its header and its checksum."""
    header = struct.pack("<BBHI4s", 14, 0x20, 2140, len(body), b".FIT")
    content = header + struct.pack("<H", crc(header)) + body
    return content + struct.pack("<H", crc(content))


def fit_file(*messages: Message, serial: int = 7) -> bytes:
    """A file of these messages, each after its own definition."""
    first: Message = (FILE_ID, {(1, "H"): 1, (3, "I"): serial})
    parts = (definition(0, number, [*fields]) + data(0, fields) for number, fields in (first, *messages))
    return with_frame(b"".join(parts))
