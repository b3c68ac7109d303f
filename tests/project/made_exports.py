"""Exports made from synthetic people, as vendors and studies write them, for the commands of the tutorials.

python tests/project/made_exports.py        # an export of Apple Health, a Takeout and three studies, in exports/
"""

from __future__ import annotations

import datetime as dt
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from lsm_jax.channels import MINUTELY_26
from lsm_jax.synth.cohort import PersonDays, simulate_person

OWN, OWN_DAYS = 9, 7  # the person of the two exports of one's own, and days in them
STUDY_PEOPLE = 10  # of one day each: every split has somebody
# Of every person's recording, which phones and watches write in 90-minute cycles.
STAGES = (("Core", "light", 45), ("Deep", "deep", 20), ("REM", "rem", 25))


def write_exports(folder: Path) -> None:
    """Writes `apple/export.zip`, `takeout/`, `fitabase/`, `e4/` and `nhanes/`."""
    own = simulate_person(OWN, OWN_DAYS)
    study = [simulate_person(number, 1) for number in range(STUDY_PEOPLE)]
    apple(folder / "apple", own)
    takeout(folder / "takeout" / "Takeout" / "Fitbit", own)
    for write in (fitabase, e4, nhanes):
        write(folder / write.__name__, study)


def recorded(person: PersonDays, channel: str) -> tuple[np.ndarray, np.ndarray]:
    """(minutes since the first midnight, values) of a channel."""
    column = MINUTELY_26.index(channel)
    minutes = np.flatnonzero(person.observed[:, column])
    return minutes, person.values[minutes, column]


def stages(person: PersonDays) -> Iterator[tuple[str, str, int, int]]:
    """(Apple's name, Fitbit's name, first minute, end) of each stage of each logged night."""
    for event in person.events:
        start, number = event.start, 0
        while event.kind == "sleep" and start < event.end:
            apple_name, fitbit_name, minutes = STAGES[number % 3]
            yield apple_name, fitbit_name, start, min(start + minutes, event.end)
            start, number = start + minutes, number + 1


def clock(person: PersonDays, pattern: str) -> Callable[[float], str]:
    """Writes minutes since the first midnight as local times."""
    midnight = dt.datetime.combine(person.person.first_day, dt.time())
    return lambda minute: (midnight + dt.timedelta(minutes=float(minute))).strftime(pattern)


def apple(folder: Path, person: PersonDays) -> None:
    """The export.zip of an iPhone: heart rates every four minutes, steps, sleep stages, workouts."""
    hours, minutes = divmod(abs(person.person.utc_offset_minutes), 60)
    sign = "-" if person.person.utc_offset_minutes < 0 else "+"
    at = clock(person, f"%Y-%m-%d %H:%M:%S {sign}{hours:02d}{minutes:02d}")

    def record(kind: str, unit: str, start: float, end: float, value: object) -> str:
        return (
            f'<Record type="HK{kind}" sourceName="Watch" unit="{unit}" creationDate="{at(end)}" '
            f'startDate="{at(start)}" endDate="{at(end)}" value="{value}" device="&lt;&lt;HKDevice: 0x2, name:Apple '
            f'Watch, model:Watch&gt;"/>\n'
        )

    lines = []
    for minute, beats in zip(*recorded(person, "heart_rate"), strict=True):
        if minute % 4 == 0:
            lines.append(record("QuantityTypeIdentifierHeartRate", "count/min", minute, minute, round(float(beats))))
    for minute, steps in zip(*recorded(person, "steps"), strict=True):
        if round(float(steps)):
            lines.append(record("QuantityTypeIdentifierStepCount", "count", minute, minute + 1, round(float(steps))))
    for name, _, start, end in stages(person):
        value = f"HKCategoryValueSleepAnalysisAsleep{name}"
        lines.append(record("CategoryTypeIdentifierSleepAnalysis", "", start, end, value))
    for event in person.events:
        if event.kind == "activity":
            kind = event.name.title().replace(" ", "")
            lines.append(
                f'<Workout workoutActivityType="HKWorkoutActivityType{kind}" sourceName="Watch" '
                f'startDate="{at(event.start)}" endDate="{at(event.end)}"/>\n'
            )
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        text = f'<?xml version="1.0" encoding="UTF-8"?>\n<HealthData locale="en_US">\n{"".join(lines)}</HealthData>\n'
        archive.writestr("apple_health_export/export.xml", text)


