"""`lsm scaling` on a grid of runs whose losses follow a law, and `launch/grid` with a stand-in for `lsm`."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pages import Page
from tiny_run import tiny_config, tiny_dataset

from lsm_jax.cli.main import main
from lsm_jax.config import with_changes
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.report.scaling import ScaledRun, scaling
from lsm_jax.train.workdir import write_config

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTHS, STEPS = (8, 16, 32, 64), 100
PEOPLE = {0.25: 4, 0.5: 7, 0.75: 10, 1.0: 14}  # people of each share of the training split


def make_run(workdir, dataset, width, share, steps=STEPS):
    """A run of 100 steps with a loss that falls with its width, share of people and step."""
    changes = {
        "model.size": f"1x{width}x2x{width}+1x{width}x2x{width}", "data.people_share": share,
        "train.duration": f"{STEPS} steps", "model.num_neighbors": 0,
    }  # fmt: skip
    config = with_changes(tiny_config(dataset.path), changes)
    write_config(workdir, config, data_spec(config.data, open_datasets(config.data)))
    records = []
    for step in range(10, steps + 1, 10):
        loss = 0.2 + 0.5 / width + 1.4 / PEOPLE[share] + 1 / step
        records.append({"step": step, "loss": loss, "useful_flops": 1e9 * width**2, "tokens_observed": 50.0})
        # Of some runs the person loss is part of the loss; laws are about the reconstruction.
        both = {"validation_loss": loss + 0.3, "validation_reconstruction_loss": loss}
        records.append({"step": step, **(both if share < 1 else {"validation_loss": loss})})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grid")
    dataset = tiny_dataset(folder / "data", people=20, days=1)
    for width, share in itertools.product(WIDTHS, PEOPLE):
        make_run(folder / "runs" / f"width={width},people_share={share}", dataset, width, share)
    make_run(folder / "runs" / "unfinished", dataset, 8, 1.0, steps=50)
    return folder / "runs"


def test_laws_frontier_and_page_of_a_grid(grid, tmp_path, capsys):
    assert main(["scaling", str(grid), "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "scaling.json").read_text())
    assert len(content["runs"]) == 16
    assert "unfinished is left out: it has taken 50 of 100 steps" in content["notes"][0]
    hours = sorted({run["data_hours"] for run in content["runs"]})
    np.testing.assert_allclose(hours, 4 * np.array([*PEOPLE.values()]))  # windows of four hours
    assert {run["tokens_seen"] for run in content["runs"]} == {5000.0}
    # Matrices of a network eight times as wide; tables of channels, which grow by the width only, are not counted.
    parameters = [run["parameters"] for run in content["runs"]]
    assert min(parameters) < 96 * 8 * 2 and max(parameters) > 25 * min(parameters)
    by_axis = {axis: [fit for fit in content["fits"] if fit["axis"] == axis] for axis in ("data_hours", "parameters")}
    assert [len(fits) for fits in by_axis.values()] == [4, 4]
    for fit in by_axis["data_hours"]:
        assert fit["law"]["b"] == pytest.approx(-1, abs=0.01)
        low, high = fit["law"]["ci95"]["b"]
        assert -1.05 < low <= high < -0.95  # nothing is off the law
    assert not any("rises" in note for note in content["notes"])
    compute, loss = ([point[name] for point in content["frontier"]] for name in ("compute", "loss"))
    assert compute == sorted(compute) and loss == sorted(loss, reverse=True)
    assert content["frontier"][-1]["run"] == "width=64,people_share=1.0"
    assert "| data hours |" in capsys.readouterr().out
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    page = Page((tmp_path / "scaling.html").read_text())
    page.assert_self_contained()
    assert page.tags.count("svg") == 3 and "width=64,people_share=1.0" in page.text
    assert "unfinished is left out" in page.text
    assert "math" not in page.text and {"20", "50"} <= {*re.findall(r">([^<>]+)</text>", page.html)}  # hours


def test_a_run_whose_last_loss_is_not_finite_is_left_out_alone(grid, tmp_path):
    """Its other losses, and those of other runs that had one on the way, still count."""
    runs = tmp_path / "runs"
    shutil.copytree(grid, runs)
    for name, step in (("width=8,people_share=1.0", 50), ("width=16,people_share=0.5", STEPS)):
        file = runs / name / "metrics.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for record in records:
            if record["step"] == step:
                record |= {key: None for key in record if key.startswith("validation")}
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert main(["scaling", str(runs), "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "scaling.json").read_text())
    notes = [note for note in content["notes"] if "not finite" in note]
    assert notes == ["width=16,people_share=0.5 is left out: its last validation loss is not finite."]
    curves = {run["name"]: run["curve"] for run in content["runs"]}
    assert len(curves) == 15 and [len(curves[f"width={width},people_share=1.0"]) for width in (8, 16)] == [9, 10]


@pytest.mark.parametrize(("people", "over"), [(1, False), (2, True)])
def test_intervals_over_people_need_two(people, over):
    """Losses that bend: the draws of one person were all alike, and the interval had no width."""
    runs = [
        ScaledRun(
            f"share={n}", "tiny", 10**5, 100.0 * n, 1e12 * n, 1e6, 10, loss, (),
            {f"a p{person}": (10 * loss * (1 + person), 10.0) for person in range(people)},
        )
        for n, loss in zip((1, 2, 3, 4), (0.9, 0.7, 0.65, 0.5), strict=True)
    ]  # fmt: skip
    content = scaling(runs, "generative/random_imputation_80%")
    frontier = "; those of the frontier are from the residuals (200 draws)."
    assert content["notes"][0] == (
        f"Intervals are over people (200 draws){frontier}" if over else "Intervals are from the residuals (200 draws)."
    )
    low, high = content["fits"][0]["law"]["ci95"]["a"]
    assert high > 1.01 * low


def test_losses_that_hardly_differ_say_nothing_about_a_law():
    losses = {1: 0.4601, 2: 0.4584, 3: 0.4612, 4: 0.4597}
    runs = [
        ScaledRun(f"share={n}", "tiny", 10**5, 100.0 * n, 1e12, 1e6, 10, loss, ((1e12, loss),), {})
        for n, loss in losses.items()
    ]
    notes = scaling(runs, "validation_loss")["notes"]
    assert "data_hours at parameters 100,000: every exponent fits, so these losses say nothing about a law." in notes


def test_scores_of_evaluations_are_drawn_by_person(grid, tmp_path, capsys):
    """Everyone's error doubles in one draw and not in another; the exponent does not depend on who is drawn."""
    assert main(["scaling", str(grid), "--score", "generative/random_imputation_80%"]) == 2
    assert "run `lsm evaluate" in capsys.readouterr().err
    people = np.random.default_rng(0).uniform(0.5, 2, 30)
    runs = tmp_path / "runs"
    shutil.copytree(grid, runs)
    for workdir in runs.iterdir():
        share = PEOPLE[json.loads((workdir / "config.json").read_text())["data"]["people_share"]]
        row = {"task": "random_imputation", "setting": "80%", "channel": "all", "method": "model"}
        scores = [{"random_imputation 80%": [float(error * share**-0.5), 1]} for error in people]
        content = {
            "suite": "generative", "provenance": {"step": STEPS, "split": "test"},
            "results": [row | {"mse": float(people.mean() * share**-0.5), "people": 30, "ci95": None}],
            "by_person": [{"dataset": "a", "participant": f"p{i}", "scores": each} for i, each in enumerate(scores)],
        }  # fmt: skip
        (workdir / "eval").mkdir()
        (workdir / "eval" / "generative.json").write_text(json.dumps(content))
    assert main(["scaling", str(runs), "--score", "generative/random_imputation_80%", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "scaling.json").read_text())
    law = next(fit["law"] for fit in content["fits"] if fit["axis"] == "data_hours")
    assert law["b"] == pytest.approx(-0.5, abs=0.1)
    assert (
        law["ci95"]["b"][1] - law["ci95"]["b"][0]
        < 0.1
        < law["ci95"]["a"][1] / law["a"] - law["ci95"]["a"][0] / law["a"]
    )
    assert any("over people" in note for note in content["notes"])

    faults = (
        ("split", "validation", "another split than the first run"),
        ("step", 50, "of step 50, and the run ends at"),
    )
    for name, changed, sentence in faults:
        file = runs / "width=64,people_share=1.0" / "eval" / "generative.json"
        content = json.loads(file.read_text())
        content["provenance"] |= {"step": STEPS, "split": "test", name: changed}
        file.write_text(json.dumps(content))
        assert main(["scaling", str(runs), "--score", "generative/random_imputation_80%", "--out", str(tmp_path)]) == 0
        notes = json.loads((tmp_path / "scaling.json").read_text())["notes"]
        assert sum(sentence in note for note in notes) == 1


