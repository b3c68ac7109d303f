"""Zero-shot and retrieval: a model that knows is perfect, one that knows nothing is not, and what days count."""

import dataclasses
import json
import re

import numpy as np
import pytest
from language_run import CLASSES, PROMPTS, by_classes, by_letters, language_dataset, language_run, with_oracle

from lsm_jax.errors import UserError
from lsm_jax.evals.classification import auroc_rows, read_labelled_days
from lsm_jax.evals.days import read_days
from lsm_jax.evals.fewshot import FewShot, draw_days
from lsm_jax.evals.prompts import read_prompts
from lsm_jax.evals.retrieval import Retrieval, retrieval_rows
from lsm_jax.evals.statistics import auroc, bootstrap
from lsm_jax.evals.zeroshot import ZeroShot, class_directions


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return language_dataset(tmp_path_factory.mktemp("data") / "logged")


@pytest.fixture(scope="module")
def run(dataset):
    return language_run(dataset.path)


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "prompts.toml").write_text(PROMPTS)
    return ZeroShot(batch_size=8, prompts=tmp_path / "prompts.toml")


def score(result, **keys):
    found = [row for row in result.results if all(row[key] == value for key, value in keys.items())]
    assert len(found) == 1, (keys, found)
    return found[0]


def test_days_hold_what_was_logged_and_seen(dataset, run):
    source = dataset.source("test")
    days = read_days(run, source, Retrieval(batch_size=8), embed=False)
    assert days.positions.tolist() == list(range(len(source)))
    for position, (captioned, logged) in enumerate(zip(days.captioned, days.logged, strict=True)):
        window = source[position]
        activities = [event for event in window.events if event.kind == "activity"]
        seen = window.observed.any(axis=1)
        assert logged == {event.name for event in activities}
        assert captioned == {event.name for event in activities if seen[event.start : event.end].mean() >= 0.5}
    labels = days.labels([*CLASSES, "golf"])
    assert (labels[:, 3] == 0).all() and 0 < labels[:, 0].sum() < len(labels)
    unsure = dataclasses.replace(days, captioned=tuple(captioned - {"yoga"} for captioned in days.captioned))
    assert {*np.unique(unsure.labels(["yoga"])[~np.isnan(unsure.labels(["yoga"]))])} == {0}
    assert np.isnan(unsure.labels(["yoga"])).sum() == sum("yoga" in logged for logged in days.logged)


def test_an_oracle_of_the_classes_scores_one(dataset, run, suite, tmp_path):
    suite.prompts.write_text("contexts = ['The wearer slept.']\n" + PROMPTS)
    oracle = with_oracle(run, dataset.source("test"), lambda text: np.append(by_classes(text), 3.0))
    result = dataclasses.replace(suite, probes=False).run(oracle, [dataset])
    for name in (*CLASSES, "macro"):
        found = score(result, method="zeroshot", **{"class": name})
        assert found["score"] == 1 and found["ci95"] == [1, 1] and found["people"] >= 2
        assert score(result, method="class_prior", **{"class": name})["score"] == 0.5
    path = result.write(tmp_path / "new")
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["details"][0].keys() == {"dataset", "example", "participant", "start", "holds", "scores"}
    assert content["provenance"]["split"] == "test"
    assert re.search(r"\| macro +\| 1\.000", path.with_suffix(".md").read_text())


def test_what_all_classes_share_is_taken_away(dataset, run, tmp_path):
    oracle = with_oracle(run, dataset.source("test"), lambda text: np.append(by_classes(text), 3.0))
    file = tmp_path / "prompts.toml"
    for start in ("", "contexts = ['The wearer slept.', 'The wearer did some running.']\n"):
        file.write_text(start + PROMPTS)
        directions = class_directions(oracle, read_prompts(file))
        shared = directions.mean(axis=0) if not start else directions[1:, 0]
        assert (np.argmax(directions, axis=1) == np.arange(3)).all()
        assert (shared < 1e-6).all()


def test_classes_left_out_of_training_have_a_mean_of_their_own(dataset, run):
    days = read_days(run, dataset.source("test"), Retrieval(batch_size=8), embed=False)
    scores = {"model": np.random.default_rng(0).normal(size=(len(days.positions), 3))}
    rows, notes = auroc_rows(scores, days, CLASSES, 0, ("yoga", "running", "golf"))
    found = {row["class"]: row["score"] for row in rows if row["method"] == "model"}
    assert found["macro unseen"] == pytest.approx((found["yoga"] + found["running"]) / 2)
    assert found["macro"] == pytest.approx(sum(found[name] for name in CLASSES) / 3) and not notes
    rows, notes = auroc_rows({"model": np.zeros((len(days.positions), 1))}, days, ("golf",), 0, ())
    assert rows == [] and notes == ["golf is left out: no day of the split shows it."]


