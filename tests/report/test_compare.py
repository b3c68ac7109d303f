"""Score cards: values as evaluated, differences paired by person on equal cells only, and plain refusals."""

import copy
import json

import numpy as np
import pytest
from pages import Page
from run_results import evaluation, write

from lsm_jax.cli.main import main


@pytest.fixture
def people():
    return np.random.default_rng(0).uniform(0.2, 2.0, 20)


def card(tmp_path, *runs):
    assert main(["compare", *runs, "--out", str(tmp_path / "out")]) == 0
    return json.loads((tmp_path / "out" / "compare.json").read_text())


def test_a_run_that_is_better_for_everyone_is_surely_better(tmp_path, people, capsys):
    """Unpaired intervals of these runs overlap widely: people differ ten-fold, the runs by a tenth."""
    runs = (
        write(tmp_path / "first", generative=evaluation(people)),
        write(tmp_path / "b", generative=evaluation(people * 0.9)),
    )
    content = card(tmp_path, *runs)
    assert [run["windows"] for run in content["runs"]] == [320, 320]
    [line] = content["suites"][0]["lines"]
    assert line["scores"]["first"]["value"] == people.mean()
    second = line["scores"]["b"]
    np.testing.assert_allclose([second["lower_by"], *second["lower_by_ci95"]], 0.1)
    assert second["sure"] and second["paired"] == 20 and line["best"] == second["value"]
    assert "lower_by" not in line["scores"]["first"]
    text = capsys.readouterr().out
    assert f"**{0.9 * people.mean():.3f}** (+10.0%, +10.0% to +10.0%*)" in text
    assert "0.100" not in text.replace("+10", "")  # a baseline is no run
    page = Page((tmp_path / "out" / "compare.html").read_text())
    assert "+10.0%" in page.text and "masked reconstruction" in page.text


def test_a_difference_within_noise_is_not_sure(tmp_path, people):
    noise = people * np.random.default_rng(1).uniform(0.5, 1.5, 20)
    runs = write(tmp_path / "a", generative=evaluation(people)), write(tmp_path / "b", generative=evaluation(noise))
    second = card(tmp_path, *runs)["suites"][0]["lines"][0]["scores"]["b"]
    low, high = second["lower_by_ci95"]
    assert low < second["lower_by"] < high and low < 0 < high and not second["sure"]


@pytest.mark.parametrize(
    ("key", "value", "note"), [("cells", 50, "other cells"), ("split", "validation", "another split")]
)
def test_unequal_evaluations_are_not_paired(tmp_path, people, key, value, note):
    other = evaluation(people, cells=50) if key == "cells" else evaluation(people)
    if key == "split":
        other["provenance"] = other["provenance"] | {"split": value}
    runs = write(tmp_path / "a", generative=evaluation(people)), write(tmp_path / "b", generative=other)
    suite = card(tmp_path, *runs)["suites"][0]
    assert "lower_by" not in suite["lines"][0]["scores"]["b"] and suite["lines"][0]["best"] is None
    assert note in suite["notes"][0]


def mixed(phones, watches, workouts):
    """The generative suite of these people, of whom only those with watches log workouts."""
    content = evaluation([*phones, *watches])
    workout = {"task": "workout_imputation", "setting": "all", "channel": "all", "method": "model", "ci95": None}
    content["results"].append(workout | {"mse": float(np.mean(workouts)), "people": len(workouts)})
    for row, error in zip(content["by_person"][len(phones) :], workouts, strict=True):
        row["scores"]["workout_imputation all"] = [error * 10, 10]
    return content


def test_a_task_that_few_people_have_is_paired(tmp_path, people):
    phones, watches, workouts = people[:12], people[12:], people[:8]
    runs = (
        write(tmp_path / "a", generative=mixed(phones, watches, workouts)),
        write(tmp_path / "b", generative=mixed(phones, watches, workouts * 0.9)),
    )
    suite = card(tmp_path, *runs)["suites"][0]
    assert [line["scores"]["b"]["paired"] for line in suite["lines"]] == [20, 8] and not suite["notes"]
    assert suite["lines"][1]["scores"]["b"]["sure"]


def test_other_people_are_not_paired_and_none_is_best(tmp_path, people):
    """Better for those whom both scored, and far worse for the others: the run was once called surely better."""
    runs = (
        write(tmp_path / "a", generative=evaluation(people[:12])),
        write(tmp_path / "b", generative=evaluation([*people[:12] * 0.9, *people[12:] * 9])),
    )
    suite = card(tmp_path, *runs)["suites"][0]
    [line] = suite["lines"]
    assert "lower_by" not in line["scores"]["b"] and line["best"] is None
    assert "b: not known to be scored on the people of a (random_imputation 80%)" in suite["notes"][0]
    assert "best" not in {value for _, value in Page((tmp_path / "out" / "compare.html").read_text()).attributes}
    assert "**" not in (tmp_path / "out" / "compare.md").read_text()


