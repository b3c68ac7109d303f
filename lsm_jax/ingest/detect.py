"""Which format the files of a source have, where the user does not say.

The module of a format has a function `looks_like(files) -> Evidence | None`. It is given all files of the source, and
should decide by names and suffixes first and by the first bytes of few files (`files.opening.first_bytes`,
`tables.header.header_names`). It never raises for a damaged file. Any table fits the format "table", which is therefore
never detected.
"""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from lsm_jax.errors import UserError
from lsm_jax.ingest.files.listing import source_files
from lsm_jax.ingest.files.source import DEFAULT_LIMITS, Limits, SourceFile
from lsm_jax.ingest.formats import FORMATS
from lsm_jax.ingest.reader import Evidence, LooksLike
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.tables.header import TABLE_SUFFIXES, header_names

_MAX_COLUMNS_SHOWN = 8


def detect_format(source: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[str, Evidence]:
    """The one format of a source.

    Raises:
      UserError: several formats, which the message lists with their files, or none.
    """
    files = list(source_files(source, IngestReport(), limits))
    found = dict(_evidence(files))
    if len(found) == 1:
        return next(iter(found.items()))
    if not found:
        raise UserError(f"{source}: {_contents(files)} No format recognises them. {_ADVICE}")
    raise UserError(
        f"{source} holds files of {len(found)} formats. Choose one with --format, or point --source at its files:\n"
        + "\n".join(f"  --format {name}: {describe(evidence)}" for name, evidence in found.items())
    )


def describe(evidence: Evidence) -> str:
    """The evidence as a phrase: "Apple Health export (1 file: export.zip!apple_health_export/export.xml)"."""
    count = len(evidence.files)
    return f"{evidence.title} ({count} file{'s, such as' if count > 1 else ':'} {evidence.files[0].label})"


_ADVICE = (
    f"Formats: {', '.join(sorted(FORMATS))} (--format). Any table of values can be read with --format table and a "
    "mapping file that says what its columns mean: start from one of configs/ingest."
)


def _evidence(files: Sequence[SourceFile]) -> Iterator[tuple[str, Evidence]]:
    for name, reader in FORMATS.items():
        if name != "table":
            looks_like: LooksLike = pkgutil.resolve_name(f"{reader.partition(':')[0]}:looks_like")
            if evidence := looks_like(files):
                yield name, evidence


def _contents(files: Sequence[SourceFile]) -> str:
    """A sentence about files that no format recognises, with the columns of the first table."""
    if not files:
        return "no readable file."
    suffixes = Counter(PurePosixPath(file.name).suffix.lower() or "no suffix" for file in files)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(6))
    for file in files:
        names = header_names(file) if file.name.lower().endswith(TABLE_SUFFIXES) else ()
        if names:
            columns = ", ".join(names[:_MAX_COLUMNS_SHOWN]) + (", ..." if len(names) > _MAX_COLUMNS_SHOWN else "")
            return f"{len(files)} files ({kinds}); {file.label} has the columns {columns}."
    return f"{len(files)} files ({kinds})."
