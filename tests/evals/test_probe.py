"""The probe suite: what can be read is read, nobody is scored on what they taught, what fails is said."""

import dataclasses
import json

import jax
import numpy as np
import polars as pl
import pytest
import sklearn.metrics
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from tiny_run import CHANNELS, MINUTES, tiny_config, tiny_run, tiny_windows

from lsm_jax import objectives
from lsm_jax.config import with_changes
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.data.store import assign_splits, open_dataset, write_dataset
from lsm_jax.errors import UserError
from lsm_jax.evals import probe_network
from lsm_jax.evals.probe import METHODS, Probe
from lsm_jax.evals.probe_features import pool_spans
from lsm_jax.evals.probe_fit import Fold, linear_probe, pca_probe, person_folds, split_fold, tree_probe
from lsm_jax.evals.probe_scores import replicates
from lsm_jax.evals.probe_tasks import LoggedWindow, Task, make_tasks
from lsm_jax.evals.statistics import auroc, average_precision
from lsm_jax.objectives.pooling import TokenEmbeddings
from lsm_jax.windows import Event

SMALL = {"model.size": "1x16x2x32+1x16x2x32"}
PEOPLE, DAYS = 24, 2


def labelled_windows():
    """Days of people whose heart rate tells `group`, and whose sessions differ in skin temperature."""
    windows = list(tiny_windows(PEOPLE, DAYS))
    splits = assign_splits(window.participant for window in windows)
    for number, window in enumerate(windows):
        person = number // DAYS
        values, observed = window.values.copy(), window.observed
        values[:, 0] += 25 * (person % 2)
        events = [Event("session", name, start, start + 40) for name, start in (("calm", 0), ("tense", 180))]
        values[180:220, 2] += 3
        labels = {
            "group": ["low", "high"][person % 2],
            "same": "x",
            "town": "elsewhere" if splits[window.participant] == "test" and person % 3 == 0 else "AB"[person % 2],
            "heart": float(np.mean(values[:, 0][observed[:, 0]])),
        } | ({"rare": float(person)} if person < 3 else {})
        yield dataclasses.replace(window, values=np.where(observed, values, 0), events=tuple(events), labels=labels)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "labelled"
    write_dataset(folder, "labelled", CHANNELS, labelled_windows())
    return open_dataset(folder)


@pytest.fixture(scope="module")
def run(dataset):
    config = with_changes(tiny_config(dataset.path), SMALL)
    spec = data_spec(config.data, open_datasets(config.data))
    objective = objectives.build(config, spec)
    return dataclasses.replace(
        tiny_run(dataset.path), config=config, objective=objective, params=objective.init(jax.random.key(3))
    )


@pytest.fixture(scope="module")
def result(run, dataset):
    return Probe(batch_size=16, shots=(5, 50)).run(run, [dataset])


def value(result, task, metric, method):
    (row,) = [row for row in result.results if (row["task"], row["metric"], row["method"]) == (task, metric, method)]
    return row["value"]


def test_what_the_data_hold_is_read_and_what_they_do_not_is_not(result):
    for task in ("group", "event_session"):
        for method in ("pretrained", "engineered_linear", "engineered_trees", "pca"):
            assert value(result, task, "auroc", method) > 0.9, (task, method)
        assert value(result, task, "auroc", "class_blind") == 0.5
    assert value(result, "heart", "pearson_r", "engineered_linear") > 0.9
    assert value(result, "heart", "pearson_r", "class_blind") is None
    assert value(result, "heart", "mae", "engineered_linear") < value(result, "heart", "mae", "class_blind")
    assert {row["unit"] for row in result.results if row["task"] == "group"} == {"person"}
    assert {row["unit"] for row in result.results if row["task"] == "heart"} == {"window"}


def test_the_json_has_what_was_promised(result, tmp_path):
    content = json.loads(result.write(tmp_path).read_text(), parse_constant=lambda name: pytest.fail(f"{name}"))
    keys = {"dataset", "task", "unit", "metric", "method", "value", "ci95", "examples", "people"}
    assert all(row.keys() == keys for row in content["results"])
    assert {row["method"] for row in content["results"]} == {*METHODS, "class_blind"}
    compared = [row for row in content["comparisons"] if (row["task"], row["metric"]) == ("group", "auroc")]
    assert {row["method"]: row["difference"] for row in compared} == {
        method: value(result, "group", "auroc", "pretrained") - value(result, "group", "auroc", method)
        for method in (*METHODS[1:], "class_blind")
    }
    assert {row["shots"] for row in content["details"] if row["task"] == "group"} == {5}
    text = (tmp_path / "probe.md").read_text()
    assert "| labelled | group " in text and "pretrained is above random_encoder in" in text
    assert {"group_auroc", "heart_pearson_r", "event_session_auroc"} <= set(result.scalars())
    assert not any("mae" in name or "f1" in name for name in result.scalars())


