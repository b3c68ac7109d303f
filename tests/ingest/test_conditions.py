"""`keep` rules: what each means for columns of every type, and where a rule that cannot mean anything is at fault."""

import datetime as dt
import re

import numpy as np
import polars as pl
import pytest

from lsm_jax.errors import UserError
from lsm_jax.ingest.mapping.conditions import RuleFault, parse_condition
from tests.ingest.test_table import WIDE, ingest

ROWS = [  # quality (numbers as text), state, worn, the second column of numbers
    ("9", "awake", "True", "1"),
    ("40", "rem", "false", "2"),
    ("100.0", "deep sleep", "yes", "3"),
    ("", "", "", ""),
    ("err", "rem", "maybe", "4"),
]
MEANINGS = {
    "quality > 40": [2],
    "quality == 40": [1],
    "quality == '40'": [1],
    "quality != 40": [0, 2, 3],
    "9 <= quality < 100": [0, 1],
    "100 >= quality": [0, 1, 2],
    "quality in [9, 100]": [0, 2],
    "quality > 9 and state == 'rem'": [1],
    "quality > 50 or state == 'rem'": [1, 2, 4],
    "state == 'awake' or quality > 9 and two == 3": [0, 2],
    "(state == 'awake' or quality > 9) and two == 3": [2],
    "state in ['rem', 'deep sleep']": [1, 2, 4],
    "state not in ['rem', 'deep sleep']": [0, 3],
    "not (state == 'rem')": [0, 2, 3],
    "not quality > 40": [0, 1],
    "not (quality == 40)": [0, 2, 3],
    "worn == True": [0, 2],
    "worn == false": [1],
    "worn != true": [1, 3],
    "`two` >= 2 AND not worn == true": [1],
    'state != "rem"': [0, 2, 3],
    "quality > -1e3": [0, 1, 2],
}


def kept(tmp_path, rule, frame, name="a.csv"):
    """The minutes that pass, and the report."""
    frame = frame.with_columns(who=pl.lit("a"), hr=60, when=pl.Series(range(len(frame))) * 60 + 1714521600)
    content = frame if name.endswith("parquet") else frame.write_csv()
    mapping = WIDE.replace("*.csv", name).replace('"when" }', '"when", formats = ["unix_s"] }')
    mapping = mapping.replace("[tables.channels]", f'keep = ["""{rule}"""]\n[tables.channels]')
    windows, report = ingest(tmp_path, mapping, {name: content})
    if report.files_set_aside:
        return [], report
    minutes = [int(minute) for window in windows["a"] for minute in np.flatnonzero(window.observed[:, 0])]
    assert report.invalid["heart_rate"] == len(frame) - len(minutes)
    return minutes, report


@pytest.mark.parametrize("rule", MEANINGS)
def test_rules_mean_what_they_say(tmp_path, rule):
    frame = pl.DataFrame(ROWS, schema=["quality", "state", "worn", "two"], orient="row")
    assert kept(tmp_path, rule.replace('"', "'"), frame)[0] == MEANINGS[rule]


def test_columns_with_a_type_are_compared_by_it(tmp_path):
    frame = pl.DataFrame(
        {
            "n": [1.0, float("nan"), None, 40.0],
            "i": [1, 2, None, 4],
            "ok": [True, False, None, True],
            "day": dt.date(2024, 1, 1),
        }
    )
    for rule, minutes in {
        "n > 9": [3],
        "n <= 40": [0, 3],
        "n != 40": [0, 1, 2],
        "ok == 1": [0, 3],
        "i in [1, 2]": [0, 1],
    }.items():
        assert kept(tmp_path, rule, frame, "a.parquet")[0] == minutes
    for rule, fault in {
        "n == '40'": "Write numbers without",
        "ok != 'true'": "Write true or false",
        "day > 3": "cannot compare",
    }.items():
        _, report = kept(tmp_path, rule, frame, "a.parquet")
        assert re.search(rf"a\.parquet: column '\w+' holds .*tables\[0\].*{fault}", report.files_set_aside[0])


def test_a_column_without_a_cell_of_the_kind_is_said(tmp_path):
    frame = pl.DataFrame({"state": ["good", "bad", ""]})
    minutes, report = kept(tmp_path, "state > 3", frame)
    assert minutes == []
    assert report.notes == [
        "a.csv: lines 2 to 4 have no number in column 'state', with which the rule 'state > 3' of tables[0] compares: "
        "none of them passes."
    ]


def test_columns_named_by_position_and_names_with_blanks(tmp_path):
    frame = pl.DataFrame({"Wear time (h)": [1, 5], "é": [1, 2]})
    assert kept(tmp_path, "`Wear time (h)` > 3 and é == 2", frame)[0] == [1]
    assert parse_condition("`1` == 2").columns == ("1",)


FAULTS = {
    "hr > '40'": "at character 6: text has no order; write 40 without quotes to compare numbers",
    "'high' < hr": "at character 1: text has no order; use ==, != or in",
    "ok >= true": "at character 7: true has no order",
    "a = 3": "at character 3: write == for =",
    "a > 1 && b > 1": "at character 7: write and for &&",
    "state == awake": "at character 10: found 'awake', expected a number, true, false or text in quotes",
    "Wear time > 3": "at character 6: found 'time', expected a comparison .*backticks",
    "a > 0,8": "at character 6: found ',', .*decimals have a point",
    "a > 1 and": "at character 10: the rule ends",
    "1 == 5": "at character 1: 1 is compared with no column; column 1 is written `1`",
    "a in (1, 2)": r"at character 6: found '\(', expected a list",
    "a in []": r"at character 7: found '\]'",
    "sum(a) > 3": r"at character 4: found '\('",
    "a == 'x": "at character 6: the quote ' is not closed",
    "a > 40bpm": "at character 5: '40bpm' cannot be read",
    "a > 1e999": "at character 5: 1e999 is too large",
    "__import__('os').system('x')": r"at character 17: '\.' cannot be read",
    "": "at character 1: the rule ends",
    "(" * 10000 + "a > 1": "at character 21: nested more than 20 deep",
    "not " * 10000 + "a > 1": "nested more than 20 deep",
}


@pytest.mark.parametrize("rule", FAULTS, ids=range(len(FAULTS)))
def test_what_is_no_rule_is_refused_with_its_place(rule):
    with pytest.raises(RuleFault, match=FAULTS[rule]):
        parse_condition(rule)


def test_the_file_and_section_of_a_faulty_rule_are_named(tmp_path):
    mapping = WIDE.replace('"hr" }', """"hr", keep = ["hr > 1", "hr > '40'"] }""")
    with pytest.raises(
        UserError, match=r"m\.toml:7: tables\[0\]\.channels\.heart_rate\.keep\[1\] is .* at character 6"
    ):
        ingest(tmp_path, mapping, {"a.csv": "who,when,hr\n"})
