"""`lsm zeroshot`, `retrieve`, `caption --workdir` and the suites of `evaluate`, on a run as training leaves it."""

import dataclasses
import datetime as dt
import json
import re

import jax
import numpy as np
import polars as pl
import pytest
from language_run import CLASSES, PROMPTS, language_dataset, language_run, logged_windows, save_language_run
from tiny_run import CHANNELS, save_run, tiny_dataset, tiny_run

from lsm_jax.cli.main import main
from lsm_jax.data.store import write_dataset
from lsm_jax.export.safetensors import load_exported
from lsm_jax.train.run import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset, a sensor-text run, a run that only captions, and one of LSM-2."""
    folder = tmp_path_factory.mktemp("words")
    dataset = language_dataset(folder / "data")
    save_language_run(language_run(dataset.path), folder / "coca")
    for name in ("siglip", "cap"):
        save_language_run(language_run(dataset.path, name), folder / name)
    save_run(tiny_run(dataset.path), folder / "lsm2")
    (folder / "prompts.toml").write_text(PROMPTS)
    return folder


def on(folder, verb, *arguments, run="coca"):
    data = [] if verb == "evaluate" else ["--data", str(folder / "data")]
    return main([verb, "--workdir", str(folder / run), *data, "--batch-size", "6", *map(str, arguments)])


def test_zeroshot(folder, capsys):
    assert on(folder, "zeroshot", "--prompts", folder / "prompts.toml") == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| logged +\| auroc +\| stair climbing +\| \d\.\d{3}", printed)
    assert re.search(r"\| macro +\|", printed)
    content = json.loads((folder / "coca" / "zeroshot.json").read_text())
    assert {row["class"] for row in content["results"]} == {*CLASSES, "macro"}
    assert {*content["details"][0]["scores"]} == {*CLASSES}


@pytest.mark.parametrize("known", [True, False])
def test_classes_that_no_log_names_have_similarities(folder, known, tmp_path, capsys):
    """This is what zero-shot is for."""
    file, out = tmp_path / "prompts.toml", tmp_path / "found.json"
    classes = "[classes.running]\n" * known + "[classes.skiing]\n[classes.runing]\n"
    file.write_text('templates = ["The wearer did some {activity}."]\n' + classes)
    assert on(folder, "zeroshot", "--prompts", file, "--out", out) == 0
    printed = capsys.readouterr().out
    assert "Not scored, because no log names them: skiing, runing. Logs name running, stair climbing, yoga." in printed
    assert ("| auroc" in printed) == known and ("Nothing could be scored." in printed) != known
    content = json.loads(out.read_text())
    assert {*content["details"][0]["scores"]} == {"skiing", "runing", *(["running"] * known)}
    assert {row["class"] for row in content["results"]} == ({"running", "macro"} if known else set())


@pytest.mark.parametrize(("run", "pooling", "width"), [("coca", "", 128), ("coca", "mean", 128), ("cap", "", 128)])
def test_every_sensor_text_run_embeds(folder, run, pooling, width, tmp_path):
    out = tmp_path / "days.parquet"
    assert on(folder, "embed", "--out", out, *(["--pooling", pooling] if pooling else []), run=run) == 0
    lengths = np.linalg.norm(np.stack(pl.read_parquet(out)["embedding"].drop_nulls().to_list()), axis=1)
    assert np.allclose(lengths, 1.0, atol=1e-5) == (run == "coca" and not pooling)


def test_what_embeds_without_texts_has_no_text_space(folder, tmp_path, capsys):
    for run in ("cap", "lsm2"):
        assert on(folder, "embed", "--out", tmp_path / "days.parquet", "--pooling", "text", run=run) == 2
        assert "there is no pooling 'text'" in capsys.readouterr().err


@pytest.mark.parametrize(("run", "outputs"), [("coca", "embed embed_text generate"), ("siglip", "embed embed_text"),
                                              ("cap", "embed generate")])  # fmt: skip
def test_every_sensor_text_run_is_exported(folder, run, outputs, tmp_path, capsys):
    out = tmp_path / "export"
    assert main(["export", "--workdir", str(folder / run), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"checked: (\w+):", printed) == outputs.split()
    exported = load_exported(out)
    ours = load_run(folder / run)
    assert exported.words.to_bytes() == ours.words.to_bytes()
    jax.tree.map(np.testing.assert_array_equal, exported.params, ours.params)


def test_retrieve(folder, capsys, tmp_path):
    out = tmp_path / "new" / "found.json"
    arguments = ["--text", "The wearer slept.", "--window", "1", "--top", "2", "--out", out]
    assert on(folder, "retrieve", *arguments) == 0
    queries = json.loads(out.read_text())["queries"]
    assert [len(query["found"]) for query in queries] == [2, 2] and queries[1]["example"] == 1
    assert "The wearer slept." in capsys.readouterr().out
    assert on(folder, "retrieve") == 2
    assert "nothing to look for" in capsys.readouterr().err


def test_days_east_of_greenwich_are_found_by_their_local_date(folder, capsys, tmp_path):
    """Their midnight is the evening before in UTC, whose date was once printed."""
    offset = dt.timedelta(hours=2)
    windows = (
        dataclasses.replace(window, start=window.start - offset, utc_offset_minutes=120)
        for window in logged_windows(days=1)
    )
    write_dataset(tmp_path / "east", "east", CHANNELS, windows)
    out = tmp_path / "found.json"
    arguments = ["--text", "The wearer slept.", "--top", "1", "--data", tmp_path / "east", "--out", out]
    assert on(folder, "retrieve", *arguments, run="siglip") == 0
    assert ", 2024-03-04: " in capsys.readouterr().out
    [hit] = json.loads(out.read_text())["queries"][0]["found"]
    assert hit["start"] == "2024-03-03T22:00:00+00:00" and hit["date"] == "2024-03-04"


@pytest.mark.parametrize("decode", ["beam", "nucleus"])  # the suite below decodes greedily
def test_captions_of_a_run(folder, decode, tmp_path, capsys):
    out = tmp_path / "captions.jsonl"
    arguments = ["--split", "test", "--decode", decode, "--out", out]
    assert on(folder, "caption", *arguments) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["example"] for line in lines] == list(range(12))
    assert {(line["level"], line["step"], line["decode"]) for line in lines} == {("semantic", 7, decode)}
    assert json.loads(out.with_suffix(".summary.json").read_text())["windows"] == 12
    assert on(folder, "caption", "--level", "all") == 2
    assert "leave out --level" in capsys.readouterr().err


def test_a_seed_changes_what_a_run_draws_and_is_refused_where_it_draws_nothing(folder, tmp_path, capsys):
    texts = set()
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.jsonl"
        arguments = ["--split", "test", "--decode", "nucleus", "--seed", seed, "--out", out]
        assert on(folder, "caption", *arguments) == 0
        texts.add(out.read_text())
        assert json.loads(out.with_suffix(".summary.json").read_text())["seed"] == int(seed)
    assert len(texts) == 2
    for decode in ([], ["--decode", "beam"]):
        assert on(folder, "caption", "--seed", "1", *decode) == 2
        assert "--seed: a run draws words with --decode nucleus only" in capsys.readouterr().err


@pytest.mark.parametrize("suite", ["zeroshot", "fewshot", "retrieval", "captioning"])
def test_suites(folder, suite, capsys):
    prompts = ["--prompts", folder / "prompts.toml"] if suite == "zeroshot" else []
    assert on(folder, "evaluate", "--suite", suite, *prompts) == 0
    assert f"{suite}.json and its .md" in capsys.readouterr().out
    content = json.loads((folder / "coca" / "eval" / f"{suite}.json").read_text())
    assert content["suite"] == suite and content["provenance"]["step"] == 7
    needed = {"dataset", "method", "task", "class", "score", "ci95", "windows", "people"}
    assert all(needed <= row.keys() for row in content["results"]) and len(content["results"]) > 5
    assert "| logged " in (folder / "coca" / "eval" / f"{suite}.md").read_text()


def test_runs_that_cannot_be_scored_are_refused(folder, capsys):
    refusals = [
        ("siglip", ["caption"], "writes captions; use one of cap, coca"),
        ("lsm2", ["retrieve", "--text", "yoga"], "knows no text; use a run of configs/sensorlm.py"),
        ("lsm2", ["zeroshot", "--prompts", folder / "prompts.toml"], "knows no text"),
        ("lsm2", ["evaluate", "--suite", "captioning"], "scores runs of cap, coca, and not of masked_reconstruction"),
        ("coca", ["evaluate", "--suite", "zeroshot", "--curve"], "--curve scores every checkpoint of the generative"),
        ("coca", ["evaluate", "--suite", "captioning", "--decode", "best"], "there is no such decoding"),
        ("coca", ["zeroshot", "--prompts", folder / "coca" / "config.json"], "not TOML"),
    ]
    for run, (verb, *arguments), message in refusals:
        assert on(folder, verb, *arguments, run=run) == 2, message
        assert message in capsys.readouterr().err


def test_lsm2_has_few_shots_too(folder):
    assert on(folder, "evaluate", "--suite", "fewshot", run="lsm2") == 0


def test_a_dataset_without_activities_is_refused(folder, tmp_path, capsys):
    tiny_dataset(tmp_path / "plain")
    arguments = ["evaluate", "--workdir", folder / "coca", "--data", tmp_path / "plain", "--suite"]
    for suite, message in (
        ("zeroshot", "no prompt file in"),
        ("fewshot", "no day of its training split shows an activity"),
        ("retrieval", "only 0 days of its test split have a caption"),
    ):
        assert main([*map(str, arguments), suite]) == 2
        assert message in capsys.readouterr().err