def test_classes_are_averaged_over_the_same_draws_of_people(dataset, run):
    days = read_days(run, dataset.source("test"), Retrieval(batch_size=8), embed=False)
    last = days.person == days.person.max()
    # The last person's days name yoga without showing it: they do not count for it.
    captioned = tuple(held - {"yoga"} if unsure else held for held, unsure in zip(days.captioned, last, strict=True))
    logged = tuple(held | {"yoga"} if unsure else held for held, unsure in zip(days.logged, last, strict=True))
    days = dataclasses.replace(days, captioned=captioned, logged=logged)
    classes, labels = ("running", "yoga"), days.labels(("running", "yoga"))
    assert np.isnan(labels[last, 1]).all() and not np.isnan(labels[:, 0]).any()
    scores = np.random.default_rng(0).normal(size=labels.shape)
    rows, _ = auroc_rows({"model": scores}, days, classes, 0)
    weights = bootstrap(lambda weights: weights, days.person, 0)[1:]
    known = ~np.isnan(labels)
    each = np.array([auroc(scores[k, c], labels[k, c] > 0, weights[:, k]) for c, k in enumerate(known.T)])
    # A draw of people without a day of any class says nothing.
    means = [draw[~np.isnan(draw)].mean() for draw in each.T if not np.isnan(draw).all()]
    assert len(means) < each.shape[1]
    (macro,) = (row for row in rows if row["method"] == "model" and row["class"] == "macro")
    np.testing.assert_allclose(macro["ci95"], np.percentile(means, (2.5, 97.5)), rtol=1e-12)


def test_a_real_run_is_scored_beside_probes(dataset, run, suite):
    result = suite.run(run, [dataset])
    assert {row["method"] for row in result.results} == {
        "zeroshot",
        "linear_probe",
        "statistics_probe",
        "class_prior",
    }
    assert all(0 <= row["score"] <= 1 for row in result.results)
    similarity = [day["scores"]["yoga"] for day in result.details]
    again = dataclasses.replace(suite, batch_size=3, probes=False).run(run, [dataset])
    np.testing.assert_allclose([day["scores"]["yoga"] for day in again.details], similarity, atol=2e-5)


def test_nobody_who_is_scored_chooses_the_regularisation(dataset, run):
    for split in ("test", "validation"):
        train, tuning = read_labelled_days(run, dataset, FewShot(batch_size=8, split=split))
        groups = [{*days.participants} for days in (train, tuning)] + [{*dataset.source(split).participants}]
        assert all(groups) and len(set.union(*groups)) == sum(map(len, groups))


def test_few_shots_have_each_class_and_none(dataset, run):
    result = FewShot(batch_size=8).run(run, [dataset])
    assert {row["method"] for row in result.results} >= {"1-shot", "5-shot", "linear_probe", "class_prior"}
    assert all(row["classes"] == 3 for row in result.results if row["class"] == "macro")
    labels = np.array([[1, 0], [1, 1], [0, 1], [0, 0], [0, 0], [1, np.nan]])
    chosen = draw_days(labels, 1, np.random.default_rng(0))
    assert (labels[chosen] == 1).any(axis=0).all() and (labels[chosen] == 0).all(axis=1).any() and len(chosen) <= 3


def test_an_oracle_of_the_captions_finds_them(dataset, run):
    oracle = with_oracle(run, dataset.source("test"), by_letters)
    result = Retrieval(batch_size=8).run(oracle, [dataset])
    for task in ("text_for_day", "day_for_text"):
        for what in ("R@1", "R@5", "R@10", "median rank"):
            assert score(result, method="model", task=task, **{"class": what})["score"] == 1
    ignorant = Retrieval(batch_size=8).run(run, [dataset])
    assert score(ignorant, method="model", task="day_for_text", **{"class": "R@1"})["score"] < 1


def test_chance_is_what_random_embeddings_reach():
    """With ten texts among 200 days many days are right answers: a recall of 0.6 is chance."""
    rng = np.random.default_rng(0)
    days, texts = rng.normal(size=(2, 200, 16))
    captions = [f"text {number % 10}" for number in range(200)]
    rows, pool = retrieval_rows(days, texts, captions, np.arange(200), 0)
    assert pool == 200
    by_method = {(row["method"], row["task"], row["class"]): row["score"] for row in rows}
    for task in ("text_for_day", "day_for_text"):
        for what, expected in {"R@1": 0.1, "R@5": 0.42, "R@10": 0.66, "median rank": 7}.items():
            chance, tolerance = by_method["chance", task, what], 1.5 if what == "median rank" else 0.1
            assert chance == pytest.approx(expected, abs=0.02)
            assert by_method["model", task, what] == pytest.approx(chance, abs=tolerance)
    rows, _ = retrieval_rows(days, texts, [str(number) for number in range(200)], np.arange(200), 0)
    assert [row["score"] for row in rows[:8] if row["method"] == "chance"] == [0.005, 0.025, 0.05, 100.5]


def test_search_finds_days_for_words_and_words_for_days(dataset, run):
    source, suite = dataset.source("test"), Retrieval(batch_size=8)
    oracle = with_oracle(run, source, by_letters)
    texts = oracle.objective.texts
    by_text, by_day = suite.search(oracle, source, texts=[texts[2]], windows=[4], top=3)
    assert by_text["found"][0]["caption"] == texts[2] and by_text["found"][0]["similarity"] == 1
    assert by_day["found"][0]["caption"] == texts[4] and len(by_day["found"]) == 3
    with pytest.raises(UserError, match=r"--window 99: the split has windows 0 to 11"):
        suite.search(oracle, source, windows=[99])
    with pytest.raises(UserError, match="--text is empty"):
        suite.search(oracle, source, texts=[" "])
    with pytest.raises(UserError, match=r"tokens and the model reads 96"):
        suite.search(oracle, source, texts=["word " * 200])
