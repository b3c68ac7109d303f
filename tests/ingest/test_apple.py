"""Apple Health: units, intervals, sources that overlap, sleep, offsets, damage and hostile files."""

import zipfile

import pytest

from lsm_jax.cli.main import main
from lsm_jax.errors import UserError
from lsm_jax.ingest.detect import detect_format
from lsm_jax.ingest.formats import make_reader
from lsm_jax.ingest.reader import ReaderOptions
from tests.ingest.apple_export import APP, HEAD, PHONE, TAIL, record, sleep, workout
from tests.ingest.reading import read_folder, values


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "koby"
    folder.mkdir()
    return folder


def ingest(source, tmp_path, **options):
    """(windows, report) of a source."""
    found = read_folder("apple", source, tmp_path / "scratch", **options)
    return found.windows, found.report


def write(source, *records, head=HEAD, tail=TAIL):
    (source / "export.xml").write_text(head + "".join(records) + tail, encoding="utf-8")


def test_units_become_those_of_the_registry(source, tmp_path):
    write(
        source,
        record("HeartRate", "72", "07:01:02", unit="count/min"),
        record("HeartRate", "1.5", "07:02:02", unit="count/s"),
        record("DistanceWalkingRunning", "0.1", "07:01:00", "07:02:00", "km"),
        record("DistanceCycling", "0.1", "07:03:00", "07:04:00", "mi"),
        record("ActiveEnergyBurned", "4.184", "07:01:00", "07:02:00", "kJ"),
        record("BasalEnergyBurned", "12", "07:00:00", "07:10:00", "Cal"),
        record("OxygenSaturation", "0.96", "07:01:10", unit="%"),
        record("OxygenSaturation", "97", "07:02:10", unit="%", source=APP),
        record("AppleSleepingWristTemperature", "95", "07:01:00", "07:03:00", "degF"),
        record("BloodGlucose", "90.078", "07:01:00", unit="mg/dL", source=APP),
        record("BloodGlucose", "7", "08:01:00", unit="mmol&lt;180.1558800000541&gt;/L", source=APP),
        record("HeartRateVariabilitySDNN", "48.5", "07:05:00", "07:06:00", "ms"),
        record("RespiratoryRate", "14", "07:05:00", unit="count/min"),
        record("FlightsClimbed", "2", "07:05:00", "07:07:00", "count"),
    )
    (window,), report = ingest(source, tmp_path)
    assert values(window, "heart_rate") == {421: 72, 422: 90}
    assert {k: v for k, v in values(window, "distance").items() if v} == pytest.approx({421: 100, 423: 160.9344})
    assert values(window, "active_calories")[421] == pytest.approx(1)
    calories = values(window, "calories")
    assert calories[421] == pytest.approx(2.2) and calories[425] == pytest.approx(1.2) and len(calories) == 10
    assert values(window, "spo2") == {421: 96, 422: 97}
    assert values(window, "skin_temperature") == pytest.approx({421: 35, 422: 35})
    glucose = values(window, "glucose")
    assert glucose[421] == pytest.approx(5) and glucose[481] == 7 and len(glucose) == 10
    assert values(window, "sdnn") == {425: 48.5} and values(window, "respiratory_rate") == {425: 14}
    assert values(window, "floors")[425] == 1 and window.labels == {"age": 42, "sex": "F"}
    assert report.rows_read == report.rows_kept == 14 and not report.files_set_aside


def test_counts_are_spread_and_a_worn_watch_that_wrote_nothing_counted_nothing(source, tmp_path):
    write(
        source,
        record("StepCount", "60", "10:00:30", "10:02:30", "count"),  # 15, 30, 15
        record("StepCount", "12", "10:04:50", "10:04:56", "count"),
        record("StepCount", "9000", "00:00:00", "23:59:59", "count", source=APP),  # a day's total has no minute
        record("HeartRate", "60", "09:59:00", unit="count/min"),
        record("HeartRate", "60", "10:06:00", unit="count/min"),
        record("HeartRate", "60", "10:36:00", unit="count/min"),  # half an hour later: was it worn?
    )
    (window,), report = ingest(source, tmp_path)
    steps = values(window, "steps")
    assert {minute: count for minute, count in steps.items() if count} == {600: 15, 601: 30, 602: 15, 604: 12}
    assert sorted(steps) == [*range(599, 607), 636]
    assert report.quarantined["count over more than an hour, of which no minute is known"].samples == ["export.xml:15"]


