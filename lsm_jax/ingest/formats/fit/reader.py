"""Reads FIT files: all-day monitoring and activities of Garmin watches, and activities of other makers.

Rules:
- Steps, distance and active calories are running totals (`totals`).
- A stage of sleep lasts until the next one; the last one of a night lasts a minute.
- A damaged file is read up to the damage.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from lsm_jax.errors import UserError
from lsm_jax.ingest.files.opening import first_bytes, read_bytes
from lsm_jax.ingest.files.source import SourceFile
from lsm_jax.ingest.formats.fit.messages import (
    FIT_EPOCH,
    Message,
    MessageClock,
    Sample,
    messages,
    number,
    samples_of,
    utc_offset,
)
from lsm_jax.ingest.formats.fit.totals import TotalsLog
from lsm_jax.ingest.formats.personal import RecordingReader
from lsm_jax.ingest.minutes.recording import Recording
from lsm_jax.ingest.minutes.sleep import SLEEP_CHANNELS, Spell, Stage
from lsm_jax.ingest.reader import Evidence, ReaderOptions, RecordEvent, Series
from lsm_jax.ingest.report import IngestReport
from lsm_jax.ingest.times.text import FIRST_SECOND, IMPOSSIBLE_DATE, LAST_SECOND

CHANNELS = (
    "heart_rate",
    "rmssd",
    "steps",
    "distance",
    "active_calories",
    "respiratory_rate",
    "spo2",
    "stress_level",
    "cadence",
    "power",
    "device_temperature",
    *SLEEP_CHANNELS,
)
_LONGEST_STAGE = 3 * 3600  # s; the stage before a longer silence ended the night
_STAGES: dict[str, Stage] = {"awake": "awake", "light": "light", "deep": "deep", "rem": "rem"}
_VAGUE_SPORTS = ("generic", "fitness_equipment", "training")  # of which the sub-sport says what was done
_DAY_LABELS = {
    "monitoring_hr_data": {"resting_heart_rate": "resting_heart_rate"},
    "hrv_status_summary": {"last_night_average": "hrv_night_average", "status": "hrv_status"},
}


def looks_like(files: Sequence[SourceFile]) -> Evidence | None:
    """Files with the mark of FIT in their header."""
    named = [file for file in files if file.name.lower().endswith(".fit")]
    found = tuple(file for file in named if first_bytes(file, 12)[8:12] == b".FIT")
    return Evidence("FIT files of a Garmin or another watch", found) if found else None


class FitReader(RecordingReader):
    """Reader of FIT files (see `reader.Reader`)."""

    content = "FIT file"
    expected = "files NAME.fit, plain or in a zip that is not inside another zip"

    def __init__(self, options: ReaderOptions) -> None:
        super().__init__(options)
        try:
            import fitdecode  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"--format fit needs the library fitdecode ({error}): pip install -e '.[fit]' in the checkout."
            ) from None

    def reads(self, file: SourceFile) -> str:
        return "" if file.name.lower().endswith(".fit") else "not a FIT file"

    def channels_of(self, file: SourceFile) -> Sequence[str]:
        del file  # only its messages tell, and they are read once
        return CHANNELS

    def new_recording(self) -> Recording:
        return _FitRecording()

    def add_file(self, file: SourceFile, recording: Recording, report: IngestReport) -> None:
        assert isinstance(recording, _FitRecording)
        content = _FitFile(file, recording, report)
        try:
            for name, message in messages(read_bytes(file)):
                content.add(name, message)
        finally:
            content.finish()


class _FitRecording(Recording):
    """A recording with running totals, which are of all files together."""

    def __init__(self) -> None:
        super().__init__()
        self.totals = TotalsLog()

    def series(self, report: IngestReport) -> tuple[Series, ...]:
        return (*super().series(report), *self.totals.series(report))


class _FitFile:
    """What the messages of one file add to a recording."""

    def __init__(self, file: SourceFile, recording: _FitRecording, report: IngestReport) -> None:
        self._file, self._recording, self._report = file, recording, report
        self._clock, self._count, self._device = MessageClock(), 0, ""
        self._is_named, self._has_totals = False, False
        self._samples: dict[Sample, list[tuple[float, float]]] = {}  # all but the value -> [(second, value)]
        self._stages: list[tuple[float, Stage | None]] = []

    def add(self, name: str, message: Message) -> None:
        """Adds a message, and counts it as kept, ignored or set aside."""
        self._report.rows_read += 1
        self._count += 1
        if name == "file_id":
            self._device = f"{message.get('manufacturer')} {message.get('serial_number')}"
            self._is_named = bool(message.get("serial_number"))
        second = self._clock.second(message)
        if second is not None and (offset := utc_offset(message)) is not None:
            self._recording.offsets[int(second // 60)] = offset
        samples = samples_of(name, message)
        known = second is not None and FIRST_SECOND <= second < LAST_SECOND
        has_totals = name in ("monitoring", "monitoring_info") and self._recording.totals.add(
            self._device, second if known else None, message
        )
        self._has_totals |= has_totals
        if not samples and not has_totals and name not in ("sleep_level", "session", *_DAY_LABELS):
            self._report.rows_ignored += 1
        elif second is None or not known:
            reason = "message without a time" if second is None else IMPOSSIBLE_DATE
            self._report.quarantine(reason, self._file.label, [self._count])
        else:
            self._report.rows_kept += 1
            for sample in samples:
                if math.isnan(sample.value):
                    self._report.invalid[sample.channel] += 1
                self._samples.setdefault(sample._replace(value=0), []).append((second, sample.value))
            self._add_about_longer(name, second, message)

    def _add_about_longer(self, name: str, second: float, message: Message) -> None:
        """Stages of sleep, activities, and what is said of a day."""
        if name == "sleep_level":
            self._stages.append((second, _STAGES.get(str(message.get("sleep_level")))))
        elif name == "session":
            length, start = number(message, "total_elapsed_time") or 0, number(message, "start_time")
            begin = second - length if start is None else start + FIT_EPOCH  # it is saved at its end
            self._recording.add_event(RecordEvent("activity", _sport(message), begin / 60, (begin + length) / 60))
        elif name in _DAY_LABELS:
            found = {label: message.get(field) for field, label in _DAY_LABELS[name].items()}
            labels = {
                label: value if isinstance(value, str) else float(value)
                for label, value in found.items()
                if isinstance(value, str | int | float)
            }
            self._recording.add_day_labels(second, labels)

    def finish(self) -> None:
        """Hands the samples and the stages of sleep to the recording."""
        if self._has_totals and not self._is_named:
            what = "running totals are taken to be of one device, since the file names none"
            self._report.lack(what, self._file.label)
        for sample, values in self._samples.items():
            second, value = zip(*values, strict=True)
            self._recording.add(
                sample.channel,
                second,
                value,
                sensor=f"{self._device} {sample.sensor}",
                aggregate=sample.aggregate,
                period_minutes=sample.period_minutes,
            )
        stages = sorted(self._stages, key=lambda stage: stage[0])
        for (start, stage), (end, _) in itertools.pairwise([*stages, (math.inf, None)]):
            if stage and end > start:
                stop = end if end - start <= _LONGEST_STAGE else start + 60
                self._recording.add_spells([Spell(start, stop, stage)])


def _sport(message: Message) -> str:
    """The name of an activity: "running", "indoor cycling"."""
    sport, sub_sport = (message.get(field) for field in ("sport", "sub_sport"))
    if sport in _VAGUE_SPORTS and isinstance(sub_sport, str) and sub_sport != "generic":
        sport = sub_sport
    return sport.replace("_", " ") if isinstance(sport, str) else "activity"
