"""Numbers as people write them: decimal commas, thousands marks, and mappings that lose a channel."""

import numpy as np
import pytest

from lsm_jax.errors import UserError
from tests.ingest.reading import read_source

TABLE = """
[[tables]]
files = "*.csv"
person = { file = '(\\w+)\\.csv' }
time = { column = "time" }
KEYS
[tables.channels]
CHANNEL = { column = "value" }
"""


def values(tmp_path, cells, keys="", channel="activity_count", mapping=TABLE, extra=None):
    """The values of the first minutes as they are read, NaN where nothing is, and the report."""
    rows = "".join(f"2024-03-04 00:{minute:02d};{cell}\n" for minute, cell in enumerate(cells))
    files = {"a.csv": "time;value\n" + rows, **(extra or {})}
    mapping = mapping.replace("KEYS", keys).replace("CHANNEL", channel)
    found = read_source("table", tmp_path, files, mapping)
    ((day,),) = filter(None, found.people.values())
    seen = day.values(channel)[: len(cells)]
    return [None if np.isnan(value) else round(float(value), 4) for value in seen], found.report, day.window


PATTERNS = {
    "decimal commas": (["33", "33,5", "33,25"], 'decimal = ","', [33, 33.5, 33.25]),
    "thousands commas": (["950", "1,020", "12"], 'thousands = ","', [950, 1020, 12]),
    "points and commas": (["950", "1.020,5", "12"], 'decimal = ","\nthousands = "."', [950, 1020.5, 12]),
    "commas and points": (["950", "1,020.5", "12"], 'thousands = ","', [950, 1020.5, 12]),
    "blanks": (["950", "1 020", "1\u202f021"], 'thousands = " "', [950, 1020, 1021]),
    "apostrophes": (["950", "1'020", "12"], 'thousands = "\'"', [950, 1020, 12]),
    "points": (["950", "1.020", "1.021", "1.022"], 'decimal = ","\nthousands = "."', [950, 1020, 1021, 1022]),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_numbers_of_another_spelling_are_refused_and_read_with_the_keys_that_the_refusal_names(tmp_path, pattern):
    cells, keys, expected = PATTERNS[pattern]
    with pytest.raises(UserError, match=r"a\.csv:3: column 'value' has .*in tables\[0\] of the mapping") as refusal:
        values(tmp_path, cells)
    message = str(refusal.value)
    assert all(key in message for key in keys.splitlines())
    read, report, _ = values(tmp_path, cells, keys)
    assert read == expected and not report.quarantined and not report.damaged_cells


def test_commas_before_three_digits_may_be_either(tmp_path):
    cells = ["1,020", "1,500"]
    with pytest.raises(UserError, match='decimal = "," or thousands = ",", whichever it is'):
        values(tmp_path, cells)
    assert values(tmp_path, cells, 'decimal = ","')[0] == [1.02, 1.5]
    assert values(tmp_path, cells, 'thousands = ","')[0] == [1020, 1500]


def test_points_before_three_digits_are_decimals_where_the_mapping_says_so(tmp_path):
    cells = ["950", "1.020", "1.021", "1.022"]
    assert values(tmp_path, cells, 'decimal = "."')[0] == [950, 1.02, 1.021, 1.022]


def test_a_damaged_cell_is_no_pattern(tmp_path):
    """One cell with a comma among many with a point, or among hundreds of whole numbers, costs itself."""
    read, report, _ = values(tmp_path, ["33.5"] * 20 + ["33,5"], channel="skin_temperature")
    assert read[:20] == [33.5] * 20 and read[20] is None
    assert report.quarantined["value is not a number"].samples == ["a.csv:22"]


def test_what_other_cells_look_like_is_said(tmp_path):
    """Cells with a unit, or above what a device measures, are lost: a biased rest is not kept in silence."""
    for cell, form in (("62 bpm", "9 a"), (">62", ">9"), ("Low", "a")):
        read, report, _ = values(tmp_path, ["60", cell, "61"])
        assert read == [60, None, 61]
        (note,) = [note for note in report.notes if "are no numbers" in note]
        assert note.startswith(f"a.csv: many cells of column 'value' are no numbers but of the form {form!r}: they are")
    words = TABLE.replace('column = "value"', 'column = "value", text_values = { Low = 40 }')
    read, report, _ = values(tmp_path, ["60", "Low"], mapping=words)
    assert read == [60, 40] and not [note for note in report.notes if "are no numbers" in note]


def test_times_that_no_format_reads_name_the_key(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "b.csv").write_text("time;value\n04/03/2024 10:00;60\n")
    _, report, _ = values(tmp_path, ["60"])
    (note,) = report.notes  # none of a.csv, which is read
    assert note.startswith("b.csv: no time of lines 2 to 2 is in the mapping's formats: time.formats says")


def test_marks_that_do_not_group_thousands_are_damage(tmp_path):
    read, report, _ = values(tmp_path, ["950", "1,020", "1,02"] + ["5.5"] * 30, 'thousands = ","')
    assert read[:4] == [950, 1020, None, 5.5] and report.rows_quarantined == 1


def test_relative_times_rules_durations_and_labels_have_the_same_numbers(tmp_path):
    mapping = TABLE.replace('{ column = "time" }', '{ column = "hours", unit = "hours" }').replace(
        'column = "value" }', 'column = "value", keep = ["quality >= 0.8"] }'
    )
    mapping += """
[[labels]]
files = "people.txt"
person = { column = "who" }
KEYS
columns = { weight = "weight", town = "town" }
[[events]]
files = "naps.txt"
person = { column = "who" }
KEYS
time = { column = "hours", unit = "hours" }
kind = "sleep"
name = "nap"
duration = "length"
"""
    files = {
        "a.csv": "hours;value;quality\n0;950;1\n0,05;1.020;0,9\n0,1;5;0,7\n",
        "people.txt": "who;weight;town\na;1.071,5;Ulm\n",
        "naps.txt": "who;hours;length\na;0,5;10,5\n",
    }
    with pytest.raises(UserError, match=r"column '\w+' has decimal commas"):
        values(tmp_path, [], mapping=mapping, extra=files)
    keys = 'decimal = ","\nthousands = "."'
    _, report, window = values(tmp_path, [], keys, mapping=mapping, extra=files)
    seen = {int(at): float(window.values[at, 0]) for at in np.flatnonzero(window.observed[:, 0])}
    assert seen == {0: 950, 3: 1020} and report.invalid["activity_count"] == 1
    assert window.labels == {"weight": 1071.5, "town": "Ulm"}
    assert [(event.start, event.end) for event in window.events] == [(30, 40.5)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("scale = nan", r"m\.toml:8: tables\[0\]\.channels\.activity_count\.scale is nan, expected a finite number"),
        ("scale = -inf", r"m\.toml:8: .*activity_count\.scale is -inf, expected a finite number"),
        ("offset = nan", r"m\.toml:8: .*activity_count\.offset is nan, expected a finite number"),
        ("scale = 0", r"m\.toml:8: .*activity_count\.scale is 0, which would make all values equal"),
    ],
)
def test_a_scale_that_loses_a_channel_is_refused(tmp_path, keys, message):
    mapping = TABLE.replace('column = "value" }', f'column = "value", {keys} }}')
    with pytest.raises(UserError, match=message):
        values(tmp_path, ["1"], mapping=mapping)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('thousands = "."', r"m\.toml:\d+: tables\[0\]\.thousands is '\.', which is the decimal mark"),
        ("period_minutes = nan", r"m\.toml:6: tables\[0\]\.period_minutes is nan"),
    ],
)
def test_marks_and_periods_that_mean_nothing_are_refused(tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        values(tmp_path, ["1"], keys)