def test_what_cannot_be_scored_is_a_sentence(result):
    notes = "\n".join(result.notes)
    assert "labelled: same: every example is 'x', so there is nothing to tell apart." in notes
    assert "labelled: rare: 3 examples of 3 people are too few; a probe takes 10 examples of 2 people." in notes
    assert "examples of 'elsewhere' are left out: no training person has it." in notes


def test_a_person_in_two_splits_refuses_the_dataset_and_the_other_is_scored(run, dataset, tmp_path):
    write_dataset(tmp_path / "mixed", "mixed", CHANNELS, labelled_windows())
    index = pl.read_parquet(tmp_path / "mixed" / "index.parquet")
    first = index.filter(pl.col("split") == "train")["participant"][0]
    twice = pl.when(pl.col("split") == "test").then(pl.lit(first)).otherwise("participant").alias("participant")
    index.with_columns(twice).write_parquet(tmp_path / "mixed" / "index.parquet")
    mixed, few = open_dataset(tmp_path / "mixed"), Probe(batch_size=16, methods=("engineered_linear",), shots=())
    result = few.run(run, [mixed, dataset])
    assert {row["dataset"] for row in result.results} == {"labelled"}
    assert "1 people are in two splits" in result.notes[1]
    with pytest.raises(UserError, match=r"no task can be scored.*1 people are in two splits"):
        few.run(run, [mixed])


def test_twice_the_same_bytes(run, dataset, tmp_path):
    suite = Probe(batch_size=16, methods=("pretrained", "engineered_trees"), folds=3, shots=())
    first, second = (suite.run(run, [dataset]).write(tmp_path / name).read_bytes() for name in "ab")
    assert first == second
    content = json.loads(first)
    (found,) = {row["people"] for row in content["results"] if row["task"] == "group"}
    assert found == PEOPLE and "3 person-grouped folds over all people" in content["notes"][0]
    assert {
        row["value"] for row in content["results"] if row["method"] == "class_blind" and row["metric"] == "auroc"
    } == {0.5}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"methods": ("pretrain",)}, "no method 'pretrain'. Did you mean 'pretrained'"),
        ({"folds": 2}, "--folds 2: give 0 for the dataset's splits, or at least 3"),
        ({"spans_per_person": -1}, "--spans-per-person -1: give a number of spans, or 0 for all"),
        ({"pooling": "meen"}, "no pooling 'meen'. Did you mean 'mean'"),
    ],
)
def test_wrong_settings_are_a_sentence(run, dataset, settings, sentence):
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        Probe(**settings).run(run, [dataset])


def test_a_network_learns_from_labels_alone(run, tmp_path, monkeypatch):
    monkeypatch.setattr(probe_network, "_STEPS", 40)
    windows = [dataclasses.replace(window, labels={}) for window in labelled_windows()]
    write_dataset(tmp_path / "events", "events", CHANNELS, windows)
    found = Probe(methods=("scratch",), shots=()).run(run, [open_dataset(tmp_path / "events")])
    assert value(found, "event_session", "auroc", "scratch") > 0.9 and not found.comparisons


def test_nobody_is_on_two_sides_of_a_fold():
    windows = [LoggedWindow.of(window, "train") for window in labelled_windows()]
    for task in make_tasks(windows)[0]:
        folds = [*person_folds(task, 4, seed=1), split_fold(task, "validation", seed=1)]
        for fold in folds:
            people = [{*task.participant[part].tolist()} for part in fold]
            assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
        assert sorted(np.concatenate([fold.test for fold in folds[:-1]])) == list(range(len(task)))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 12])
def test_someone_tunes_and_someone_teaches_however_few_they_are(count):
    splits = ["train"] * count + ["validation"] * 2
    target, places = np.arange(3.0 * len(splits)), np.arange(3 * len(splits))
    people, split = np.repeat(np.arange(len(splits)), 3).astype(str), np.repeat(splits, 3)
    task = Task("made", "span", (), target, people, split, np.zeros((len(target), 3), int), places)
    for seed in range(8):
        fold = split_fold(task, "validation", seed)
        train, tune = ({*people[part].tolist()} for part in (fold.train, fold.tune))
        assert train | tune == {*people[split == "train"].tolist()} and not train & tune
        assert len(tune) == (0 if count == 1 else 1 if count < 5 else len(tune)) and train


