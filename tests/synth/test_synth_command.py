"""`lsm synth` end to end: dataset, ground truth beside it, refusals."""

import json

import numpy as np
import pytest

from lsm_jax.cli.main import main
from lsm_jax.data.store import open_dataset


def test_writes_a_dataset_and_its_ground_truth_elsewhere(tmp_path, capsys):
    out, truth = tmp_path / "synth", tmp_path / "truth"
    arguments = ["synth", "--people", "5", "--days", "2", "--out", str(out), "--ground-truth", str(truth)]
    assert main(arguments) == 0
    assert "10 person-days" in capsys.readouterr().out
    dataset, complete = open_dataset(out), open_dataset(truth)
    total = 0
    for split in ("train", "validation", "test"):
        source, full = dataset.source(split), complete.source(split)
        assert source.participants == full.participants
        total += len(source)
        for position in range(len(source)):
            recorded, known = source[position], full[position]
            assert known.observed.all() and not recorded.observed.all()
            assert (recorded.start, recorded.labels) == (known.start, known.labels)
            scale = known.values.std(axis=0)[None] + 1e-3
            difference = np.abs(recorded.values - known.values) / scale
            assert difference[recorded.observed].max() < 0.01  # both are stored in 14 bits
    assert total == 10
    assert json.loads((out / "synth.json").read_text())["synth"]["people"] == 5


@pytest.mark.parametrize("place", ["synth", "synth/truth", "."])
def test_ground_truth_inside_the_dataset_is_refused(tmp_path, capsys, place):
    out = tmp_path / "synth"
    arguments = ["synth", "--people", "2", "--days", "1", "--out", str(out), "--ground-truth", str(tmp_path / place)]
    assert main(arguments) == 2
    assert "--ground-truth" in capsys.readouterr().err and not out.exists()


def test_a_place_of_the_ground_truth_that_is_taken_is_refused_before_anything_is_written(tmp_path, capsys):
    out, truth = tmp_path / "synth", tmp_path / "truth"
    truth.mkdir()
    (truth / "notes.txt").touch()
    arguments = ["synth", "--people", "2", "--days", "1", "--out", str(out), "--ground-truth", str(truth)]
    assert main(arguments) == 2
    assert f"{truth} exists and is not a dataset; choose another --ground-truth." in capsys.readouterr().err
    assert not out.exists()


def test_no_people_is_refused(tmp_path, capsys):
    assert main(["synth", "--people", "0", "--days", "1", "--out", str(tmp_path / "synth")]) == 2
    assert "--people 0" in capsys.readouterr().err
