"""Streams the elements of an Apple Health export in bounded memory, past places where the XML is damaged.

Exports reach gigabytes and are not always well-formed: some versions of iOS write a broken document type, or an
attribute twice, and downloads are cut. The document type never reaches the parser, so a file can declare no entities.
After a damaged place, reading goes on at the next line that starts an element, which is how Apple writes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple
from xml.parsers import expat

from lsm_jax.ingest.files.opening import LimitedStream, first_bytes, open_file
from lsm_jax.ingest.files.source import SourceFile, UnreadableFile

_CHUNK_BYTES = 1 << 18
_PROLOGUE_BYTES = 1 << 20
_MAX_DEPTH = 32
_MAX_DAMAGED_PLACES = 10_000
_ROOT = re.compile(rb"<HealthData(\s[^<>]*)?>")
_NEXT = re.compile(rb"\n[ \t]*(?=<(Record|Workout|Correlation|ActivitySummary|ClinicalRecord|Audiogram)\s)")
_NAMES = re.compile(rb'="(HK[A-Za-z]{1,100})"')
_OVERLAP = 256  # bytes at the end of a chunk that may hold the start of a match


class Element(NamedTuple):
    """A child of the export's root, without its own children."""

    name: str  # "Record", "Workout", "Me", ...
    attributes: dict[str, str]
    line: int


def is_export(file: SourceFile) -> bool:
    """Whether a file starts as an export does. Its name is translated: export.xml, exportar.xml."""
    return file.name.lower().endswith(".xml") and bool(re.search(rb"<(!DOCTYPE )?HealthData\b", first_bytes(file)))


def names_in(file: SourceFile) -> set[str]:
    """The types and categories that occur in an export, found without parsing it."""
    found: set[bytes] = set()
    rest = b""
    try:
        with open_file(file) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                found.update(_NAMES.findall(rest + chunk))
                rest = chunk[-_OVERLAP:]
    except UnreadableFile:
        pass  # what comes before the damage is read
    return {name.decode() for name in found}


class Export:
    """One export, which is read once. After `elements`, `damage` and `end` tell what could not be read."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._parser: _Parser | None = None  # None after a damaged place, until the next element
        self._refusal = ""
        self._line = 1  # of the first byte that no parser has been given
        self.damage: list[tuple[int, str]] = []  # (line, what is wrong with the XML) of one element each
        self.end = ""  # why reading stopped before the end of the export; "" if it did not

    def elements(self) -> Iterator[list[Element]]:
        """The children of the root in the order of the file, in short lists.

        Raises:
          UnreadableFile: not an export, or one that is made to exhaust memory.
        """
        with open_file(self._file) as stream:
            chunk = self._after_prologue(stream)
            rest, quiet = b"", 0
            while chunk:
                found, rest = self._parse(rest + chunk)
                yield found
                quiet = 0 if found else quiet + len(chunk)
                if quiet > self._file.limits.line_bytes:
                    raise UnreadableFile("a megabyte without an element: not an Apple Health export")
                if self._refusal:
                    raise UnreadableFile(self._refusal)
                try:
                    chunk = stream.read(_CHUNK_BYTES)
                except UnreadableFile as error:
                    chunk, self.end = b"", str(error)
        if self._parser and self._parser.depth and not self.end:
            self.end = "cut off"
        if self.end:
            line = self._parser.line if self._parser else self._line
            self.end = f"damaged at line {line}, what comes before it is kept ({self.end})"

    def _after_prologue(self, stream: LimitedStream) -> bytes:
        """The content after the root's tag; starts the parser."""
        content = b""
        while not (root := _ROOT.search(content)):
            chunk = stream.read(_CHUNK_BYTES)
            content += chunk
            if not chunk or len(content) > _PROLOGUE_BYTES:
                raise UnreadableFile("no element HealthData: not an Apple Health export")
        if b"<!ENTITY" in content[: root.start()]:
            raise UnreadableFile("declares XML entities, which no Apple Health export does")
        self._parser = _Parser(content.count(b"\n", 0, root.end()) + 1)
        return content[root.end() :] or b"\n"

    def _parse(self, content: bytes) -> tuple[list[Element], bytes]:
        """The elements that start in `content`, and its end where that must be looked at with the next chunk."""
        found: list[Element] = []
        while content:
            if self._parser is None:
                start = _NEXT.search(content)
                end = start.end() if start else max(len(content) - _OVERLAP, 0)
                self._line += content.count(b"\n", 0, end)
                content = content[end:]
                if start is None:
                    return found, content
                self._parser = _Parser(self._line)
            damage = self._parser.feed(content)
            found += self._parser.found
            self._parser.found.clear()
            if damage is None:
                return found, b""
            self._line, content = damage.line, content[damage.offset :]
            self._parser = _Parser(self._line) if damage.is_element else None
            self.damage.append((damage.line, damage.reason))
            if len(self.damage) > _MAX_DAMAGED_PLACES:
                self._refusal = f"damaged XML in more than {_MAX_DAMAGED_PLACES} places"
            if damage.is_hostile:
                self._refusal = damage.reason
            if self._refusal:
                break
        return found, b""


class _Damage(Exception):
    """A place after which the parser cannot go on.

    Attributes:
      line: of the file; offset: in the bytes that the parser was given last.
      is_element: whether a new element starts there.
      is_hostile: whether the rest of the file should not be read at all.
    """

    def __init__(self, reason: str, line: int, offset: int, is_element: bool = False, is_hostile: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.line, self.offset = reason, line, max(offset, 0)
        self.is_element, self.is_hostile = is_element, is_hostile


class _Parser:
    """Parses one undamaged stretch of the export as the content of a root element."""

    def __init__(self, first_line: int) -> None:
        self.found: list[Element] = []
        self.depth, self._parent = 0, ""
        self._lines_before, self._bytes_before = first_line - 1, 0
        self._parser = expat.ParserCreate("UTF-8")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self.feed(b"<HealthData>")

    @property
    def line(self) -> int:
        return self._lines_before + self._parser.CurrentLineNumber

    def feed(self, content: bytes) -> _Damage | None:
        """Parses on. Returns the damage after which this parser cannot be used."""
        try:
            self._parser.Parse(content)
        except expat.ExpatError as error:
            line, offset = self._parser.ErrorLineNumber, self._parser.ErrorByteIndex - self._bytes_before
            return _Damage(expat.ErrorString(error.code), self._lines_before + line, offset)
        except _Damage as damage:
            return damage
        self._bytes_before += len(content)
        return None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.depth == 2:
            self._parent = name
            self.found.append(Element(name, attributes, self.line))
        elif self.depth == 3 and name in ("Record", "Workout") and self._parent != "Correlation":
            raise _Damage("element is not closed", self.line, self._offset(), is_element=True)
        elif self.depth > _MAX_DEPTH:
            reason = f"elements nest deeper than {_MAX_DEPTH}: not an Apple Health export"
            raise _Damage(reason, self.line, self._offset(), is_hostile=True)

    def _end(self, _: str) -> None:
        self.depth -= 1

    def _offset(self) -> int:
        return self._parser.CurrentByteIndex - self._bytes_before
