"""Captions of a run on its page: each sentence has a verdict, and its number stands at what it speaks of."""

import re

import pytest
from language_run import by_letters, language_dataset, language_run, save_language_run, with_oracle
from pages import Page

from lsm_jax.cli.main import main
from lsm_jax.report.written_captions import written_captions

FALSE = "The wearer did some swimming between 02:00 and 02:40. Heart rate peaked at 300 bpm at 01:00. Hello there."


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return language_dataset(tmp_path_factory.mktemp("data") / "logged")


@pytest.fixture(scope="module")
def run(dataset):
    return language_run(dataset.path)


def test_true_sentences_are_called_true_and_numbered_on_the_day(dataset, run):
    source = dataset.source("test")
    days = written_captions(with_oracle(run, source, by_letters), [dataset], len(source))
    assert len(days) == len(source) and not any(person[:8] in str(days) for person in source.participants)
    for day in days:
        assert day["title"].startswith("logged · ")
        assert day["sentences"] and {verdict for _, verdict in day["sentences"]} == {"true"}
        numbers = {str(number) for number in range(1, len(day["sentences"]) + 1)}
        assert numbers <= {*re.findall(r">([^<>]+)</text>", day["picture"])}


def test_what_is_not_true_of_a_day_is_said_and_drawn_where_it_can_be(dataset, run):
    oracle = with_oracle(run, dataset.source("test"), by_letters)
    oracle.objective.texts = [FALSE] * 3
    (day,) = written_captions(oracle, [dataset], 1)
    verdicts = dict(day["sentences"])
    assert verdicts["The wearer did some swimming between 02:00 and 02:40."] == "false"
    assert verdicts["Hello there."] == "other wording"
    assert "1" in re.findall(r">([^<>]+)</text>", day["picture"])


def test_the_report_of_a_run_has_its_captions(dataset, run, tmp_path, capsys):
    save_language_run(run, tmp_path / "run")
    report = ["report", "--workdir", str(tmp_path / "run"), "--map-windows", "0", "--caption-days"]
    assert main([*report, "2"]) == 0
    page = Page((tmp_path / "run" / "report.html").read_text())
    page.assert_self_contained()
    assert "Captions of days" in page.text and page.tags.count("svg") == 2
    assert main([*report, "0"]) == 0
    assert "Captions of days" not in (tmp_path / "run" / "report.html").read_text()
    assert main([*report, "-1"]) == 2
    assert "--caption-days -1: give 0 or more" in capsys.readouterr().err
