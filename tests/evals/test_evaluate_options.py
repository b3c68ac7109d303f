"""Options of `lsm evaluate`: what a suite does not read is refused."""

import dataclasses

import pytest

from lsm_jax.cli.main import main
from lsm_jax.evals import SUITES, make_suite

OPTIONS = {
    "mask_channels": ["5"], "prompts": ["x.toml"], "decode": ["beam"], "methods": ["pretrained", "pca"],
    "folds": ["5"], "spans_per_person": ["3"], "pooling": ["hour"],
}  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
def test_an_option_is_read_by_every_suite_that_has_it_and_refused_by_the_others(suite, tmp_path, capsys):
    fields = {field.name for field in dataclasses.fields(make_suite(suite))}
    for name, values in OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        assert main(["evaluate", "--workdir", str(tmp_path), "--suite", suite, option, *values]) == 2
        error = capsys.readouterr().err
        assert ("not the folder of a run" if name in fields else f"{option} is for `lsm evaluate --suite ") in error


def test_the_refusal_names_the_suites_that_read_the_option(tmp_path, capsys):
    for option, suites in (("--folds", "probe or robustness"), ("--mask-channels", "generative or openmhc")):
        assert main(["evaluate", "--workdir", str(tmp_path), "--suite", "fewshot", option, "5"]) == 2
        assert f"{option} is for `lsm evaluate --suite {suites}`, not fewshot." in capsys.readouterr().err


def test_folds_score_everyone_and_no_split(tmp_path, capsys):
    command = ["evaluate", "--workdir", str(tmp_path), "--suite", "probe", "--split", "validation", "--folds"]
    assert main([*command, "5"]) == 2
    assert "--split validation: --folds 5 scores everyone" in capsys.readouterr().err
    assert main([*command, "0"]) == 2
    assert "not the folder of a run" in capsys.readouterr().err
