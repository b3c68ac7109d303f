"""Reads Apple Health exports: export.zip as the phone writes it, or the export.xml in it.

One export is one person. Its records are streamed (`xml`), sorted by channel into temporary files
(`records`) and read back channel by channel (`recording`), so memory does not grow with the export.

- A source is a `sourceName`. Sources of one channel are ranked minute by minute: those that the user prefers, watches,
  phones, others.
- Counts are spread over their interval. Apple writes no zeros: what intervals leave of a minute is 0, and so is a
  minute between two heart rates of a watch that are at most 15 minutes apart.
- `calories` are the basal and the active ones, where the basal ones are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lsm_jax.channels import REGISTRY
from lsm_jax.errors import UserError
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.apple.recording import AppleRecording
from lsm_jax.ingest.formats.apple.records import read_records
from lsm_jax.ingest.formats.apple.types import BASAL, CHANNELS, STAGES
from lsm_jax.ingest.formats.apple.xml import is_export, names_in
from lsm_jax.ingest.formats.personal import RecordingReader
from lsm_jax.ingest.minutes.recording import Recording
from lsm_jax.ingest.minutes.sleep import STAGE_CHANNELS, STAGED
from lsm_jax.ingest.reader import Evidence
from lsm_jax.ingest.report import IngestReport


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """Files that start as the export does."""
    found = tuple(file for file in files if is_export(file))
    return Evidence("Apple Health export", found) if found else None


class AppleReader(RecordingReader):
    """Reader of Apple Health exports (see `reader.Reader`)."""

    content = "Apple Health export"
    expected = (
        "an XML file with an element HealthData. On the phone: Health, the picture of you, Export All Health Data; "
        "then give the folder that holds export.zip"
    )

    def reads(self, file: SourceFile) -> str:
        return "" if is_export(file) else "not the export.xml of Apple Health"

    def channels(self, source: Path) -> tuple[str, ...]:
        found = super().channels(source)
        return tuple(name for name in REGISTRY if name in found)

    def channels_of(self, file: SourceFile) -> set[str]:
        """The channels of the records that occur, which a first pass looks for."""
        names = names_in(file)
        present = {CHANNELS[name] for name in names & CHANNELS.keys()}
        present |= {"calories"} if BASAL in present else set()
        stages = {STAGES[name] for name in names & STAGES.keys()}
        present |= {*STAGE_CHANNELS.values()} if stages & STAGED else set()
        return present | ({"sleep_state"} if "asleep" in stages else set())

    def new_recording(self) -> Recording:
        if self._options.scratch is None:
            raise UserError("the apple reader needs a scratch folder (ReaderOptions.scratch).")
        return AppleRecording(self._options.scratch, self._options.prefer)

    def add_file(self, file: SourceFile, recording: Recording, report: IngestReport) -> None:
        assert isinstance(recording, AppleRecording)
        read_records(file, recording, report)
