"""Zero-shot and retrieval: a model that knows is perfect, one that knows nothing is not, and what days count."""

import dataclasses
import json

import numpy as np
import pytest
from language_run import CLASSES, PROMPTS, by_classes, by_letters, knowing, language_dataset, language_run

from lsm_jax.errors import UserError
from lsm_jax.evals.days import read_days
from lsm_jax.evals.fewshot import evaluate_fewshot, few_days
from lsm_jax.evals.findings import Settings
from lsm_jax.evals.prompts import read_prompts
from lsm_jax.evals.ranking import auroc
from lsm_jax.evals.retrieval import evaluate_retrieval, search
from lsm_jax.evals.statistics import person_draws
from lsm_jax.evals.zeroshot import auroc_rows, class_directions, evaluate_zeroshot


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return language_dataset(tmp_path_factory.mktemp("data") / "logged")


@pytest.fixture(scope="module")
def run(dataset):
    return language_run(dataset.path)


@pytest.fixture
def asked(tmp_path):
    (tmp_path / "prompts.toml").write_text(PROMPTS)
    return Settings(batch_size=8, prompts=tmp_path / "prompts.toml")


def score(findings, **wanted):
    found = [row for row in findings.results if all(row[key] == value for key, value in wanted.items())]
    assert len(found) == 1, (wanted, found)
    return found[0]


def test_days_hold_what_was_logged_and_seen(dataset, run):
    source = dataset.source("test")
    days = read_days(run, source, Settings(batch_size=8), embed=False)
    assert days.examples.tolist() == list(range(len(source)))
    for place, (spoken, logged) in enumerate(zip(days.spoken, days.logged, strict=True)):
        window = source[place]
        activities = [event for event in window.events if event.kind == "activity"]
        seen = window.observed.any(axis=1)
        assert logged == {event.name for event in activities}
        assert spoken == {event.name for event in activities if seen[event.start : event.end].mean() >= 0.5}
    labels = days.labels([*CLASSES, "golf"])
    assert (labels[:, 3] == 0).all() and 0 < labels[:, 0].sum() < len(labels)
    unsure = dataclasses.replace(days, spoken=tuple(spoken - {"yoga"} for spoken in days.spoken))
    assert {*np.unique(unsure.labels(["yoga"])[~np.isnan(unsure.labels(["yoga"]))])} == {0}
    assert np.isnan(unsure.labels(["yoga"])).sum() == sum("yoga" in logged for logged in days.logged)


def test_who_knows_the_classes_scores_one(dataset, run, asked, tmp_path):
    asked.prompts.write_text("contexts = ['The wearer slept.']\n" + PROMPTS)
    knows = knowing(run, dataset.source("test"), lambda text: np.append(by_classes(text), 3.0))
    findings = evaluate_zeroshot(knows, {"logged": dataset}, asked, probes=False)
    for name in (*CLASSES, "macro"):
        found = score(findings, method="zeroshot", **{"class": name})
        assert found["score"] == 1 and found["ci95"] == [1, 1] and found["people"] >= 2
        assert score(findings, method="class_prior", **{"class": name})["score"] == 0.5
    path = findings.write(tmp_path / "new" / "zeroshot.json")
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["details"][0].keys() == {"dataset", "example", "participant", "start", "holds", "scores"}
    assert content["provenance"]["split"] == "test" and "| macro | 1.000" in path.with_suffix(".md").read_text()


def test_what_all_classes_share_is_taken_away(dataset, run, tmp_path):
    knows = knowing(run, dataset.source("test"), lambda text: np.append(by_classes(text), 3.0))
    file = tmp_path / "prompts.toml"
    for start in ("", "contexts = ['The wearer slept.', 'The wearer did some running.']\n"):
        file.write_text(start + PROMPTS)
        directions = class_directions(knows, read_prompts(file))
        shared = directions.mean(axis=0) if not start else directions[1:, 0]
        assert (np.argmax(directions, axis=1) == np.arange(3)).all()
        assert (shared < 1e-6).all()


def test_classes_left_out_of_training_have_a_mean_of_their_own(dataset, run):
    days = read_days(run, dataset.source("test"), Settings(batch_size=8), embed=False)
    scores = {"model": np.random.default_rng(0).normal(size=(len(days.examples), 3))}
    rows, left_out = auroc_rows(scores, days, CLASSES, 0, ("yoga", "running", "golf"))
    found = {row["class"]: row["score"] for row in rows if row["method"] == "model"}
    assert found["macro unseen"] == pytest.approx((found["yoga"] + found["running"]) / 2)
    assert found["macro"] == pytest.approx(sum(found[name] for name in CLASSES) / 3) and not left_out
    rows, left_out = auroc_rows({"model": np.zeros((len(days.examples), 1))}, days, ("golf",), 0, ())
    assert rows == [] and left_out == {"golf": "no day of the split shows it"}


