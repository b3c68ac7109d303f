"""`lsm ingest`: real exports to a dataset of day windows, with a report of every row."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsm_jax.errors import UserError

if TYPE_CHECKING:
    from lsm_jax.data.card import DatasetSummary
    from lsm_jax.ingest.base import Reader
    from lsm_jax.ingest.report import IngestReport

HELP = "turn real exports into a dataset; bad rows are counted, set aside and reported"
TIME_ZONE_HELP = (
    "IANA zone where it was worn: cuts the days, and reads wall-clock times without an offset (default UTC)"
)
EXAMPLE = "lsm ingest --format table --mapping configs/ingest/nhanes_accel.toml --source nhanes/ --out data/nhanes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", required=True, help="fitbit, empatica or table")
    parser.add_argument("--source", required=True, type=Path, help="folder (or file) of the export")
    parser.add_argument("--out", required=True, type=Path, help="folder of the dataset to write")
    parser.add_argument("--mapping", type=Path, help="TOML file that describes the columns (format table)")
    parser.add_argument("--time-zone", help=TIME_ZONE_HELP)
    parser.add_argument("--name", help="name of the dataset (default: from --out)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split by participant (default 0)")
    parser.add_argument("--salt", help="key of the pseudonyms (default: a random one, kept in OUT.salt beside OUT)")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset in OUT")
    parser.add_argument("--max-file-mib", type=int, default=8192, help="refuse larger files (default 8192)")
    parser.add_argument("--beam", action="store_true", help="read people on Apache Beam (extra 'beam')")
    parser.add_argument("--beam-option", action="append", default=[], help="option for Beam, such as --runner=...")


def run(args: argparse.Namespace) -> int:
    from lsm_jax.ingest.base import ReaderOptions, reader
    from lsm_jax.ingest.files import MIB, Limits
    from lsm_jax.ingest.report import IngestReport

    started = time.perf_counter()
    if args.max_file_mib < 1:
        raise UserError(f"--max-file-mib is {args.max_file_mib}, must be at least 1.")
    source = args.source.resolve()  # workers may run in another folder
    if source.is_dir() and args.out.resolve().is_relative_to(source):
        raise UserError(f"--out {args.out} lies inside --source {args.source}: what is written would be read again.")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = IngestReport()
    with tempfile.TemporaryDirectory(prefix=f".{args.out.name}.ingest-", dir=args.out.parent) as scratch:
        limits = Limits(file_bytes=args.max_file_mib * MIB)
        people = reader(args.format, ReaderOptions(args.time_zone, args.mapping, Path(scratch).resolve(), limits))
        channels = people.channels(source)
        try:
            write = _write_on_beam if args.beam else _write
            summary = write(args, people, source, channels, report, Path(scratch))
        except UserError:
            _print(report, args.out)
            raise
    seconds = time.perf_counter() - started
    report.write(args.out / "ingest_report.json", seconds=round(seconds, 2), format=args.format)
    _print(report, args.out)
    print(f"{summary.path}: {report.days} days of {report.people} people in {seconds:.1f} s")
    return 0


def _write(
    args: argparse.Namespace, people: Reader, source: Path, channels: tuple[str, ...], report: IngestReport, _: Path
) -> DatasetSummary:
    """One person after another, in this process."""
    from lsm_jax.data.store import write_dataset
    from lsm_jax.ingest.pipeline import source_windows

    windows = source_windows(people, source, channels, args.salt or _kept_salt(args.out), report)
    with _progress(report) as progress:
        return write_dataset(args.out, progress=progress, channels=channels, windows=windows, **_about(args))


def _write_on_beam(
    args: argparse.Namespace,
    people: Reader,
    source: Path,
    channels: tuple[str, ...],
    report: IngestReport,
    scratch: Path,
) -> DatasetSummary:
    """The same people on the workers of a Beam runner."""
    try:
        from lsm_jax.data.beam import write_dataset_on_beam
        from lsm_jax.ingest.beam import windows_and_report
    except ImportError as error:
        raise UserError(f"--beam needs Apache Beam ({error}): pip install -e '.[beam]' in the checkout.") from None
    salt, report_file = args.salt or _kept_salt(args.out), scratch.resolve() / "report.json"
    keys = list(people.people(source, report))
    if not keys:
        raise UserError(f"{source} holds no person this reader can read; the report above says why.")
    summary = write_dataset_on_beam(
        args.out,
        windows=lambda pipeline: windows_and_report(pipeline, people, source, keys, channels, salt, report_file),
        channels=channels,
        options=args.beam_option,
        **_about(args),
    )
    report.merge(type(report).from_json(json.loads(report_file.read_text(encoding="utf-8"))))
    return summary


def _about(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": args.name or _name(args.out),
        "seed": args.seed,
        "description": f"lsm ingest --format {args.format}",
        "overwrite": args.overwrite,
    }


def _kept_salt(out: Path) -> str:
    """A random key, made once and kept beside the dataset, readable by its owner only.

    Not inside: whoever is given the dataset must not be able to try ids against the pseudonyms. Kept, so that
    ingesting again gives a person the same pseudonym and the same split.
    """
    path = out.parent / f"{out.name}.salt"
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(16) + "\n")
    salt = path.read_text(encoding="utf-8").strip()
    if not salt:
        raise UserError(f"{path} is empty: it should hold the salt of the pseudonyms. Remove it, or give --salt.")
    return salt


def _name(out: Path) -> str:
    """A dataset name made from the folder's."""
    name = re.sub(r"[^a-z0-9_]+", "_", out.name.lower()).strip("_")
    return name if name[:1].isalpha() else f"dataset_{name}"


