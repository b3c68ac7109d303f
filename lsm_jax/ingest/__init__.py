"""Recordings in, windows out. Imports point down this list; `lint-imports` checks it.

- `detect`: which format a source has. `preview`: what an ingest would write.
- `pipeline`: from a source to day windows, person by person, here or on Beam.
- `formats`: a module or a folder for each format, and `FORMATS`, their list.
- `described`: tables of any kind, read by a mapping file.
- `mapping`: the keys of a mapping file.
- `minutes`: samples become minutes, minutes become days; sleep; ranked sources.
- `signals`: minute features of raw signals.
- `reader`: what every reader takes and gives.
- `people`: who is who.
- `tables`: blocks of rows of text, Parquet and Excel. `section`: what the sections of a mapping file share.
- `times`: wall clocks, and text as times.
- `files`: untrusted files and archives. `cells`: cells as numbers. `units`: factors between units.
- `report`: counts of every row.
"""
