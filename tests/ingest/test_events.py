"""Events and labels by a mapping: spells of a class, codes, seconds, surveys of recordings of any format."""

import pytest

from lsm_jax.errors import UserError
from tests.ingest.reading import read_source

HEART = """
[[tables]]
files = "hr.csv"
person = { column = "who" }
time = { column = "when" }
channels = { heart_rate = { column = "hr" } }
"""
OF_WHO = '\nperson = { column = "who" }\ntime = { column = "when" }\n'


def ingest(tmp_path, mapping, files, format="table", time_zone=None):
    """(day windows in order, report)."""
    found = read_source(format, tmp_path, files, mapping, time_zone=time_zone)
    return found.windows, found.report


def events(window):
    return [(event.name, event.start, event.end) for event in window.events]


def test_a_label_per_minute_becomes_spells_and_empty_cells_are_no_events(tmp_path):
    mapping = HEART + f'[[events]]\nfiles = "hr.csv"{OF_WHO}kind = "activity"\nname_column = "label"\n'
    labels = ["running", "Running", "", "rowing", "rowing", "NA", "running"]
    rows = "".join(f"a,2024-03-04 00:{minute:02d}:00,60,{label}\n" for minute, label in enumerate(labels))
    (window,), report = ingest(tmp_path, mapping, {"hr.csv": "who,when,hr,label\n" + rows})
    assert events(window) == [("running", 0, 2), ("rowing", 3, 5), ("running", 6, 7)]
    assert report.rows_ignored == 2


@pytest.mark.parametrize("person", ['column = "who"', 'constant = "a"'])
def test_an_event_that_two_files_tell_is_one_and_the_repeat_is_said(tmp_path, person):
    time = f'person = {{ {person} }}\ntime = {{ column = "when" }}\n'
    mapping = HEART.replace('person = { column = "who" }', f"person = {{ {person} }}")
    mapping += f'[[events]]\nfiles = "meals*.csv"\n{time}kind = "meal"\nname_column = "what"\nminutes = 10\n'
    lunch, tea = "a,2024-03-04 12:00:00,lunch\n", "a,2024-03-04 16:00:00,tea\n"
    files = {
        "hr.csv": "who,when,hr\na,2024-03-04 00:00:00,60\n",
        "meals1.csv": "who,when,what\n" + lunch,
        "meals2.csv": "who,when,what\n" + tea + lunch,
    }
    (window,), report = ingest(tmp_path, mapping, files)
    assert events(window) == [("lunch", 720, 730), ("tea", 960, 970)]
    said = "1 rows repeat another in every column that is read and were dropped (events meal 1)"
    assert said in "\n".join(report.sentences())


def test_stages_of_30_seconds_without_a_header_keep_their_seconds_and_get_names(tmp_path):
    timed = (
        'person = { file = \'(A\\d)_\' }\nheader = false\ntime = { column = "1", unit = "seconds", zero = "23:59" }\n'
    )
    mapping = f"""
[[tables]]
files = "*_hr.txt"
{timed}channels = {{ heart_rate = {{ column = "2" }} }}
[[events]]
files = "*_labels.txt"
{timed}kind = "sleep"
name_column = "2"
names = {{ 0 = "wake", 1 = "n1", 2 = "n2", 5 = "rem" }}
minutes = 0.5
"""
    stages = "-30 -1\n0 0\n30 1.0\n60 2\n90 2\n120 5\n150 5\n"
    files = {"A1_hr.txt": "-65,60\n-3.5,62\n2,64\n90,70\n", "A1_labels.txt": stages}
    (before, night), report = ingest(tmp_path, mapping, files)
    assert [before.values[minute, 0] for minute in (1437, 1438, 1439)] == [60, 62, 64] and night.values[0, 0] == 70
    assert events(before) == [("wake", 1439, 1439.5), ("n1", 1439.5, 1440)]
    assert events(night) == [("n2", 0, 1), ("rem", 1, 2)]
    assert before.events[0].steps == slice(1439, 1440) and report.rows_ignored == 1


def test_spells_by_duration_gap_and_filter(tmp_path):
    log = "who,when,what,seconds,sure\na,2024-03-04 00:00:10,nap,90,1\na,2024-03-04 00:05,nap,60,0\n"
    log += "a,2024-03-04 00:07,nap,x,1\n"
    states = "who,when,s\n" + "".join(f"a,2024-03-04 01:{minute:02d},2\n" for minute in (0, 1, 4, 9))
    mapping = HEART + (
        f'[[events]]\nfiles = "log.csv"{OF_WHO}kind = "sleep"\nname_column = "what"\nkeep = ["sure == 1"]\n'
        'duration = "seconds"\nduration_unit = "seconds"\n'
        f'[[events]]\nfiles = "states.csv"{OF_WHO}kind = "sleep"\nname = "asleep"\ngap_minutes = 2\n'
    )
    files = {"hr.csv": "who,when,hr\na,2024-03-04 00:00,60\n", "log.csv": log, "states.csv": states}
    (window,), report = ingest(tmp_path, mapping, files)
    nap, *asleep = events(window)
    assert nap[0] == "nap" and nap[1:] == pytest.approx((10 / 60, 100 / 60), abs=1e-5)
    assert asleep == [("asleep", 60, 65), ("asleep", 69, 70)]
    assert report.quarantined["duration is not a number"].rows == 1 and report.rows_ignored == 1