@pytest.mark.parametrize("probe", [linear_probe, tree_probe])
def test_a_probe_that_nobody_tunes_learns(probe):
    target = np.arange(2000) % 2.0
    places = np.arange(len(target))
    spans = np.zeros((len(target), 3), int)
    task = Task("made", "span", ("low", "high"), target, places.astype(str), places.astype(str), spans, places)
    x = target[:, None] + np.random.default_rng(0).normal(size=(2000, 1)) / 10
    scores = probe(x, task, Fold(places[:1000], places[:0], places[1000:]))
    assert scores[target[1000:] == 1, 1].mean() > 0.8 and scores[target[1000:] == 0, 1].mean() < 0.2


def test_a_note_says_that_nobody_tunes(run, tmp_path):
    write_dataset(tmp_path / "few", "few", CHANNELS, list(labelled_windows())[: 3 * DAYS])
    few = Probe(batch_size=16, split="validation", methods=("engineered_linear",), shots=())
    notes = few.run(run, [open_dataset(tmp_path / "few")]).notes
    assert any("event_session: there is one person to learn from, so nobody tunes" in note for note in notes)


def test_features_of_a_span_are_its_own_tokens_then_its_surroundings_and_its_window(run):
    grid = run.objective.tokens
    token = np.arange(grid.size)
    tokens = TokenEmbeddings(token[:, None].astype(np.float32), token, np.ones(grid.size, bool))
    minute = token // grid.groups * grid.patch_minutes
    start, end = 70, 90
    own, around = (
        token[(minute < end + more) & (minute + grid.patch_minutes > start - more)].mean() for more in (0, 60)
    )
    starts, ends = np.array([start, 0]), np.array([end, grid.window_minutes])
    found = pool_spans(tokens, starts, ends, grid, "mean")
    np.testing.assert_allclose(found, [[own, around, token.mean()], [token.mean(), np.nan, np.nan]])


def made_task(target, classes=()):
    """A task of 60 people, with a fold: 30 to fit on, 10 to tune on, 20 to score."""
    spans, places = np.zeros((60, 3), int), np.arange(60)
    task = Task("made", "person", classes, target, places.astype(str), np.full(60, "train"), spans, places)
    return task, Fold(places[:30], places[30:40], places[40:])


def test_a_probe_of_more_features_than_examples_equals_one_without_its_rotation():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 200)).astype(np.float32)
    target = x[:, 0] + rng.normal(size=60)
    task, fold = made_task(target)
    rotated = linear_probe(x, task, fold)
    wide = StandardScaler().fit(x[fold.train]).transform(x)
    expected = [
        Ridge(alpha=strength).fit(wide[:40], target[:40]).predict(wide[40:]) for strength in (1, 10, 100, 1000, 10000)
    ]
    assert min(np.abs(rotated[:, 0] - each).max() for each in expected) < 1e-3
    task, fold = made_task((target > 0).astype(float), ("low", "high"))
    rotated = linear_probe(x, task, fold)
    models = [
        LogisticRegression(C=strength, class_weight="balanced", tol=1e-8, max_iter=5000).fit(
            wide[:40], task.target[:40]
        )
        for strength in (0.0001, 0.001, 0.01, 0.1, 1)
    ]
    assert min(np.abs(rotated - model.predict_proba(wide[40:])).max() for model in models) < 1e-3


@pytest.mark.parametrize("probe", [linear_probe, pca_probe])
def test_rounding_noise_is_not_read_as_a_feature(probe):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    task, fold = made_task(x[:, 0] + rng.normal(size=60))
    noisy = np.concatenate([x, x[:, :1] * 3, 0.1 * (1 + 1e-15 * rng.normal(size=(60, 4)))], axis=1)
    again = np.concatenate([x, x[:, :1] * 3], axis=1)
    np.testing.assert_allclose(probe(noisy, task, fold), probe(again, task, fold), atol=1e-6)
    three = np.concatenate([x, x[:, :1] * 3 + 1e-9 * rng.normal(size=(60, 1))], axis=1)
    np.testing.assert_allclose(probe(three, task, fold), probe(again, task, fold), atol=1e-4)


