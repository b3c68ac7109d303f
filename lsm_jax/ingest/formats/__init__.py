"""The formats that `lsm ingest` reads. Each is a module or a folder of its own."""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Callable

from lsm_jax.errors import UserError, nearest
from lsm_jax.ingest.reader import Reader, ReaderOptions
from lsm_jax.ingest.times.clock import ZONES

# name -> module:class; imported on use, so that one format's libraries do not slow another's start. The module also has
# `looks_like`, by which `detect` finds the format of a source.
FORMATS = {
    "actigraph": "lsm_jax.ingest.formats.actigraph:ActigraphReader",
    "apple": "lsm_jax.ingest.formats.apple.reader:AppleReader",
    "empatica": "lsm_jax.ingest.formats.empatica.reader:EmpaticaReader",
    "fit": "lsm_jax.ingest.formats.fit.reader:FitReader",
    "oura": "lsm_jax.ingest.formats.oura:OuraReader",
    "glucose": "lsm_jax.ingest.formats.glucose:GlucoseReader",
    "fitbit": "lsm_jax.ingest.formats.fitbit:FitbitReader",
    "takeout": "lsm_jax.ingest.formats.takeout.reader:TakeoutReader",
    "withings": "lsm_jax.ingest.formats.withings:WithingsReader",
    "table": "lsm_jax.ingest.described.reader:TableReader",
}
_NAMES_SOURCES = {"apple", "takeout"}
_NAME_PEOPLE = {"table", "fitbit"}
_DATES_IN_SEVERAL_ORDERS = {"table", "fitbit", "actigraph", "glucose"}


def make_reader(name: str, options: ReaderOptions) -> Reader:
    """The reader of this format.

    Raises:
      UserError: no such format or time zone, or options that the format cannot use.
    """
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}.{nearest(name, FORMATS)} Formats: {', '.join(sorted(FORMATS))}.")
    zone = options.time_zone
    if zone and zone not in ZONES:
        raise UserError(f"--time-zone: unknown time zone {zone!r}. Use an IANA name such as 'Europe/Berlin'.")
    if options.people.is_of_files and name in _NAME_PEOPLE:
        raise UserError(f"--person: files of format {name} name their people themselves, or their mapping does.")
    if options.prefer and name not in _NAMES_SOURCES:
        raise UserError(f"--prefer: format {name} has no named sources that record one signal; apple and takeout do.")
    if options.date_order and options.mapping is None and name not in _DATES_IN_SEVERAL_ORDERS:
        raise UserError(f"--date-order: format {name} writes all dates in one order, so leave it out.")
    make: Callable[[ReaderOptions], Reader] = pkgutil.resolve_name(FORMATS[name])
    if name == "table" or options.mapping is None:
        return make(options)
    from lsm_jax.ingest.described.annotated import AnnotatedReader
    from lsm_jax.ingest.described.reader import TableReader

    tables = TableReader(options, annotated_format=name)
    options = dataclasses.replace(options, time_zone=tables.time_zone or None, people=tables.people_rule)
    return AnnotatedReader(make(options), tables)