@contextlib.contextmanager
def _progress(report: IngestReport) -> Iterator[Callable[[int], None]]:
    """A line that counts while rows are sorted and days are written."""
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TimeElapsedColumn
    from rich.text import Text

    class Counts(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(
                f"{report.rows_read:,} rows read, {report.rows_quarantined:,} set aside, {report.people:,} people, "
                f"{int(task.completed):,} days written"
            )

    with Progress(SpinnerColumn(), Counts(), TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("ingest", total=None)
        yield lambda count: bar.update(task, completed=count)


def _print(report: IngestReport, out: Path) -> None:
    """The report for people: what was read, and everything that was not used."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"ingest into {out}", title_justify="left")
    for heading in ("channel", "observed cells", "missing", "implausible", "invalid", "duplicates", "overlaps"):
        table.add_column(heading, justify="left" if heading == "channel" else "right")
    for name, share in report.missing_share().items():
        counts = (report.implausible, report.invalid, report.duplicates, report.overlaps)
        table.add_row(
            name, f"{report.observed_cells[name]:,}", f"{share:.1%}", *(f"{count[name]:,}" for count in counts)
        )
    console.print(table)
    ignored = f", {report.rows_ignored:,} not asked for" if report.rows_ignored else ""
    print(f"rows: {report.rows_read:,} read, {report.rows_kept:,} kept, {report.rows_quarantined:,} set aside{ignored}")
    print(f"people: {report.people}, without data {report.people_without_data}; days: {report.days}, "
          f"without data {report.days_without_data}; not worn: {report.not_worn_minutes:,} minutes")  # fmt: skip
    for reason, entry in report.quarantined.items():
        print(f"  {entry.rows:,} rows: {reason} ({', '.join(entry.samples[:3])})")
    for channel, entry in report.damaged_cells.items():
        print(f"  {entry.rows:,} cells of {channel} are no numbers ({', '.join(entry.samples[:3])})")
    for sentence in (*report.files_set_aside, *report.notes):
        print(f"  {sentence}")
    if report.files_ignored:
        print(f"  {len(report.files_ignored)} files are nothing this reader reads; ingest_report.json names them")
