"""Fine-tuning: a run learns a label or the names of events, from LSM-2's encoder or none, and is scored by its head."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from tiny_run import CHANNELS, MINUTES, save_run, tiny_dataset, tiny_run, tiny_windows

from lsm_jax import objectives
from lsm_jax.config import Config, with_changes
from lsm_jax.data.loader import evaluation_batches
from lsm_jax.data.spec import data_spec
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.data.targets import Targets, with_targets
from lsm_jax.errors import UserError
from lsm_jax.evals.probe import OWN_HEAD, Probe
from lsm_jax.evals.probe_tasks import LoggedWindow, make_tasks
from lsm_jax.train.loop import train
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.run import load_run
from lsm_jax.windows import Event

PEOPLE, DAYS = 40, 2
SIZE = "1x16x2x32+1x16x2x32"


def labelled_windows():
    """Days of two groups of people, whose heart rates differ, with two kinds of sessions that differ in temperature."""
    for number, window in enumerate(tiny_windows(PEOPLE, DAYS)):
        group = number // DAYS % 2
        values = window.values.copy()
        values[:, 0] += 30 * group
        values[180:220, 2] += 3
        events = tuple(Event("session", name, start, start + 40) for name, start in (("calm", 0), ("tense", 180)))
        labels = {"group": ["low", "high"][group], "beats": 60.0 + 30 * group + number % 3, "yes": float(group)}
        yield dataclasses.replace(
            window, values=np.where(window.observed, values, 0), events=events, labels={**window.labels, **labels}
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A labelled dataset, and an untrained run of LSM-2 on other data."""
    folder = tmp_path_factory.mktemp("finetuning")
    write_dataset(folder / "data", "labelled", CHANNELS, labelled_windows())
    tiny_dataset(folder / "others")
    run = tiny_run(folder / "others")
    config = with_changes(run.config, {"model.size": SIZE})
    params = objectives.build(config, run.spec).init(jax.random.key(0))
    save_run(dataclasses.replace(run, config=config, params=params), folder / "lsm2")
    return folder


def configured(folder, task, **changes):
    return with_changes(
        Config(),
        {
            "data.paths": (str(folder / "data"),), "data.window_minutes": MINUTES, "objective.name": "supervised",
            "supervised.task": task, "model.size": SIZE, "model.encoder_from": str(folder / "lsm2"),
            "rows.windows_per_row": 2, "evaluate.every": "30 steps", "train.batch_size": 16,
            "train.duration": "60 steps",
            "train.peak_flops": 1e9, "evaluate.batches": 1, "optimizer.learning_rate": 1e-2, **changes,
        },
    )  # fmt: skip


def own_head(workdir, folder):
    """The headline score of the run's head, and its number of examples."""
    (row,) = [
        row
        for row in Probe(methods=("pretrained",), shots=())
        .run(load_run(workdir), [open_dataset(folder / "data")])
        .results
        if row["method"] == OWN_HEAD and row["metric"] in ("auroc", "pearson_r")
    ]
    return row


def test_a_frozen_encoder_stays_lsm2s_and_its_head_learns_names_of_events(folder, tmp_path):
    config = configured(folder, "event_session", **{"model.freeze_encoder": True})
    train(config, tmp_path)
    before, run = load_run(folder / "lsm2"), load_run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, run.params["encoder"], before.params["encoder"])
    assert run.config.supervised.classes == ("calm", "tense")
    row = own_head(tmp_path, folder)
    assert row["task"] == "event_session"
    assert row["value"] > 0.9
    assert train(config, tmp_path) == 60  # the classes that the run found are those of its resumption


def test_a_number_is_learnt_in_its_own_unit_and_the_encoder_with_it(folder, tmp_path):
    train(configured(folder, "beats"), tmp_path)
    before, run = load_run(folder / "lsm2"), load_run(tmp_path)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before.params["encoder"], run.params["encoder"])
    assert all(jax.tree.leaves(changed))
    assert run.config.supervised.mean == pytest.approx(76, abs=1)
    assert own_head(tmp_path, folder)["value"] > 0.9
    validation = [row["validation_mean_absolute_error"] for row in read_metrics(tmp_path) if "validation_loss" in row]
    assert validation[-1] < 0.7 * validation[0]
    dataset = open_dataset(folder / "data")
    alone = Probe(methods=(OWN_HEAD,), shots=()).run(run, [dataset])
    assert {row["method"] for row in alone.results if row["task"] == "beats"} == {OWN_HEAD, "class_blind"}
    # On folds its encoder would be scored on people whose numbers it has learnt.
    folds = Probe(methods=("pretrained",), folds=3, shots=()).run(run, [dataset])
    assert "beats" not in {row["task"] for row in folds.results}
    assert any("beats is left out: the encoder has learnt it" in note for note in folds.notes)


def test_targets_are_those_of_the_windows_and_nan_where_there_is_none(folder):
    windows = list(labelled_windows())[:3]
    windows[1] = dataclasses.replace(windows[1], labels={}, events=())
    found = Targets("group", ("high", "low"))(windows)
    np.testing.assert_array_equal(found["targets"][:, 0], [1, np.nan, 0])
    np.testing.assert_array_equal(found["spans"][0, 0], [0, MINUTES])
    found = Targets("event_session", ("calm", "tense"))(windows)
    np.testing.assert_array_equal(found["targets"][0, :3], [0, 1, np.nan])
    np.testing.assert_array_equal(found["spans"][0, :2], [[0, 40], [180, 220]])
    assert np.isnan(found["targets"][1]).all()


