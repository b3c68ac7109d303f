"""`lsm caption`: the file, the summary, the vocabulary, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.grammar import parse_caption
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.channels import MINUTELY_26
from lsm_jax.cli.main import main
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.report.data_card import data_card_page
from lsm_jax.synth.cohort import windows


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five people of three days: three train, one validates, one tests."""
    folder = tmp_path_factory.mktemp("data") / "cohort"
    write_dataset(folder, "cohort", MINUTELY_26, windows(5, 3))
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, make_window) -> Path:
    """A dataset of one ten-minute recording, without events."""
    folder = tmp_path_factory.mktemp("data") / "bare"
    write_dataset(folder, "bare", ["heart_rate"], [make_window({"heart_rate": [60.0] * 10})])
    return folder


def test_the_file_has_a_line_per_window(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "captions.jsonl"
    arguments = ["--level", "semantic+structural", "--split", "test", "--epoch", "2", "--seed", "1"]
    assert main(["caption", "--data", str(cohort), "--out", str(out), *arguments]) == 0
    source = open_dataset(cohort).source("test")
    captioner = Captioner(("semantic", "structural"), seed=1)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == [captioner(source[place], 2).text for place in range(len(source))]
    assert [line["example"] for line in lines] == list(range(len(source)))
    assert [line["participant"] for line in lines] == source.participants
    assert {line["level"] for line in lines} == {"semantic+structural"}
    assert [line["start"] for line in lines] == [source[place].start.isoformat() for place in range(len(source))]

    summary = json.loads((tmp_path / "new" / "captions.summary.json").read_text())
    facts = [fact for line in lines for fact in parse_caption(line["text"]).facts]
    assert sum(summary["facts"].values()) == len(facts) > 0
    assert (summary["windows"], summary["epoch"], summary["seed"]) == (len(lines), 2, 1)
    assert "3 windows" in capsys.readouterr().out


def test_without_a_file_a_few_captions_are_printed(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "--data", str(cohort), "--split", "test"]) == 0
    source = open_dataset(cohort).source("test")
    printed = " ".join(capsys.readouterr().out.split())
    texts = [Captioner()(source[place]).text for place in range(len(source))]
    assert all(" ".join(text.split()) in printed for text in texts if text)


def test_a_vocabulary_is_learnt_from_training_people_and_described_in_the_card(cohort: Path, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    command = ["caption", "--data", str(cohort), "--split", "test", "--tokenizer", str(file), "--vocabulary", "400"]
    for level in ("semantic", "statistical"):
        assert main([*command, "--level", level]) == 0
    dataset = open_dataset(cohort)
    source = dataset.source("train")
    texts = [Captioner(("statistical",))(source[place]).text for place in range(len(source))]
    lengths = Tokenizer.load(file).encode([text for text in texts if text], 64).lengths
    assert {*dataset.card["captions"]} == {"semantic", "statistical"}
    card = dataset.card["captions"]["statistical"]
    assert (card["captions"], card["vocabulary"], card["tokens"]["most"]) == (len(lengths), 400, lengths.max())
    assert card["share longer than"]["256"] == pytest.approx((lengths > 256).mean(), abs=1e-4)
    assert f'<td class="number">{lengths.max():,}</td>' in data_card_page(dataset, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "semantik"], "unknown caption level 'semantik'. Did you mean 'semantic'?"),
        (["--epoch", "-1"], "--epoch -1: give 0 or more."),
        (["--out", "captions.txt"], "name a file that ends in .jsonl."),
        (["--split", "dev"], "has no split 'dev'"),
        (["--tokenizer", "t.json", "--vocabulary", "10"], "a vocabulary of 10 tokens"),
        (["--out", "/dev/null/captions.jsonl"], "cannot be written"),
        (["--decode", "beam"], "--decode has no effect without --workdir"),
        (["--step", "3"], "--step has no effect without --workdir"),
        (["--batch-size", "4"], "--batch-size has no effect without --workdir"),
        (["--vocabulary", "400"], "--vocabulary has no effect without --tokenizer"),
    ],
)
def test_bad_input_is_refused(
    cohort: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", "--data", str(cohort), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_dataset_with_empty_captions_only_is_refused_with_reasons(
    bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "captions.jsonl"
    assert main(["caption", "--data", str(bare), "--level", "all", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "observed for half an hour" in error and "no activity, sleep, mood" in error
    assert list(tmp_path.iterdir()) == []
    assert main(["caption", "--data", str(bare), "--split", "test"]) == 2
    assert "its test split holds no window" in capsys.readouterr().err
