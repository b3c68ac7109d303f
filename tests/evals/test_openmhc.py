import dataclasses
import json

import numpy as np
import pytest
from test_generative import with_answer
from tiny_run import MINUTES, save_run, tiny_dataset, tiny_run

from lsm_jax.cli.main import main
from lsm_jax.evals.generative import METHODS, ErrorSums
from lsm_jax.evals.openmhc import OpenMHC, skill_rows
from lsm_jax.evals.task_batches import marked_minutes
from lsm_jax.tokens.tasks import OPENMHC_SCENARIOS, Task
from lsm_jax.windows import Event


@pytest.fixture(scope="module")
def run_and_data(tmp_path_factory):
    dataset = tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", people=9, days=2)
    return with_answer(tiny_run(dataset.path), 0.0), dataset


@pytest.fixture(scope="module")
def result(run_and_data):
    run, dataset = run_and_data
    return OpenMHC(batch_size=8).run(run, [dataset])


def test_skills_are_geometric_means_of_ratios_of_absolute_errors():
    tasks = (Task("time_blocks", share=0.25), Task("signals", share=0.5))
    sums = ErrorSums(tasks, 2, ("heart_rate", "steps"), np.zeros(2), np.ones(2))
    sums.cells[:] = 10
    sums.errors[:, :, :, :, 1] = 1.0
    model = METHODS.index("model")
    sums.errors[0, :, model, :, 1] = [[0.5, 1.0], [0.125, 4.0]]
    sums.errors[1, :, model, :, 1] = [[1e9, 1.0], [1.0, 1.0]]
    sums.errors[1, 1, METHODS.index("last"), 1, 1] = 0.0  # nothing to compare with: the person is left out
    skill = {(row["task"], row["channel"], row["method"]): row["skill"] for row in skill_rows(sums, 0)}
    np.testing.assert_allclose(skill["time_blocks", "heart_rate", "model"], 1 - 0.25)
    np.testing.assert_allclose(skill["time_blocks", "steps", "model"], 1 - 2)
    np.testing.assert_allclose(skill["time_blocks", "all", "model"], 1 - np.sqrt(0.25 * 2))
    np.testing.assert_allclose(skill["signals", "heart_rate", "model"], 1 - 10)  # 1e9 is clipped to 100
    np.testing.assert_allclose(skill["overall", "all", "model"], 1 - (0.25 * 2 * 10 * 1) ** 0.25)
    assert all(value == 0 for (_, _, method), value in skill.items() if method == "last")


def test_rows_have_skills_and_empty_scenarios_are_named(result):
    totals = [row for row in result.results if row["channel"] == "all" and row["method"] == "model"]
    assert [row["task"] for row in totals] == ["random_patches", "time_blocks", "signals", "overall"]
    assert all(row["ci95_skill"][0] <= row["skill"] <= row["ci95_skill"][1] for row in totals)
    assert totals[0]["mse"] > 0
    for scenario in ("sleep_gap", "workout_gap", "intensity_failure"):
        assert any(scenario in note and "no window has" in note for note in result.notes)
    assert "overall" in result.table()
    assert result.scalars()["random_patches_50%"] == totals[0]["mse"]


def test_a_second_run_is_the_same(run_and_data, result, tmp_path):
    run, dataset = run_and_data
    again = OpenMHC(batch_size=8).run(run, [dataset])
    assert again.write(tmp_path / "a").read_bytes() == result.write(tmp_path / "b").read_bytes()


def test_channels_are_hidden_together_where_asked_to(run_and_data, tmp_path):
    """`lsm compare` advises it for runs with other tokens."""
    run, _ = run_and_data
    save_run(run, tmp_path / "run")
    command = ["evaluate", "--workdir", str(tmp_path / "run"), "--suite", "openmhc", "--mask-channels", "3"]
    assert main([*command, "--max-windows", "2", "--batch-size", "8"]) == 0
    content = json.loads((tmp_path / "run" / "eval" / "openmhc.json").read_text())
    assert content["provenance"]["mask_channels"] == 3
    tasks = {row["task"] for row in content["results"]}
    assert "random_patches" in tasks and "signals" not in tasks  # it would hide the only group of channels


def test_marks_are_sleep_workouts_and_high_heart_rates(run_and_data):
    _, dataset = run_and_data
    window = dataset.source("test")[0]
    values, observed = window.values.copy(), window.observed.copy()
    values[5, 0], observed[5, 0] = 161, True
    values[6, 0], observed[6, 0] = 161, False
    events = (
        Event("sleep", "asleep", 0, 30), Event("activity", "running", 40, 50), Event("session", "aerobic", 60, 70),
        Event("session", "stress", 80, 90), Event("meal", "lunch", 100, 110),
    )  # fmt: skip
    marked = marked_minutes(dataclasses.replace(window, values=values, observed=observed, events=events), MINUTES)
    expected = [[*range(30)], [*range(40, 50), *range(60, 70)], [5]]
    assert [np.flatnonzero(column).tolist() for column in marked.T] == expected
    assert len(OPENMHC_SCENARIOS) == 6
