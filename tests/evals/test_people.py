"""Nobody is scored on whom the run has learnt from, whatever the dataset calls them now."""

import json

import pytest
from tiny_run import CHANNELS, save_run, tiny_dataset, tiny_run, tiny_windows

from lsm_jax.cli.evaluate import held_out_datasets
from lsm_jax.cli.main import main
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.errors import UserError
from lsm_jax.evals import suite
from lsm_jax.evals.suite import check_never_trained_on


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


def write_list(workdir, **participants):
    workdir.mkdir(exist_ok=True)
    (workdir / "trained_on.json").write_text(json.dumps({"participants": participants}))


def test_people_trained_on_are_counted_and_refused_whatever_their_dataset(dataset, tmp_path):
    train, (first, second) = dataset.source("train").participants, sorted({*dataset.source("test").participants})
    write_list(tmp_path, tiny=train)
    assert check_never_trained_on(tmp_path, [dataset], "test")
    write_list(tmp_path, tiny=[*train, first], other=[first])
    with pytest.raises(UserError, match=r"tiny: the run was trained on 1 of the 2 people of the test split.*--data"):
        check_never_trained_on(tmp_path, [dataset], "test")
    write_list(tmp_path, tiny=[first], other=[second])
    with pytest.raises(UserError, match="trained on 2 of the 2 people"):
        check_never_trained_on(tmp_path, [dataset], "test")


def test_a_run_without_a_list_is_scored_and_a_line_says_so(dataset, tmp_path, capsys):
    arguments = tiny_run(dataset.path), tmp_path, "test"
    assert [each.path for each in held_out_datasets(*arguments)] == [dataset.path]
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and "does not say whom the run was trained on" in printed
    write_list(tmp_path, tiny=dataset.source("train").participants)
    held_out_datasets(*arguments)
    assert capsys.readouterr().out == ""


def test_a_damaged_or_enormous_list_is_named(tmp_path, monkeypatch):
    (tmp_path / "trained_on.json").write_text('{"participants": ["a"')
    with pytest.raises(UserError, match=r"trained_on\.json is damaged"):
        check_never_trained_on(tmp_path, [], "test")
    monkeypatch.setattr(suite, "_MAX_LIST_BYTES", 8)
    with pytest.raises(UserError, match=r"trained_on\.json: 21 bytes is more"):
        check_never_trained_on(tmp_path, [], "test")


def test_every_suite_looks_first(dataset, tmp_path, capsys):
    save_run(tiny_run(dataset.path), tmp_path / "run")
    # Written anew, split by another draw, the dataset tests on someone whom the other trained on.
    write_dataset(tmp_path / "anew", "tiny", CHANNELS, tiny_windows(), seed=1)
    anew = open_dataset(tmp_path / "anew")
    write_list(tmp_path / "run", tiny=dataset.source("train").participants)
    assert {*anew.source("test").participants} & {*dataset.source("train").participants}
    for arguments in (["--suite", "generative"], ["--curve"], ["--suite", "fewshot"], ["--suite", "retrieval"]):
        assert main(["evaluate", "--workdir", str(tmp_path / "run"), "--data", str(anew.path), *arguments]) == 2
        assert "people of the test split" in capsys.readouterr().err
    arguments = ["--workdir", str(tmp_path / "run"), "--data", str(anew.path), "--prompts", "prompts.toml"]
    assert main(["zeroshot", *arguments]) == 2
    assert "people of the test split" in capsys.readouterr().err