@pytest.mark.parametrize("task", ["beats", "group"])
def test_windows_without_the_label_leave_gradients_finite(folder, task):
    """Every gradient of a number was once NaN as soon as one window of the batch had no label."""
    datasets = [open_dataset(folder / "data")]
    config = with_targets(configured(folder, task, **{"model.encoder_from": ""}), datasets)
    objective = objectives.build(config, data_spec(config.data, datasets))
    batch, _ = next(evaluation_batches(datasets[0].source("train"), data_spec(config.data, datasets), 4))
    spans = np.tile(np.array([[[0, MINUTES]]], np.int32), (4, 1, 1))
    params = objective.init(jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda params, batch: objective.loss(params, batch, jax.random.key(1))[0]))
    for targets in ([1, 0, np.nan, 1], [np.nan] * 4):
        found = gradient(params, batch | {"spans": spans, "targets": np.array(targets, np.float32)[:, None]})
        sizes = [float(np.abs(leaf).max()) for leaf in jax.tree.leaves(found)]
        assert np.isfinite(sizes).all() and (max(sizes) > 0) == (targets[0] == 1)


def test_classes_are_those_of_the_data_card(folder):
    datasets = [open_dataset(folder / "data")]
    for task, classes in (("group", ("high", "low")), ("yes", ("0", "1")), ("event_session", ("calm", "tense"))):
        assert with_targets(configured(folder, task), datasets).supervised.classes == classes
    beats = with_targets(configured(folder, "beats"), datasets).supervised
    assert beats.classes == ()
    assert beats.sd > 10


@pytest.mark.parametrize(
    ("task", "changes", "sentence"),
    [
        ("", {}, r"supervised\.task is empty: name what to predict\. The data have .*beats.*event_session"),
        ("grup", {}, r"the data have no 'grup'\. Did you mean 'group'"),
        ("event_sleep", {}, r"Stages of sleep are spans"),
        ("group", {"objective.name": "simclr"}, r"is for fine-tuning, .* 'simclr': use configs/finetune\.py"),
        ("group", {"rows.layout": "dense"}, r"rows\.layout='dense': supervised has packed rows only"),
    ],
)
def test_a_task_that_the_data_lack_is_a_sentence(folder, tmp_path, task, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        train(configured(folder, task, **changes), tmp_path / "run")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        ([0.0, 1.0, 1.0], ("0", "1")),
        ([0.0, 1.0, 2.0], ()),
        ([1.0, "b", 2.0], "numbers beside texts"),
        ([3.0, 3.0, 3.0], "nothing can be predicted"),
    ],
)
def test_a_label_is_learnt_as_the_probe_suite_has_it(tmp_path, labels, found):
    windows = [
        dataclasses.replace(window, labels={"rating": labels[number % 3]})  # of days: each person has all
        for number, window in enumerate(tiny_windows(10, 3))
    ]
    write_dataset(tmp_path / "data", "rated", CHANNELS, windows)
    config, datasets = configured(tmp_path, "rating"), [open_dataset(tmp_path / "data")]
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            with_targets(config, datasets)
    else:
        assert with_targets(config, datasets).supervised.classes == found
        (task,), _ = make_tasks([LoggedWindow.of(window, "train") for window in windows])
        assert task.classes == found


def test_a_frozen_encoder_is_refused_where_all_parameters_are_trained(folder):
    run = tiny_run(folder / "others")
    with pytest.raises(UserError, match=r"model\.freeze_encoder: objective masked_reconstruction trains its encoder"):
        objectives.build(with_changes(run.config, {"model.freeze_encoder": True}), run.spec)


def test_an_encoder_that_is_not_pretrained_is_not_frozen(folder, tmp_path):
    changes = {"model.encoder_from": "", "model.freeze_encoder": True}
    with pytest.raises(UserError, match=r"Name the run that has one with --config\.model\.encoder_from"):
        train(configured(folder, "beats", **changes), tmp_path)
    # Runs that began so before this was refused still open.
    objectives.build(configured(folder, "beats", **changes, **{"supervised.sd": 1.0}), tiny_run(folder / "others").spec)


def test_a_head_that_has_learnt_classes_as_a_number_is_left_out(folder, tmp_path):
    run, datasets = tiny_run(folder / "others"), [open_dataset(folder / "data")]
    config = configured(folder, "yes", **{"supervised.sd": 1.0})
    objective = objectives.build(config, run.spec)
    numbers = dataclasses.replace(run, config=config, objective=objective, params=objective.init(jax.random.key(0)))
    result = Probe(methods=("pretrained",), shots=()).run(numbers, datasets)
    assert "labelled: yes: own_head is left out: it has learnt the label as a number." in result.notes
    assert OWN_HEAD not in {row["method"] for row in result.results}


def test_the_head_is_scored_where_it_has_learnt_only(folder):
    run, datasets = tiny_run(folder / "others"), [open_dataset(folder / "data")]
    with pytest.raises(UserError, match=r"--methods own_head: the run has no head"):
        Probe(methods=(OWN_HEAD,)).run(run, datasets)