def test_sources_are_ranked_and_not_added(source, tmp_path):
    records = [
        record("StepCount", "100", "10:00:00", "10:10:00", "count", source=PHONE),
        record("StepCount", "40", "10:02:00", "10:04:00", "count"),
        record("StepCount", "7", "10:00:00", "10:01:00", "count", source=APP),
        record("StepCount", "7", "10:20:00", "10:21:00", "count", source=APP),
    ]
    write(source, *records)
    (window,), report = ingest(source, tmp_path)
    assert values(window, "steps") == {
        **dict.fromkeys(range(600, 610), 10), **dict.fromkeys((602, 603), 20), 620: 7
    }  # fmt: skip
    assert report.outranked_minutes == {"steps of a phone": 2, "steps of another source": 1}
    assert any("steps of a phone: 2 minutes set aside" in sentence for sentence in report.sentences())
    with pytest.raises(UserError, match="--prefer: format fitbit"):
        make_reader("fitbit", ReaderOptions(prefer=("Oura",)))
    (window,), report = ingest(source, tmp_path, prefer=("steps &", "IPHONE"))
    assert values(window, "steps") == {**dict.fromkeys(range(600, 610), 10), 600: 7, 620: 7}
    assert report.outranked_minutes == {"steps of a preferred source": 1, "steps of a watch": 2}