def takeout(folder: Path, person: PersonDays) -> None:
    """The folder Takeout/Fitbit of Google: JSON of heart rate and steps in UTC, of sleep and exercise in local time."""
    to_utc = -person.person.utc_offset_minutes
    local, sleep_time = clock(person, "%m/%d/%y %H:%M:%S"), clock(person, "%Y-%m-%dT%H:%M:%S.000")
    heart_rate = [
        {"dateTime": local(minute + to_utc), "value": {"bpm": round(float(beats)), "confidence": 3}}
        for minute, beats in zip(*recorded(person, "heart_rate"), strict=True)
    ]
    steps = [
        {"dateTime": local(minute + to_utc), "value": str(round(float(count)))}
        for minute, count in zip(*recorded(person, "steps"), strict=True)
    ]
    levels = [
        {"dateTime": sleep_time(start), "level": name, "seconds": 60 * (end - start)}
        for _, name, start, end in stages(person)
    ]
    exercise = [
        {"logId": n, "activityName": event.name, "startTime": local(event.start), "duration": 60_000 * minutes}
        for n, event in enumerate(person.events)
        if event.kind == "activity" and (minutes := event.end - event.start)
    ]
    first = person.person.first_day
    files = {f"heart_rate-{first}": heart_rate, f"steps-{first}": steps, "exercise-0": exercise}
    files[f"sleep-{first}"] = [{"logId": 1, "levels": {"data": levels}}]
    for name, entries in files.items():
        write(folder / "Global Export Data" / f"{name}.json", json.dumps(entries))
    zone = "America/Los_Angeles"
    profile = f"id,date_of_birth,timezone,gender\nC698DD,1965-02-01,{zone},MALE\n"
    write(folder / "Your Profile" / "Profile.csv", profile)


def fitabase(folder: Path, people: list[PersonDays]) -> None:
    """Narrow tables of minutes of all people."""
    tables = {"minuteSteps": ("ActivityMinute,Steps", "steps"), "heartrate": ("Time,Value", "heart_rate")}
    for name, (columns, channel) in tables.items():
        lines = [
            f"{number},{clock(person, '%m/%d/%Y %H:%M')(minute)},{round(float(value))}"
            for number, person in enumerate(people, 1)
            for minute, value in zip(*recorded(person, channel), strict=True)
        ]
        write(folder / f"{name}_merged.csv", "\n".join([f"Id,{columns}", *lines]))


def e4(folder: Path, people: list[PersonDays], minutes: int = 12) -> None:
    """A session of some minutes for each person: heart rate, skin conductance and temperature at their rates."""
    rates = {"HR": (1, "heart_rate"), "EDA": (4, "skin_conductance_level"), "TEMP": (4, "skin_temperature")}
    for number, person in enumerate(people):
        start = int(dt.datetime.combine(person.person.first_day, dt.time(15), dt.UTC).timestamp())
        for name, (rate, channel) in rates.items():
            values = person.values[900 : 900 + minutes, MINUTELY_26.index(channel)].repeat(60 * rate)
            lines = [f"{start}.0", f"{rate}.0", *(f"{value:.2f}" for value in values)]
            write(folder / f"S{number:02d}" / f"{name}.csv", "\n".join(lines))


def nhanes(folder: Path, people: list[PersonDays]) -> None:
    """A Parquet file of minutes with a flag for wear, and a table of people."""
    column = MINUTELY_26.index("steps")
    minutes = [
        pl.DataFrame(
            {
                "person": number, "day": 1, "minute": np.arange(1440), "worn": person.observed[:, column],
                "activity_count": np.where(person.observed[:, column], 30 * person.values[:, column].round(), 0),
            }
        )
        for number, person in enumerate(people)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pl.concat(minutes).write_parquet(folder / "minutes.parquet")
    rows = [{"person": number, **person.person.labels(), "race": "other"} for number, person in enumerate(people)]
    pl.DataFrame(rows).select("person", "age", "sex", "bmi", "race").write_csv(folder / "participants.csv")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_exports(Path("exports"))
