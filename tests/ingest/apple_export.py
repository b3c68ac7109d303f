"""Apple Health exports made by hand, as the phone writes them."""

import datetime as dt
import sys
from pathlib import Path

HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE HealthData [
<!-- HealthKit Export Version: 14 -->
<!ELEMENT HealthData (ExportDate,Me,(Record|Correlation|Workout|ActivitySummary|ClinicalRecord)*)>
<!ATTLIST HealthData
  locale CDATA #REQUIRED
>
<!ELEMENT Record ((MetadataEntry|HeartRateVariabilityMetadataList)*)>
]>
<HealthData locale="en_US">
 <ExportDate value="2023-05-09 07:01:02 -0700"/>
 <Me HKCharacteristicTypeIdentifierDateOfBirth="1980-06-01" \
HKCharacteristicTypeIdentifierBiologicalSex="HKBiologicalSexFemale"/>
"""
TAIL = "</HealthData>\n"
WATCH, PHONE, APP = "Koby’s Apple\u00a0Watch", "Koby’s iPhone", "Steps & Sleep"
_MODELS = {WATCH: "Watch", PHONE: "iPhone"}
ADDRESS = iter(range(0x282DF23F0, 1 << 60, 0x90))


def record(kind, value, start, end=None, unit=None, source=WATCH, zone="-0700", day="2023-05-01", inner=""):
    """A record; `start` and `end` are times of day, `kind` the type without its prefix."""
    name = kind if kind.startswith("HK") else f"HKQuantityTypeIdentifier{kind}"
    device = ""
    if source in _MODELS:
        device = (
            f' device="&lt;&lt;HKDevice: {next(ADDRESS):#x}&gt;, name:Apple Watch, manufacturer:Apple Inc., '
            f'model:{_MODELS[source]}, hardware:X5,4, software:9.4&gt;"'
        )
    times = [f"{day} {time} {zone}" if len(time) < 9 else f"{time} {zone}" for time in (start, end or start)]
    units = f' unit="{unit}"' if unit else ""
    return (
        f' <Record type="{name}" sourceName="{source.replace("&", "&amp;")}" sourceVersion="9.4"{device}{units} '
        f'creationDate="{times[1]}" startDate="{times[0]}" endDate="{times[1]}" value="{value}"'
        + (f">\n{inner} </Record>\n" if inner else "/>\n")
    )


def sleep(stage, start, end, **more):
    return record("HKCategoryTypeIdentifierSleepAnalysis", f"HKCategoryValueSleepAnalysis{stage}", start, end, **more)


def workout(kind, start, end, source=WATCH, day="2023-05-01", zone="-0700"):
    return (
        f' <Workout workoutActivityType="HKWorkoutActivityType{kind}" duration="30" durationUnit="min" '
        f'sourceName="{source}" startDate="{day} {start} {zone}" endDate="{day} {end} {zone}">\n'
        '  <MetadataEntry key="HKIndoorWorkout" value="0"/>\n </Workout>\n'
    )


def write_large(path, mebibytes):
    """An export of this size: days of a watch and a phone, in the order of types in which the phone writes them."""
    kinds = (  # type, unit, source, records a day, seconds between them, length of each
        ("StepCount", "count", PHONE, 120, 480, 420),
        ("StepCount", "count", WATCH, 300, 180, 60),
        ("DistanceWalkingRunning", "km", PHONE, 120, 480, 420),
        ("DistanceWalkingRunning", "km", WATCH, 300, 180, 60),
        ("BasalEnergyBurned", "kcal", WATCH, 480, 180, 180),
        ("ActiveEnergyBurned", "kcal", WATCH, 720, 90, 80),
        ("HeartRate", "count/min", WATCH, 600, 120, 0),
        ("RespiratoryRate", "count/min", WATCH, 60, 300, 0),
        ("WalkingSpeed", "km/hr", PHONE, 60, 900, 60),
        ("OxygenSaturation", "%", WATCH, 30, 1800, 15),
    )
    fixed = {"km": 0.02, "%": 0.96, "kcal": 1.25, "RespiratoryRate": 14}
    days = round(mebibytes / 1.02)
    with path.open("w", encoding="utf-8") as file:
        file.write(HEAD)
        for kind, unit, source, records, step, length in kinds:
            for number in range(days):
                day = dt.date(2015, 1, 1) + dt.timedelta(days=number)
                clock = [divmod(second, 3600) for second in range(0, records * step, step)]
                for hour, rest in clock:
                    minute, second = divmod(rest, 60)
                    begin = f"{hour:02d}:{minute:02d}:{second:02d}"
                    minute, second = divmod(rest + length, 60)
                    end = f"{hour + minute // 60:02d}:{minute % 60:02d}:{second:02d}"
                    value = fixed.get(kind, fixed.get(unit, 60 + minute % 60))
                    if hour + minute // 60 < 24:
                        file.write(record(kind, value, begin, end, unit, source, day=day))
        file.write(TAIL)


if __name__ == "__main__":  # python tests/ingest/apple_export.py export.xml 1024
    write_large(Path(sys.argv[1]), int(sys.argv[2]))