def test_classes_are_averaged_over_the_same_draws_of_people(dataset, run):
    days = read_days(run, dataset.source("test"), Settings(batch_size=8), embed=False)
    last = days.person == days.person.max()
    # The last person's days name yoga without showing it: they do not count for it.
    spoken = tuple(held - {"yoga"} if unsure else held for held, unsure in zip(days.spoken, last, strict=True))
    logged = tuple(held | {"yoga"} if unsure else held for held, unsure in zip(days.logged, last, strict=True))
    days = dataclasses.replace(days, spoken=spoken, logged=logged)
    classes, labels = ("running", "yoga"), days.labels(("running", "yoga"))
    assert np.isnan(labels[last, 1]).all() and not np.isnan(labels[:, 0]).any()
    scores = np.random.default_rng(0).normal(size=labels.shape)
    rows, _ = auroc_rows({"model": scores}, days, classes, 0)
    weights = person_draws(int(days.person.max()) + 1, 0)[:, days.person]
    known = ~np.isnan(labels)
    each = np.array([auroc(scores[k, c], labels[k, c] > 0, weights[:, k]) for c, k in enumerate(known.T)])
    # A draw of people without a day of any class says nothing.
    means = [draw[~np.isnan(draw)].mean() for draw in each.T if not np.isnan(draw).all()]
    assert len(means) < each.shape[1]
    (macro,) = (row for row in rows if row["method"] == "model" and row["class"] == "macro")
    np.testing.assert_allclose(macro["ci95"], np.percentile(means, (2.5, 97.5)), rtol=1e-12)


def test_a_real_run_is_scored_beside_probes(dataset, run, asked):
    findings = evaluate_zeroshot(run, {"logged": dataset}, asked)
    assert {row["method"] for row in findings.results} == {
        "zeroshot",
        "linear_probe",
        "statistics_probe",
        "class_prior",
    }
    assert all(0 <= row["score"] <= 1 for row in findings.results)
    likeness = [day["scores"]["yoga"] for day in findings.details]
    again = evaluate_zeroshot(run, {"logged": dataset}, Settings(batch_size=3, prompts=asked.prompts), probes=False)
    np.testing.assert_allclose([day["scores"]["yoga"] for day in again.details], likeness, atol=2e-5)


def test_few_shots_have_each_class_and_none(dataset, run):
    findings = evaluate_fewshot(run, {"logged": dataset}, Settings(batch_size=8))
    assert {row["method"] for row in findings.results} >= {"1-shot", "5-shot", "linear_probe", "class_prior"}
    assert all(row["classes"] == 3 for row in findings.results if row["class"] == "macro")
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [0, 0], [1, np.nan]])
    chosen = few_days(labels, 1, np.random.default_rng(0))
    assert (labels[chosen] == 1).any(axis=0).all() and (labels[chosen] == 0).all(axis=1).any() and len(chosen) <= 3


def test_who_knows_the_captions_finds_them(dataset, run):
    knows = knowing(run, dataset.source("test"), by_letters)
    findings = evaluate_retrieval(knows, {"logged": dataset}, Settings(batch_size=8))
    for task in ("text_for_day", "day_for_text"):
        for what in ("R@1", "R@5", "R@10", "median rank"):
            assert score(findings, method="model", task=task, **{"class": what})["score"] == 1
    unknowing = evaluate_retrieval(run, {"logged": dataset}, Settings(batch_size=8))
    assert score(unknowing, method="model", task="day_for_text", **{"class": "R@1"})["score"] < 1


def test_search_finds_days_for_words_and_words_for_days(dataset, run):
    source, settings = dataset.source("test"), Settings(batch_size=8)
    knows = knowing(run, source, by_letters)
    texts = knows.objective.texts
    by_text, by_day = search(knows, source, settings, texts=[texts[2]], examples=[4], top=3)
    assert by_text["found"][0]["caption"] == texts[2] and by_text["found"][0]["likeness"] == 1
    assert by_day["found"][0]["caption"] == texts[4] and len(by_day["found"]) == 3
    with pytest.raises(UserError, match=r"--window 99: the split has windows 0 to 11"):
        search(knows, source, settings, examples=[99])
    with pytest.raises(UserError, match="--text is empty"):
        search(knows, source, settings, texts=[" "])
    with pytest.raises(UserError, match=r"tokens and the model reads 96"):
        search(knows, source, settings, texts=["word " * 200])