def test_a_score_per_day_is_a_label_of_that_day(tmp_path):
    mapping = HEART + f'[[labels]]\nfiles = "mood.csv"{OF_WHO}columns = {{ mood = "score" }}\n'
    mapping += '[[labels]]\nfiles = "who.csv"\nperson = { column = "who" }\ncolumns = { age = "age" }\n'
    files = {
        "hr.csv": "who,when,hr\na,2024-03-04 00:00,60\na,2024-03-05 00:00,60\na,2024-03-06 00:00,60\n",
        "mood.csv": "who,when,score\na,2024-03-05 23:00,3\na,2024-03-06 08:00,\nb,2024-03-06 08:00,1\na,never,1\n",
        "who.csv": "who,age\na,40\n",
    }
    windows, report = ingest(tmp_path, mapping, files, time_zone="America/Chicago")
    assert [dict(window.labels) for window in windows] == [{"age": 40.0}, {"age": 40.0, "mood": 3.0}, {"age": 40.0}]
    assert "1 people have labels or events" in report.notes[0] and report.rows_quarantined == 1


SURVEY = """
[[events]]
files = "survey.csv"
person = { column = "who" }
time = { column = "from", time_zone = "America/Chicago" }
end = "to"
kind = "session"
name_column = "stress"
names = { 0 = "no stress", 2 = "high stress" }
[[labels]]
files = "people.csv"
person = { column = "who" }
columns = { age = "age" }
"""
SURVEYED = {
    "survey.csv": "who,from,to,stress\n1,2024-03-04 08:00,2024-03-04 08:20,2\n1,2024-03-04 08:10,2024-03-04 08:30,2\n"
    "1,2024-03-04 09:00,2024-03-04 09:05,na\n1,2024-03-04 10:00,2024-03-04 10:10,0\n",
    "people.csv": "who,age\n1,40\n",
}


def test_a_survey_and_labels_are_attached_to_fitbit_and_empatica(tmp_path):
    spells = [("high stress", 480, 500), ("high stress", 490, 510), ("no stress", 600, 610)]
    steps = {"steps.csv": "Id,ActivityMinute,Steps\n1,3/4/2024 7:00:00 AM,5\n"}
    session = {"1/visit 1/HR.csv": "1709560800.0\n1.0\n" + "60\n" * 120, "2/visit 1/HR.csv": "1709560800.0\n1.0\n60\n"}
    for name, files in (("fitbit", steps), ("empatica", session)):
        windows, report = ingest(tmp_path / name, SURVEY, files | SURVEYED, format=name)
        (window,) = [window for window in windows if window.labels]
        assert events(window) == spells and window.labels == {"age": 40.0} and window.utc_offset_minutes == -360
        assert report.rows_ignored == 1 and report.files_ignored == []
        assert report.files_set_aside == ["2/visit 1: no usable signal"] * (name == "empatica")


def test_a_mapping_of_another_format_has_no_tables(tmp_path):
    for mapping in (HEART, SURVEY.replace('"from", ', '"from", unit = "hours", ')):
        with pytest.raises(UserError, match=r"format fitbit reads the values.*\[\[events\]\] and \[\[labels\]\]"):
            ingest(tmp_path, mapping, {"x.csv": ""}, format="fitbit")
    with pytest.raises(UserError, match=r"survey\.csv' matches none"):
        ingest(tmp_path, SURVEY, {"x.csv": ""}, format="fitbit")


MISTAKES = {
    'name_column = "stress"\n': ("", r"events\[0\]\.names needs name_column"),
    'end = "to"': ('end = "to"\nduration = "x"', r"events\[0\]\.duration and end exclude"),
    'column = "from", ': ('column = "from", zero = "25:00", ', r"time.zero is '25:00', expected the time of day"),
}


@pytest.mark.parametrize("change", MISTAKES)
def test_mistakes_in_events_are_named(tmp_path, change):
    wrong, message = MISTAKES[change]
    with pytest.raises(UserError, match=message):
        ingest(tmp_path, SURVEY.replace(change, wrong), {}, format="fitbit")
