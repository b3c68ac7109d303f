"""`lsm ingest`: real exports to a dataset of day windows, with a report of every row."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lsm_jax.cli.options import check_needed, whole_number
from lsm_jax.cli.places import data_folder, local_path, output_dataset
from lsm_jax.errors import RunError, UserError

if TYPE_CHECKING:
    from lsm_jax.ingest.files.source import Limits
    from lsm_jax.ingest.reader import Reader
    from lsm_jax.ingest.report import IngestReport

HELP = "turn real exports into a dataset; bad rows are counted, set aside and reported"
EXAMPLE = "lsm ingest --format table --mapping configs/ingest/nhanes_accel.toml --source nhanes/ --out data/nhanes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = "actigraph, apple, empatica, fit, fitbit, glucose, oura, takeout, withings or table"
    parser.add_argument("--format", help=f"{known} (default: what the files show)")
    parser.add_argument("--source", required=True, type=data_folder, help="folder (or file) of the export")
    parser.add_argument("--out", type=output_dataset, help="folder of the dataset to write")
    shown = "read everything, show people, files, days, events and what would be set aside, and write nothing"
    parser.add_argument("--dry-run", action="store_true", help=shown)
    meaning = "TOML file that says what the columns of tables mean; for other formats, those of events and labels"
    parser.add_argument("--mapping", type=local_path, help=meaning)
    zone = "IANA zone where it was worn: cuts the days, reads wall-clock times (default: as the files say, or UTC)"
    parser.add_argument("--time-zone", help=zone)
    who = "who a file belongs to: a path with {person} in it, such as '*/{person}', or one id for all files"
    parser.add_argument("--person", help=f"{who} (formats that find people by folders)")
    order = "what comes first in dates such as 04/12/2016, for files that do not tell"
    parser.add_argument("--date-order", choices=("day", "month"), help=order)
    prefer = "source that comes before the others of a signal, by a part of its name; the best first (apple, takeout)"
    parser.add_argument("--prefer", action="append", default=[], metavar="SOURCE", help=prefer)
    parser.add_argument("--name", help="name of the dataset (default: from --out)")
    parser.add_argument("--seed", type=whole_number, default=0, help="seed of the split by participant (default 0)")
    parser.add_argument("--salt", help="key of the pseudonyms (default: a random one, kept in OUT.salt beside OUT)")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset in OUT")
    parser.add_argument("--max-file-mib", type=int, default=8192, help="refuse larger files (default 8192)")
    parser.add_argument("--beam", action="store_true", help="read people on Apache Beam (extra 'beam')")
    parser.add_argument("--beam-option", action="append", help="option for Beam, such as --runner=...")


def run(args: argparse.Namespace) -> int:
    from lsm_jax.data.store import write_dataset
    from lsm_jax.ingest import pipeline
    from lsm_jax.ingest.report import IngestReport

    started = time.perf_counter()
    if args.max_file_mib < 1:
        raise UserError(f"--max-file-mib is {args.max_file_mib}, must be at least 1.")
    check_needed(args, "beam", ["beam_option"])
    source = args.source.resolve()  # Beam workers may run in another folder
    if args.out is None and not args.dry_run:
        raise UserError("give --out, the folder of the dataset to write, or --dry-run to see what is there.")
    if args.out and source.is_dir() and args.out.resolve().is_relative_to(source):
        raise UserError(f"--out {args.out} lies inside --source {args.source}: what is written would be read again.")
    if "out" in args.urls and not args.salt:
        raise UserError(
            f"--out {args.urls['out']}: give --salt, the key of the pseudonyms. The file OUT.salt that would keep a "
            "random one must not lie beside the data in a store."
        )
    if args.dry_run:
        return _dry_run(args, source)
    report = IngestReport()
    with _writing(args.out), _scratch(args.out) as folder:
        scratch = Path(folder).resolve()
        reader, file_format = _reader(args, source, scratch)
        settings = {
            "name": args.name or pipeline.dataset_name(args.out),
            "channels": reader.channels(source),
            "seed": args.seed,
            "description": f"lsm ingest --format {file_format}",
            "overwrite": args.overwrite,
        }
        people = pipeline.People(reader, source, settings["channels"], args.salt or pipeline.pseudonym_salt(args.out))
        try:
            if args.beam:
                write_on_beam = _beam_writer()
                windows = people.beam_windows(report, scratch / "report.json")
                write_on_beam(args.out, windows=windows, options=args.beam_option or [], **settings)
                report.merge(IngestReport.read(scratch / "report.json"))
            else:
                with _progress(report) as progress:
                    write_dataset(args.out, windows=people.windows(report), progress=progress, **settings)
        finally:
            _print(report, f"ingest into {args.urls.get('out', args.out)}")
        seconds = time.perf_counter() - started
        report.write(args.out / "ingest_report.json", seconds=round(seconds, 2), format=file_format)
    print(f"{args.urls.get('out', args.out)}: {report.days} days of {report.people} people in {seconds:.1f} s")
    return 0


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """RunError where the output cannot be written. SIGTERM stops as Ctrl-C does, so that temporary folders go."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    except OSError as error:
        fact = error.strerror or str(error)
        raise RunError(f"{error.filename or out} cannot be written: {fact}. No dataset was written.") from error
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[str]:
    """A temporary folder beside the output."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.ingest-", dir=out.parent) as folder:
        yield folder


def _reader(args: argparse.Namespace, source: Path, scratch: Path) -> tuple[Reader, str]:
    """The reader and its format."""
    from lsm_jax.ingest.files.source import MIB, Limits
    from lsm_jax.ingest.formats import make_reader
    from lsm_jax.ingest.people.rules import people_rule
    from lsm_jax.ingest.reader import ReaderOptions

    limits = Limits(file_bytes=args.max_file_mib * MIB)
    file_format = args.format or _detected(source, args.mapping, limits)
    people, prefer = people_rule(args.person), tuple(args.prefer)
    options = ReaderOptions(args.time_zone, args.mapping, scratch, limits, args.date_order, people, prefer)
    return make_reader(file_format, options), file_format


def _dry_run(args: argparse.Namespace, source: Path) -> int:
    """Shows what ingest would write; UserError where it would refuse."""
    from lsm_jax.cli.ingest_preview import print_preview, print_spellings
    from lsm_jax.data.store import check_output
    from lsm_jax.ingest import pipeline
    from lsm_jax.ingest.people.roster import AmbiguousPeople
    from lsm_jax.ingest.preview import preview
    from lsm_jax.ingest.report import IngestReport

    report = IngestReport()
    with tempfile.TemporaryDirectory(prefix="lsm-dry-run-") as folder:
        reader, file_format = _reader(args, source, Path(folder).resolve())
        channels = reader.channels(source)
        if args.out is not None:
            check_output(args.out, args.name or pipeline.dataset_name(args.out), channels, args.overwrite)
        try:
            with _progress(report):
                found = preview(pipeline.People(reader, source, channels, salt="of no use"), report)
        except AmbiguousPeople as error:
            print_spellings(error.spellings)
            raise
        except UserError:
            _print(report, f"{source} as {file_format}")
            raise
    print_preview(found)
    _print(report, f"{source} as {file_format}", others="they are in the table of files")
    print("dry run: all rows were read, nothing was written")
    return 0


def _detected(source: Path, mapping: Path | None, limits: Limits) -> str:
    """The format that the files show, which is printed. UserError where they show none or several."""
    from lsm_jax.ingest.detect import describe, detect_format
    from lsm_jax.ingest.mapping.file import describes_tables

    if mapping and describes_tables(mapping):
        print(f"{mapping} describes tables: reading with --format table.")
        return "table"
    name, evidence = detect_format(source, limits)
    print(f"{source}: {describe(evidence)}. Reading with --format {name}.")
    return name


def _beam_writer() -> Callable[..., object]:
    try:
        from lsm_jax.data.beam import write_dataset_on_beam
    except ImportError as error:
        raise UserError(f"--beam needs Apache Beam ({error}): pip install -e '.[beam]' in the checkout.") from None
    return write_dataset_on_beam


@contextlib.contextmanager
def _progress(report: IngestReport) -> Iterator[Callable[[int], None]]:
    """A line that counts while rows are sorted and days are written."""
    from rich.console import Console

    class Counts:
        days = 0

        def __rich__(self) -> str:
            return (
                f"{report.rows_read:,} rows read, {report.rows_quarantined:,} set aside, {report.people:,} people, "
                f"{self.days:,} days written"
            )

    counts = Counts()
    with Console(stderr=True).status(counts):
        yield lambda days: setattr(counts, "days", days)


def _print(report: IngestReport, title: str, **where: str) -> None:
    """The report for people: counts per channel, totals, and everything that was not used."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for heading in ("channel", "observed cells", "missing", "implausible", "invalid", "duplicates", "overlaps"):
        table.add_column(heading, justify="left" if heading == "channel" else "right")
    counters = (report.implausible, report.invalid, report.duplicates, report.overlaps)
    for name, share in report.missing_share().items():
        counts = (f"{counter[name]:,}" for counter in counters)
        table.add_row(name, f"{report.observed_cells[name]:,}", f"{share:.1%}", *counts)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(*report.sentences(**where), sep="\n")
