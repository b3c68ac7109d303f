"""Reads Parquet block by block, and of its columns those that hold numbers, text, flags or instants.

Parquet is read from its end, so packed Parquet is first unpacked into the system's temporary folder (`TMPDIR`).
"""

from __future__ import annotations

import datetime as dt
import functools
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lsm_jax.errors import RunError
from lsm_jax.ingest.cells import unique_names
from lsm_jax.ingest.files.opening import DAMAGE_ERRORS, open_file
from lsm_jax.ingest.files.source import MIB, SourceFile, UnreadableFile
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.clock import ZONES, fixed_offset, zone_name

_BLOCK_BYTES = 8 * MIB
_BLOCK_ROWS = 1 << 18
_TEXT_TYPES = (pl.Categorical, pl.Enum, pl.Binary, pl.Null, pl.Time)  # read as text


def parquet_names(file: SourceFile) -> tuple[str, ...]:
    """The names of the columns; UnreadableFile if it is damaged or no Parquet file."""
    with _open(file) as table:
        return unique_names(table.schema_arrow.names)


def parquet_blocks(file: SourceFile, columns: Sequence[str], report: IngestReport) -> Iterator[pl.DataFrame]:
    """Blocks of rows. A column whose cells are no numbers, text, flags or instants is read as empty, and reported.

    Raises:
      UnreadableFile: it is damaged; the blocks before the damage have been yielded.
    """
    rows = 0
    with _open(file) as table:
        schema = table.schema_arrow
        of_name = {name: place for place, name in enumerate(unique_names(schema.names)) if name in columns}
        readable = {name: place for name, place in of_name.items() if _is_readable(schema.types[place])}
        for name in of_name.keys() - readable.keys():
            kind = str(schema.types[of_name[name]]).partition("<")[0]
            report.lack(f"column {name!r} holds {kind} and is read as empty: write it as numbers or text", file.label)
        if not readable:
            raise UnreadableFile("none of its columns holds numbers, text or instants")
        names = list(dict.fromkeys(schema.names[place] for place in readable.values()))
        # A batch has every column of a name, one name after the other.
        order = [place for wanted in names for place, name in enumerate(schema.names) if name == wanted]
        empty = [pl.lit(None, pl.String).alias(name) for name in of_name if name not in readable]
        try:
            for batch in table.iter_batches(_BLOCK_ROWS, columns=names):
                cells = {name: _series(batch.column(order.index(place))) for name, place in readable.items()}
                frame = pl.DataFrame(cells).with_columns(empty)
                yield frame.select(list(of_name))
                rows += len(frame)
        except (pa.ArrowException, *DAMAGE_ERRORS) as error:
            raise UnreadableFile(f"damaged after row {rows}, what comes before it is kept ({error})") from error


def _is_readable(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _is_readable(kind.value_type)
    if types.is_timestamp(kind) and kind.tz and not zone_name(kind.tz):
        return False  # a zone that does not exist
    others = (types.is_null, types.is_boolean, types.is_decimal, types.is_timestamp, types.is_date, types.is_time)
    text = (types.is_string, types.is_large_string, types.is_string_view)
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in (types.is_integer, types.is_floating, *others, *text, *binary))


def _series(cells: pa.Array) -> pl.Series:
    """The cells in the type that the readers work on."""
    if pa.types.is_dictionary(cells.type):
        cells = cells.dictionary_decode()
    if pa.types.is_decimal(cells.type):
        cells = cells.cast(pa.float64())  # Polars has no decimals above 128 bits
    if pa.types.is_timestamp(cells.type) and cells.type.tz and cells.type.tz not in ZONES:
        return _with_offset(cells)
    series = pl.Series(pl.from_arrow(cells))
    if series.dtype == pl.Binary:
        decoded = [None if cell is None else cell.decode("utf-8", "replace") for cell in series]
        return pl.Series(decoded, dtype=pl.String)
    return series.cast(pl.String) if series.dtype in _TEXT_TYPES else series


def _with_offset(cells: pa.Array) -> pl.Series:
    """Instants of a zone that is a bare offset, which polars does not know, as text with the offset."""
    name = zone_name(cells.type.tz) or "UTC"
    instants = pl.Series(pl.from_arrow(cells.cast(pa.timestamp(cells.type.unit, "UTC"))))
    wall = instants + dt.timedelta(minutes=fixed_offset(name) or 0)
    return wall.dt.strftime("@%Y-%m-%dT%H:%M:%S%.f") + (name if name != "UTC" else "+00:00")


def _open(file: SourceFile) -> pq.ParquetFile:
    try:
        if file.member or file.is_gzip:
            status = (file.root / file.path).lstat()
            return pq.ParquetFile(_unpack(file, status.st_mtime_ns, status.st_size).name)
        with open_file(file):
            return pq.ParquetFile(file.root / file.path)
    except (pa.ArrowException, *DAMAGE_ERRORS) as error:
        message = str(error) or type(error).__name__
        raise UnreadableFile(f"not a readable Parquet file ({message.splitlines()[0]})") from error


@functools.lru_cache(maxsize=1)  # the header and the rows of a file are read one after the other
def _unpack(file: SourceFile, *_version: int) -> IO[bytes]:
    """The unpacked file. It is removed when the next one replaces it in the cache, or at the end."""
    unpacked = tempfile.NamedTemporaryFile(prefix="lsm_jax-", suffix=".parquet")  # noqa: SIM115
    with open_file(file) as stream:
        while piece := stream.read(_BLOCK_BYTES):
            try:
                unpacked.write(piece)
                unpacked.flush()
            except OSError as error:
                raise RunError(
                    f"{file.label} cannot be unpacked into {tempfile.gettempdir()}: {error.strerror}. The environment "
                    "variable TMPDIR names another folder."
                ) from error
    return unpacked
