"""The verbs that come after training, on a run as training leaves it."""

import json
import re

import polars as pl
import pytest
from tiny_run import save_run, tiny_dataset, tiny_run

from lsm_jax.cli.main import main


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", people=8)


@pytest.fixture(scope="module")
def workdir(dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    save_run(tiny_run(dataset.path, step=2), folder)
    return folder


def test_evaluate_then_report(workdir, capsys):
    command = [
        "evaluate",
        "--workdir",
        str(workdir),
        "--suite",
        "generative",
        "--max-windows",
        "2",
        "--batch-size",
        "8",
    ]
    assert main(command) == 0
    assert re.search(r"\| random_imputation +\| 80% +\| [\d*]", capsys.readouterr().out)
    content = json.loads((workdir / "eval" / "generative.json").read_text())
    assert content["provenance"]["step"] == 2
    assert content["provenance"]["max_windows"] == 2
    assert (workdir / "eval" / "figures" / "reconstruction-tiny.png").is_file()
    assert main([*command, "--curve"]) == 0
    assert (workdir / "eval" / "learning_curve.png").is_file()
    again = json.loads((workdir / "eval" / "step-2" / "generative.json").read_text())
    assert again["results"] == content["results"]
    assert main(["report", "--workdir", str(workdir), "--map-windows", "0"]) == 0
    page = (workdir / "report.html").read_text()
    assert "step 2." in page
    assert "Not evaluated yet" not in page


def test_embed(workdir, dataset, tmp_path, capsys):
    out = tmp_path / "embeddings.parquet"
    assert (
        main(["embed", "--workdir", str(workdir), "--data", str(dataset.path), "--out", str(out), "--batch-size", "4"])
        == 0
    )
    assert "24 days" in capsys.readouterr().out
    assert len(pl.read_parquet(out)) == 24
    assert len(pl.read_parquet(tmp_path / "embeddings.people.parquet")) == 8


def test_export(workdir, tmp_path, capsys):
    assert main(["export", "--workdir", str(workdir), "--format", "safetensors", "--out", str(tmp_path / "out")]) == 0
    assert "equal bit for bit" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "card.json").read_text())["step"] == 2


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["evaluate", "--workdir", "{none}"], "not the folder of a run"),
        (["evaluate", "--workdir", "{run}", "--step", "77"], "no checkpoint of step 77"),
        (["evaluate", "--workdir", "{run}", "--step", "2", "--curve"], "leave out --step or --curve"),
        (["evaluate", "--workdir", "{run}", "--max-windows", "0"], "--max-windows 0"),
        (["evaluate", "--workdir", "{run}", "--data", "{none}"], "no such dataset"),
        (["embed", "--workdir", "{run}", "--data", "{data}", "--out", "days.csv"], "ends in .parquet"),
        (["export", "--workdir", "{none}"], "not the folder of a run"),
        (["export", "--workdir", "{run}", "--out", "{file}"], "file exists and is not an export"),
        (["report", "--workdir", "{none}"], "not the folder of a run"),
    ],
)
def test_bad_input_is_a_sentence_and_code_2(command, sentence, workdir, dataset, tmp_path, capsys):
    places = {"none": tmp_path / "none", "run": workdir, "data": dataset.path, "file": tmp_path / "file"}
    places["file"].write_text("mine")
    assert main([part.format(**places) for part in command]) == 2
    assert sentence in capsys.readouterr().err
