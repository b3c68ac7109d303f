"""Suites inside the training loop: the same objects and numbers as `lsm evaluate`, and early refusals."""

import json

import pytest
from tiny_run import tiny_config, tiny_dataset

from lsm_jax.cli.main import main
from lsm_jax.config import with_changes
from lsm_jax.errors import UserError
from lsm_jax.evals import SUITES, evaluators, make_suite
from lsm_jax.train.loop import train


def test_the_loop_and_lsm_evaluate_give_the_same_numbers(tmp_path):
    dataset = tiny_dataset(tmp_path / "tiny")
    config = with_changes(
        tiny_config(dataset.path),
        {
            "train.batch_size": 4, "train.duration": "4 steps", "train.ema_decay": 0.5, "checkpoint.every": "2 steps",
            "evaluate.every": "0 steps", "evaluate.suites": ("generative",), "evaluate.suites_every": "2 steps",
            "evaluate.suite_windows": 4,
        },
    )  # fmt: skip
    run = tmp_path / "run"
    train(config, run, evaluators(config))
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recorded = {line["step"]: line for line in metrics if "generative/random_imputation_80%" in line}
    assert {2, 4} <= recorded.keys()
    for step in (2, 4):
        inside = json.loads((run / "eval" / f"step-{step}" / "generative.json").read_text())
        command = ["evaluate", "--workdir", run, "--split", "validation", "--max-windows", 4, "--step", step]
        assert main([*map(str, command), "--out", str(tmp_path / "after")]) == 0
        after = json.loads((tmp_path / "after" / "generative.json").read_text())
        for table in ("results", "comparisons", "by_dataset"):
            assert inside[table] == after[table]
        (total,) = (
            row["mse"]
            for row in after["results"]
            if (row["task"], row["setting"], row["channel"], row["method"])
            == ("random_imputation", "80%", "all", "model")
        )
        assert recorded[step]["generative/random_imputation_80%"] == pytest.approx(total)


@pytest.mark.parametrize(
    ("objective", "suites", "refusal"),
    [
        ("coca", ("zero-shot",), r"there is no suite 'zero-shot'\. Did you mean 'zeroshot'"),
        ("masked_reconstruction", ("fewshot", "retrieval"), "the suite retrieval scores runs of clip, siglip, coca"),
        ("clip", ("captioning",), "the suite captioning scores runs of cap, coca, and not of clip"),
    ],
)
def test_a_suite_that_cannot_score_the_run_is_refused_before_training(objective, suites, refusal):
    config = with_changes(tiny_config(), {"objective.name": objective, "evaluate.suites": suites})
    with pytest.raises(UserError, match=refusal):
        evaluators(config)


@pytest.mark.parametrize("name", SUITES)
def test_suites_take_few_windows_of_the_validation_split(name):
    objective = make_suite(name).objectives[0]
    changes = {"objective.name": objective, "evaluate.suites": (name,), "evaluate.suite_windows": 9}
    (suite,) = evaluators(with_changes(tiny_config(), changes))
    assert (suite.name, suite.split, suite.max_windows) == (name, "validation", 9)