def test_names_of_sources_are_shown_by_a_dry_run_and_written_nowhere(source, tmp_path, capsys):
    write(
        source,
        record("StepCount", "100", "10:00:00", "10:10:00", "count", source=PHONE),
        record("StepCount", "40", "10:02:00", "10:04:00", "count"),
        record("HeartRate", "60", "10:06:00", unit="count/min"),
    )
    arguments = ["ingest", "--format", "apple", "--source", str(source)]
    assert main([*arguments, "--dry-run"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"steps {PHONE} 8 2" in lines and "steps Koby’s Apple Watch 2 0" in lines
    assert not any(line.startswith("heart_rate Koby") for line in lines)  # of one source
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    written = (tmp_path / "out" / "ingest_report.json").read_text(encoding="utf-8")
    assert "Koby" not in written and "iPhone" not in written and "steps of a phone" in written
    assert "Koby" not in capsys.readouterr().out


def test_memory_addresses_do_not_split_a_watch(source, tmp_path):
    write(source, *(record("HeartRate", 60 + i, f"10:{i:02d}:00", unit="count/min") for i in range(60)))
    (window,), report = ingest(source, tmp_path)
    assert (
        len(values(window, "heart_rate")) == 60 and not report.outranked_minutes and not report.overlaps["heart_rate"]
    )


def test_stages_are_events_within_their_sleep_and_channels(source, tmp_path):
    write(
        source,
        sleep("InBed", "00:50:00", "03:20:00", source=PHONE),
        sleep("Awake", "01:00:00", "01:05:00"),
        sleep("AsleepCore", "01:05:00", "01:30:30"),
        sleep("AsleepDeep", "01:30:30", "02:00:00"),
        sleep("AsleepREM", "02:00:00", "02:10:00"),
        sleep("AsleepUnspecified", "01:00:00", "02:30:00", source=APP),
        sleep("AsleepUnspecified", "13:00:00", "13:20:00", source=APP),
        sleep("InBed", "22:00:00", "22:30:00", source=PHONE),
        sleep("Snoring", "03:00:00", "03:01:00"),
    )
    (window,), report = ingest(source, tmp_path)
    assert [(event.name, event.start, event.end) for event in window.events] == [
        ("awake", 60, 65),
        ("light", 65, 90.5),
        ("asleep", 65, 130),
        ("deep", 90.5, 120),
        ("rem", 120, 130),
        ("asleep", 780, 800),
        ("in bed", 1320, 1350),
    ]
    light, deep = values(window, "sleep_light"), values(window, "sleep_deep")
    assert sorted(light) == sorted(deep) == list(range(60, 130))
    assert (light[64], light[65], light[90], deep[90], deep[91]) == (0, 1, 0.5, 0.5, 1)
    assert values(window, "sleep_state") == dict.fromkeys(range(780, 800), 1)
    assert report.quarantined["unknown stage of sleep"].rows == 1
    told_again = "sleep of a time for which a better row, or an equal one, is used"
    assert report.quarantined[told_again].rows == 2 and report.rows_kept == 6


def test_two_exports_of_one_phone_tell_everything_once_and_the_better_source_tells_the_label(source, tmp_path):
    write(
        source,
        record("HeartRate", "60", "09:59:00", unit="count/min"),
        sleep("AsleepCore", "01:05:00", "01:30:00"),
        workout("Running", "10:00:00", "10:30:00"),
        record("RestingHeartRate", "51", "00:00:00", "23:59:00", "count/min"),
        record("RestingHeartRate", "70", "00:00:00", "23:59:00", "count/min", source=APP),
    )
    (source / "earlier.xml").write_bytes((source / "export.xml").read_bytes())
    (window,), report = ingest(source, tmp_path)
    assert sorted(event.name for event in window.events) == ["asleep", "light", "running"]
    assert window.labels["resting_heart_rate"] == 51 and not report.label_conflicts
    assert {reason: entry.rows for reason, entry in report.quarantined.items()} == {
        "sleep of a time for which a better row, or an equal one, is used": 1,
        "event that another row tells too": 1,
        "label of a day for which a better source tells it": 2,
    }


def test_an_export_without_a_whole_minute_is_a_person_without_data(source, tmp_path):
    write(source, sleep("AsleepUnspecified", "01:00:00", "01:00:10"))
    windows, report = ingest(source, tmp_path)
    assert not windows and report.people_without_data == 1


def test_workouts_are_events_and_an_apps_copy_is_one_too_many(source, tmp_path):
    write(
        source,
        record("HeartRate", "60", "09:59:00", unit="count/min"),
        workout("TraditionalStrengthTraining", "10:00:00", "10:30:30"),
        workout("Running", "10:01:00", "10:31:00", source="Strava"),
        workout("HighIntensityIntervalTraining", "12:00:00", "12:05:00", source="Strava"),
        ' <ActivitySummary dateComponents="2023-05-01" activeEnergyBurned="300"/>\n',
        record("WalkingSpeed", "5", "10:00:00", unit="km/hr"),
        record("RestingHeartRate", "51", "00:00:00", "23:59:00", "count/min"),
    )
    (window,), report = ingest(source, tmp_path)
    assert [(event.kind, event.name, event.start, event.end) for event in window.events] == [
        ("activity", "strength training", 600, 630.5),
        ("activity", "hiit", 720, 725),
    ]
    assert window.labels["resting_heart_rate"] == 51 and report.rows_ignored == 2
    assert "1 rows: event that another row tells too (export.xml)" in "\n".join(report.sentences())
    assert "ActivitySummary 1" in report.notes[0] and "HKQuantityTypeIdentifierWalkingSpeed 1" in report.notes[0]


def test_days_are_cut_by_the_offsets_of_the_export(source, tmp_path):
    """A winter's offset, a summer's, and a time near midnight of each."""
    write(
        source,
        record("HeartRate", "60", "23:59:00", unit="count/min", day="2023-01-10", zone="-0800"),
        record("HeartRate", "61", "00:01:00", unit="count/min", day="2023-07-10", zone="-0700"),
        record("HeartRate", "62", "23:30:00", unit="count/min", day="2023-07-10", zone="-0700"),
    )
    (winter, summer), _ = ingest(source, tmp_path)
    assert values(winter, "heart_rate") == {1439: 60} and winter.utc_offset_minutes == -480
    assert values(summer, "heart_rate") == {1: 61, 1410: 62} and summer.utc_offset_minutes == -420
    (winter, summer, _), _ = ingest(source, tmp_path, time_zone="Europe/Berlin")
    assert values(winter, "heart_rate") == {539: 60} and values(summer, "heart_rate") == {541: 61}


def test_zips_and_folders_tell_people_apart(tmp_path):
    for name in ("anna", "ben"):
        (tmp_path / "study" / name).mkdir(parents=True)
        with zipfile.ZipFile(tmp_path / "study" / name / "export.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            text = HEAD + record("HeartRate", "60", "10:00:00", unit="count/min") + TAIL
            archive.writestr("apple_health_export/exportar.xml", text)
            archive.writestr("apple_health_export/export_cda.xml", '<?xml version="1.0"?><ClinicalDocument/>')
    name, evidence = detect_format(tmp_path / "study")
    assert name == "apple" and [file.member for file in evidence.files] == ["apple_health_export/exportar.xml"] * 2
    windows, report = ingest(tmp_path / "study", tmp_path)
    assert len({window.participant for window in windows}) == report.people == 2 and len(report.files_ignored) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (record("HeartRate", "x", "10:00:00", unit="count/min"), "value is not a number"),
        (record("HeartRate", "inf", "10:00:00", unit="count/min"), "value is not a number"),
        (record("HeartRate", "60", "10:00:00", unit="furlong"), "unit cannot be converted"),
        (record("HeartRate", "60", "10:00:00"), "unit cannot be converted"),
        (record("HeartRate", "60", "25:00:00", unit="count/min"), "time is not readable"),
        (record("HeartRate", "60", "10:00:00", unit="count/min", zone="PST"), "time is not readable"),
        (record("HeartRate", "60", "10:00:00", unit="count/min", zone="+9900"), "time is not readable"),
        (record("HeartRate", "60", "10:00:00", unit="count/min", day="2566-05-01"), "date before 1990 or after 2099"),
        (record("HeartRate", "60", "10:00:00", "09:00:00", unit="count/min"), "ends before it starts"),
        (record("HeartRate", "60", "10:00:00", "2023-05-09 10:00:00", "count/min"), "lasts longer than a day"),
        (workout("Running", "10:00:00", "09:00:00"), "ends before it starts"),
        (' <Workout sourceName="a" startDate="" endDate=""/>\n', "time is not readable"),
        (' <Record type="HKQuantityTypeIdentifierHeartRate"/>\n', "time is not readable"),
        (record("Steps", "6", "10:01:00").replace(" source", " type='' source"), "damaged XML (duplicate attribute)"),
        (record("HeartRate", "61", "10:01:00", None, "count/min")[:-3] + ">\n", "damaged XML (element is not closed)"),
        (record("HeartRate", "&bomb;", "10:01:00"), "damaged XML (undefined entity)"),
        (record("HeartRate", "a\x0bb", "10:01:00"), "damaged XML (not well-formed (invalid token))"),
    ],
)  # fmt: skip
def test_a_bad_record_costs_only_itself(source, tmp_path, bad, reason):
    good = record("HeartRate", "60", "10:00:00", unit="count/min")
    write(source, good, bad, good.replace("10:00", "10:02"))
    (window,), report = ingest(source, tmp_path)
    assert values(window, "heart_rate") | {601: 61} == {600: 60, 601: 61, 602: 60}
    assert report.rows_quarantined == 1 and report.quarantined[reason].samples[0] in ("export.xml:14", "export.xml:15")


def test_of_a_cut_export_the_start_is_kept(source, tmp_path):
    good = [record("HeartRate", "60", f"{hour:02d}:00:00", unit="count/min") for hour in range(20)]
    write(source, *good, tail=good[0][:100])
    (window,), report = ingest(source, tmp_path)
    assert len(values(window, "heart_rate")) == 20
    assert report.files_set_aside == ["export.xml: damaged at line 33, what comes before it is kept (cut off)"]


def test_hostile_exports_are_refused_in_words(source, tmp_path):
    entities = HEAD.replace("<!ELEMENT Record", '<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;"><!ELEMENT Record')
    good = record("HeartRate", "60", "10:00:00", unit="count/min")
    for head, body, reason in (
        (entities, good, "declares XML entities"),
        (HEAD, good + "<a>" * 100, "nest deeper than 32"),
        (HEAD, good + f"<!-- {'x' * 3_000_000} -->", "a megabyte without an element"),
    ):
        write(source, body, head=head)
        windows, report = ingest(source, tmp_path)
        assert any(reason in sentence for sentence in report.files_set_aside), report.files_set_aside
        assert len(windows) == (head == HEAD)
    (source / "export.xml").write_text("<HealthDat")
    with pytest.raises(UserError, match="Export All Health Data"):
        ingest(source, tmp_path)