def test_a_person_with_many_spans_keeps_some_of_them():
    windows = []
    for person, minutes in (("a", 210), ("b", 210), ("c", 40)):
        window = dataclasses.replace(next(tiny_windows(1, 1)), labels={}, participant=person)
        recorded = np.zeros_like(window.observed)
        recorded[:minutes] = True
        stages = (Event("sleep", "n2", 0, 190), Event("sleep", "rem", 190, MINUTES))
        windows.append(LoggedWindow.of(dataclasses.replace(window, observed=recorded, events=stages), "train"))
    (whole,), notes = make_tasks(windows)
    assert len(whole) == 21 + 21 + 4 and not notes
    (task,), notes = make_tasks(windows, per_person=5, seed=1)
    assert np.unique(task.participant, return_counts=True)[1].tolist() == [5, 5, 4]
    assert notes == ["stage_sleep: 14 of 46 examples are used, at most 5 of a person, drawn at random."]
    known = {tuple(span): target for span, target in zip(whole.spans.tolist(), whole.target, strict=True)}
    assert [known[tuple(span)] for span in task.spans.tolist()] == task.target.tolist()
    assert task.target.sum() == 4  # all of the rare stage, which two people have twice each
    again, other = (make_tasks(windows, per_person=5, seed=seed)[0][0].spans.tolist() for seed in (1, 2))
    assert again == task.spans.tolist() != other


def test_tasks_of_events_hold_the_minutes_that_their_names_say():
    window = dataclasses.replace(next(tiny_windows(1, 1)), labels={})
    recorded = np.ones_like(window.observed)
    stages = [Event("sleep", "n2", 0, 25.5), Event("sleep", "rem", 25.5, 100)]
    moments = [Event("session", "tag", 50, 51), Event("meal", "lunch", 65, 66)]
    logged = LoggedWindow.of(dataclasses.replace(window, observed=recorded, events=(*stages, *moments)), "train")
    tasks = {task.name: task for task in make_tasks([logged])[0]}
    assert tasks.keys() == {"stage_sleep", "detect_meal"}
    stage = tasks["stage_sleep"]
    assert stage.spans[:, 1].tolist() == list(range(0, 100, 10)) and stage.classes == ("n2", "rem")
    assert stage.target.tolist() == [0, 0, 0] + [1] * 7  # 5.5 minutes of 20 to 30 are n2
    meal = tasks["detect_meal"]
    assert meal.spans[meal.target == 1].tolist() == [[0, 60, 90]] and len(meal) == MINUTES // 30
    asleep = dataclasses.replace(logged, events=(Event("sleep", "asleep", 0, 70),))
    tasks = {task.name: task for task in make_tasks([asleep])[0]}
    assert tasks["minutes_sleep"].target.tolist() == [70]
    assert tasks["detect_sleep"].hidden == ("sleep_state",)
    assert tasks["detect_sleep"].target.tolist() == [1, 1] + [0] * 5  # of 60 to 90 it covers a third: neither


def test_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    target, scores = rng.integers(0, 3, 60), rng.random((60, 3)).round(1)
    person, ones = rng.integers(0, 9, 60), np.ones(60)
    found = {name: values[0] for name, values in replicates(scores, target.astype(float), 3, person, 0).items()}
    metrics, said = sklearn.metrics, scores.argmax(axis=1)
    each = [(target == k, scores[:, k]) for k in range(3)]
    assert found == {
        "auroc": pytest.approx(np.mean([metrics.roc_auc_score(*pair) for pair in each])),
        "average_precision": pytest.approx(np.mean([metrics.average_precision_score(*pair) for pair in each])),
        "f1": pytest.approx(metrics.f1_score(target, said, average="macro")),
        "balanced_accuracy": pytest.approx(metrics.balanced_accuracy_score(target, said)),
    }
    weights = rng.integers(0, 3, 60).astype(float)
    for ours, theirs in ((average_precision, metrics.average_precision_score), (auroc, metrics.roc_auc_score)):
        assert ours(scores[:, 0], target == 0, weights) == pytest.approx(
            theirs(target == 0, scores[:, 0], sample_weight=weights)
        )
        assert ours(scores[:, 0], target == 0, ones) == pytest.approx(theirs(target == 0, scores[:, 0]))
    numbers, predicted = rng.normal(size=60), rng.normal(size=(60, 1))
    found = replicates(predicted, numbers, 0, person, 0)
    assert found["pearson_r"][0] == pytest.approx(np.corrcoef(predicted[:, 0], numbers)[0, 1])
    assert found["mae"][0] == pytest.approx(np.abs(predicted[:, 0] - numbers).mean())
    counts = np.random.default_rng(0).multinomial(9, np.full(9, 1 / 9), size=2000)[0][person]
    repeated = np.repeat(np.arange(60), counts)
    assert found["pearson_r"][1] == pytest.approx(np.corrcoef(predicted[repeated, 0], numbers[repeated])[0, 1])
