"""Nobody is scored on whom the run has learnt from, whatever the dataset calls them now."""

import json

import pytest
from tiny_run import CHANNELS, save_run, tiny_dataset, tiny_run, tiny_windows

from lsm_jax.cli.evaluate import check_people
from lsm_jax.cli.main import main
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.errors import UserError
from lsm_jax.evals import people
from lsm_jax.evals.people import check_never_trained_on, trained_people


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")


def told(workdir, **participants):
    workdir.mkdir(exist_ok=True)
    (workdir / "trained_on.json").write_text(json.dumps({"participants": participants}))
    return workdir


def test_people_trained_on_are_those_of_all_datasets(tmp_path):
    assert trained_people(told(tmp_path, one=["a", "b"], other=["b", "c"])) == {"a", "b", "c"}


def test_someone_trained_on_is_counted_and_refused(dataset):
    test, train = dataset.source("test"), frozenset(dataset.source("train").participants)
    check_never_trained_on(train, test, "test")
    with pytest.raises(UserError, match=r"tiny: the run was trained on 1 of the 2 people of the test split.*--data"):
        check_never_trained_on(train | {test.participants[0]}, test, "test")


def test_a_run_that_does_not_say_is_scored_and_a_line_says_so(dataset, tmp_path, capsys):
    check_people(tmp_path, [dataset], "test")
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "does not say whom the run was trained on" in said
    check_people(told(tmp_path, tiny=dataset.source("train").participants), [dataset], "test")
    assert capsys.readouterr().out == ""


def test_a_damaged_or_enormous_list_is_named(tmp_path, monkeypatch):
    (told(tmp_path) / "trained_on.json").write_text('{"participants": ["a"')
    with pytest.raises(UserError, match=r"trained_on\.json is damaged"):
        trained_people(tmp_path)
    monkeypatch.setattr(people, "_MOST_BYTES", 8)
    with pytest.raises(UserError, match=r"trained_on\.json: 21 bytes is more"):
        trained_people(tmp_path)


def test_every_suite_looks_first(dataset, tmp_path, capsys):
    save_run(tiny_run(dataset.path), tmp_path / "run")
    # Written anew, split by another draw, the dataset tests on someone whom the other trained on.
    write_dataset(tmp_path / "anew", "tiny", CHANNELS, tiny_windows(), seed=1)
    anew = open_dataset(tmp_path / "anew")
    told(tmp_path / "run", tiny=dataset.source("train").participants)
    assert {*anew.source("test").participants} & {*dataset.source("train").participants}
    for asked in (["--suite", "generative"], ["--curve"], ["--suite", "fewshot"], ["--suite", "retrieval"]):
        assert main(["evaluate", "--workdir", str(tmp_path / "run"), "--data", str(anew.path), *asked]) == 2
        assert "people of the test split" in capsys.readouterr().err