def test_a_score_that_is_no_loss_is_refused(grid, tmp_path, capsys):
    """AUROC was once taken for a loss: the frontier took the lowest."""
    runs = tmp_path / "runs"
    shutil.copytree(grid, runs)
    row = {"task": "sex", "metric": "auroc", "method": "pretrained", "value": 0.8, "ci95": None, "people": 9}
    for workdir in runs.iterdir():
        (workdir / "eval").mkdir()
        content = {"suite": "probe", "provenance": {"step": STEPS}, "results": [row]}
        (workdir / "eval" / "probe.json").write_text(json.dumps(content))
    assert main(["scaling", str(runs), "--score", "probe/sex_auroc"]) == 2
    assert "has no squared error 'sex_auroc'" in capsys.readouterr().err


def launch(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(folder / "launch" / "grid"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=os.environ | environment
    )


@pytest.fixture
def stand_in(tmp_path):
    """A checkout whose `lsm` notes its arguments and fails where they name $FAIL."""
    (tmp_path / "launch").mkdir()
    shutil.copy(REPOSITORY / "launch" / "grid", tmp_path / "launch")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    lsm = tmp_path / ".venv" / "bin" / "lsm"
    lsm.write_text(
        '#!/usr/bin/env bash\necho "$*" >>calls\nmkdir -p "$(grep -o "runs/[^ ]*" <<<"$*")"\n'
        '[[ -z ${FAIL:-} || $* != *"$FAIL"* ]]\n'
    )
    lsm.chmod(0o755)
    return tmp_path


def test_the_grid_runs_each_combination_once_and_goes_on_after_a_failure(stand_in):
    axes = "runs", "configs/lsm2.py:small", "model.size=tiny,1x8x2x8+1x8x2x8", "data.people_share=0.5,1"
    options = "--evaluate", "generative", "--", "--config.train.duration=9 steps"
    dry = launch(stand_in, *axes, "--dry-run", *options)
    assert dry.stdout.count("lsm train --config configs/lsm2.py:small") == 4
    assert not (stand_in / "calls").exists()
    first = launch(
        stand_in, *axes, *options, FAIL="train --config configs/lsm2.py:small --workdir runs/size=tiny,people_share=1 "
    )
    assert first.returncode == 1
    assert "failed: size=tiny,people_share=1\n" in first.stderr
    calls = (stand_in / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["train", "evaluate", "train", *["train", "evaluate"] * 2]
    assert calls[0].endswith("--config.model.size=tiny --config.data.people_share=0.5 --config.train.duration=9 steps")
    assert launch(stand_in, *axes, *options).returncode == 0
    again = (stand_in / "calls").read_text().splitlines()[len(calls) :]
    assert [call.split()[0] for call in again] == ["train", "evaluate"]
    assert "runs/size=tiny,people_share=1 " in again[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("runs", "c.py"), "at least one KEY"),
        (("runs", "seed=1"), "name the folder"),
        (("--evalute",), "no option --evalute"),
    ],
)
def test_the_grid_says_what_it_needs(stand_in, arguments, sentence):
    finished = launch(stand_in, *arguments)
    assert finished.returncode == 2
    assert sentence in finished.stderr