def test_errors_of_other_units_are_not_paired(tmp_path, people):
    """The same errors in natural units are a fifth smaller where the standard deviation is larger."""
    one, two = evaluation(people), evaluation(people / 1.25)
    for content, sd in ((one, 8.0), (two, 8.0 * 1.25**0.5)):
        content["provenance"] = content["provenance"] | {"normalisation": {"heart_rate": [70.0, sd]}}
    runs = write(tmp_path / "a", generative=one), write(tmp_path / "b", generative=two)
    suite = card(tmp_path, *runs)["suites"][0]
    assert "lower_by" not in suite["lines"][0]["scores"]["b"] and suite["lines"][0]["best"] is None
    assert (
        "other units than those of a, from data of another mean or standard deviation of heart_rate"
        in suite["notes"][0]
    )


def test_the_best_captioner_writes_the_fewest_sentences_about_what_was_not_recorded(tmp_path, people):
    contents = []
    for share in (0.01, 0.6):
        content = copy.deepcopy(evaluation(people)) | {"suite": "captioning", "by_person": []}
        row = {"dataset": "a", "method": "model", "task": "truth", "class": "sentences unrecorded", "people": 9}
        contents.append(content | {"results": [row | {"score": share, "ci95": None}]})
    runs = [write(tmp_path / name, captioning=each) for name, each in zip("ab", contents, strict=True)]
    assert [line["best"] for line in card(tmp_path, *runs)["suites"][0]["lines"]] == [0.01]


def test_suites_of_other_measures_and_missing_ones(tmp_path, people):
    probe = copy.deepcopy(evaluation(people)) | {"suite": "probe", "by_person": []}
    probe["results"] = [
        {"dataset": "a", "task": "age", "metric": metric, "method": method, "value": value, "ci95": None, "people": 9}
        for metric, method, value in (("mae", "pretrained", 4.0), ("r", "pretrained", 0.5), ("r", "pca", 0.9))
    ]
    better = copy.deepcopy(probe)
    better["results"][0]["value"], better["results"][1]["value"] = 3.0, 0.7
    runs = [write(tmp_path / name, probe=content) for name, content in (("a", probe), ("b", better))]
    content = card(tmp_path, *runs, write(tmp_path / "c", generative=evaluation(people)))
    by_name = {suite["suite"]: suite for suite in content["suites"]}
    assert [(line["best"], line["lower_is_better"]) for line in by_name["probe"]["lines"]] == [
        (3.0, True),
        (0.7, False),
    ]
    assert by_name["probe"]["notes"] == ["c: not evaluated."]


def test_what_cannot_be_compared_is_said(tmp_path, people, capsys):
    good = write(tmp_path / "good", generative=evaluation(people))
    (tmp_path / "empty").mkdir()
    damaged = write(tmp_path / "damaged", generative={"suite": "generative", "results": [{}], "provenance": {}})
    for runs, sentence in (
        ([good], "at least two runs"),
        ([good, good], "named twice"),
        ([good, str(tmp_path / "empty")], "has no evaluation; run `lsm evaluate"),
        ([good, damaged], "damaged"),
    ):
        assert main(["compare", *runs, "--out", str(tmp_path / "out")]) == 2
        assert sentence in capsys.readouterr().err


def test_every_removal_of_robustness_has_a_line_with_its_drop(tmp_path, people):
    """Removals once overwrote one another, and the interval of a drop stood beside the score that was left."""
    removals = {"PPG": ("sensor", 0.05), "ACC": ("sensor", 0.3), "night": ("hours", 0.1)}

    def suite(factor):
        content = copy.deepcopy(evaluation(people)) | {"suite": "robustness", "by_person": []}
        content["results"] = [
            {"dataset": "a", "task": "age", "unit": "person", "metric": "auroc", "method": "pretrained",
             "removal": removal, "kind": kind, "full_value": 0.9, "value": 0.9 - factor * drop, "drop": factor * drop,
             "ci95": [0.0, 1.0], "people": 9}
            for removal, (kind, drop) in removals.items()
        ]  # fmt: skip
        return content

    runs = [write(tmp_path / name, robustness=suite(factor)) for name, factor in (("a", 1.0), ("b", 0.5))]
    lines = card(tmp_path, *runs)["suites"][0]["lines"]
    assert [(line["names"]["kind"], line["names"]["removal"]) for line in lines] == [
        (kind, removal) for removal, (kind, _) in removals.items()
    ]
    for line, (_, drop) in zip(lines, removals.values(), strict=True):
        assert line["measure"] == "drop" and line["lower_is_better"]
        assert [score["value"] for score in line["scores"].values()] == [drop, 0.5 * drop]
        assert line["best"] == 0.5 * drop
