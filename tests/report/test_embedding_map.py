"""The map of embeddings: points of the test split, coloured by what is known of them, without an id."""

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
from pages import Page
from tiny_run import save_run, tiny_config, tiny_dataset, tiny_run

from lsm_jax.cli.main import main
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.errors import UserError
from lsm_jax.report.embedding_map import EmbeddedWindows, draw_maps, embed_split, tsne_positions
from lsm_jax.train.workdir import write_config, write_trained_on


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Of 25 people, five are in the test split, with three windows each, one of them without a value."""
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", people=25, empty_window=True)


def test_the_report_maps_the_test_windows_of_a_run(dataset, tmp_path):
    save_run(tiny_run(dataset.path), tmp_path / "run")
    report, file = ["report", "--workdir", str(tmp_path / "run")], tmp_path / "run" / "report.html"
    assert main(report) == 0
    assert "these people may be among them" in file.read_text() and "not trained on" not in file.read_text()
    write_trained_on(tmp_path / "run", [dataset])
    assert main(report) == 0
    page = Page(file.read_text())
    page.assert_self_contained()
    people = {*dataset.source("test").participants}
    recorded = int((dataset.source("test").observed > 0).sum())
    assert f"{recorded} windows of {len(people)} people whom the run was not trained on" in " ".join(page.text.split())
    for expected in ("t-SNE", "step 7", "By person", f"person {len(people)}", "By age", "By sex"):
        assert expected in page.text, expected
    assert "By dataset" not in page.text  # there is one
    assert not any(person[:8] in page.html for person in people)
    assert page.tags.count("svg") == 3


def test_without_a_model_or_windows_the_page_says_why(dataset, tmp_path, capsys):
    config = tiny_config(dataset.path)
    write_config(tmp_path / "run", config, data_spec(config.data, open_datasets(config.data)))
    report = ["report", "--workdir", str(tmp_path / "run"), "--map-windows"]
    assert main([*report, "9"]) == 0
    assert "No map: " in (page := (tmp_path / "run" / "report.html").read_text()) and "checkpoint" in page
    assert main([*report, "0"]) == 0
    assert "Map of the embeddings" not in (tmp_path / "run" / "report.html").read_text()
    assert main([*report, "-1"]) == 2
    assert "--map-windows -1: give 0 or more" in capsys.readouterr().err


def test_people_whom_the_run_was_trained_on_are_not_mapped(dataset, tmp_path):
    config = tiny_config(dataset.path)
    write_config(tmp_path / "run", config, data_spec(config.data, open_datasets(config.data)))
    people = sorted({*dataset.source("test").participants})
    (tmp_path / "run" / "trained_on.json").write_text(json.dumps({"participants": {"before": people[:2]}}))
    assert main(["report", "--workdir", str(tmp_path / "run")]) == 0
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert f"the run was trained on 2 of the {len(people)} people of the test split" in page.text


@pytest.mark.parametrize("noise", [0, 2e-7])
def test_a_collapsed_encoder_has_no_map(dataset, noise):
    """Embeddings that differ by rounding noise at most."""
    run = tiny_run(dataset.path)
    collapsed = copy.copy(run.objective)
    collapsed.embed = lambda params, batch, pooling="": (
        1 + noise * np.random.default_rng(0).random((len(batch["values"]), 4), np.float32)
    )
    run = dataclasses.replace(run, objective=collapsed)
    with pytest.raises(UserError, match="the encoder has collapsed"):
        embed_split(run, [dataset], 50)


def embedded(labels, groups=2):
    """Windows in groups that lie far apart, each window of another person."""
    count = len(labels)
    vectors = np.random.default_rng(0).normal(size=(count, 8)).astype(np.float32)
    vectors[:, 0] += 50 * (np.arange(count) % groups)
    people = tuple(f"p{i}" for i in range(count))
    return EmbeddedWindows(3, vectors, ("one",) * count, people, tuple(labels))


def test_similar_embeddings_lie_together():
    positions = tsne_positions(embedded([{}] * 40).vectors)
    distances = np.linalg.norm(positions[:, None] - positions, axis=-1) + 1e9 * np.eye(40)
    assert (distances.argmin(axis=1) % 2 == np.arange(40) % 2).all()


def test_classes_of_labels_are_coloured_and_counted():
    """Numbers of many values by quarters, few values each by itself, rare ones and missing ones grey."""
    labels = [{"age": float(i), "smokes": float(i % 2), "city": "abcdefghi"[i // 5]} for i in range(40)]
    labels[0] = {"city": "a"}
    pictures = dict(draw_maps(embedded(labels)))
    assert list(pictures) == ["person", "city", "age", "smokes"]

    def legend(title):
        return re.findall(r">([^<>]+)</text>", pictures[title])

    def points(title, hue):
        return len(re.findall(rf"<use [^>]*fill: var\(--{hue}\)", pictures[title])) - (hue in pictures[title])

    assert legend("smokes") == ["other or none", "0", "1"]
    assert (points("smokes", "blue"), points("smokes", "vermilion"), points("smokes", "soft")) == (19, 20, 1)
    assert legend("age") == ["other or none", "1 – 10.5", "10.5 – 20", "20 – 29.5", "29.5 – 39"]
    assert [points("age", hue) for hue in ("blue", "sky", "amber", "vermilion")] == [10, 9, 10, 10]
    assert legend("city") == ["other or none", *"abcdef"] and points("city", "soft") == 10
