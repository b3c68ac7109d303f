"""Apple Health exports made by hand, as the phone writes them."""

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
