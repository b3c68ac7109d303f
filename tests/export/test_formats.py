"""StableHLO and ONNX files of every kind of encoder, each run where this package is not."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import perturbed
from train.short_training import half_hour_dataset, short_config

from lsm_jax import objectives
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.errors import RunError, UserError
from lsm_jax.export import stablehlo
from lsm_jax.export.check import check_windows
from lsm_jax.export.folder import export_run
from lsm_jax.export.function import EmbeddingFunction
from lsm_jax.report.render import model_card
from lsm_jax.train.run import Run

onnxruntime = pytest.importorskip("onnxruntime")

_ALONE = """
import sys
import numpy as np
from jax import export
function = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.savez(sys.argv[3], **function.call(np.load(sys.argv[2])))
assert "lsm_jax" not in sys.modules and "flax" not in sys.modules
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return half_hour_dataset(tmp_path_factory.mktemp("data") / "half_hours")


def run_of(dataset, variant):
    config = short_config(dataset, "rows.windows_per_row=1", variant=variant)
    spec = data_spec(config.data, open_datasets(config.data))
    objective = objectives.build(config, spec)
    tokenizer = Tokenizer.load(dataset.with_name("tokenizer.json")) if config.language.levels else None
    params = jax.jit(objective.init)(jax.random.key(0))
    return perturbed(Run(config, spec, objective, params, 7, tokenizer=tokenizer))


@pytest.fixture(scope="module", params=["imputed_reconstruction", "coca"], ids=["lsm1", "coca"])
def exported(request, dataset, tmp_path_factory):
    run, folder = run_of(dataset, request.param), tmp_path_factory.mktemp("exports")
    for file_format in ("stablehlo", "onnx"):
        export_run(run, folder, folder / file_format, file_format, model_card)
    return run, folder


def test_the_file_gives_the_runs_embeddings_without_this_package(exported, tmp_path):
    run, folder = exported
    windows = check_windows(run)
    assert 0.2 < np.isnan(windows.values[:-1]).mean() < 0.4 and np.isnan(windows.values[-1]).all()
    np.save(tmp_path / "values.npy", windows.values)
    files = [folder / "stablehlo" / "model.stablehlo", tmp_path / "values.npy", tmp_path / "alone.npz"]
    subprocess.run([sys.executable, "-I", "-c", _ALONE, *map(str, files)], check=True)
    alone = np.load(tmp_path / "alone.npz")
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    in_onnx = dict(zip(names, session.run(None, {"values": windows.values}), strict=True))
    assert sorted(names) == sorted(alone)
    name = "text" if run.objective.compares_windows else "mean_sd"
    ours = np.asarray(run.objective.embed(run.params, jax.tree.map(np.asarray, windows.batch), name))
    np.testing.assert_allclose(alone[name], ours, atol=1e-5)
    for name in names:
        np.testing.assert_allclose(in_onnx[name], alone[name], atol=1e-5)
    assert (
        alone["observed"].shape == (len(windows.values), run.objective.tokens.size) and not alone["observed"][-1].any()
    )


def test_number_and_length_of_windows_are_free(exported):
    run, folder = exported
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    values = check_windows(run).values[:1]
    if run.config.objective.name == "imputed_reconstruction":
        assert session.get_inputs()[0].shape == ["batch", 30, 3]
        return
    assert session.get_inputs()[0].shape == ["batch", "time", 3]
    other = dataclasses.replace(run.spec, window_minutes=90)
    longer = np.concatenate([values, np.full_like(values, np.nan), values], axis=1)
    z_scores = np.nan_to_num((longer - run.spec.mean) / run.spec.sd)
    batch = {"values": z_scores, "observed": np.isfinite(longer), "window_id": np.zeros(1, np.int32)}
    ours = objectives.build(run.config, other).embed(run.params, batch, "hour")
    (found,) = session.run(["hour"], {"values": longer})
    np.testing.assert_allclose(found, ours, atol=1e-5)


def test_the_card_says_how_to_use_it(exported):
    run, folder = exported
    for file_format in ("stablehlo", "onnx"):
        card = json.loads((folder / file_format / "card.json").read_text())
        assert card["format"] == f"lsm_jax {file_format} 1" and card["objective"] == run.config.objective.name
        assert "4 windows of half_hours, 4 of them with gaps" in card["checked"][0]
        readme = (folder / file_format / "README.md").read_text()
        assert readme.startswith("---\nlibrary_name: lsm_jax\n") and f"FOLDER/model.{file_format}" in readme
        assert "Values go in as they are" in readme and "(value - mean)" not in readme


def test_the_files_name_no_place(exported):
    _, folder = exported
    files = [file for file in folder.rglob("*") if file.is_file()]
    for place in (Path(__file__).parents[2], Path(sys.prefix), Path(np.__file__).parents[1], folder):
        assert not [file for file in files if str(place).encode() in file.read_bytes()]


def test_a_window_shorter_than_the_runs_is_compared_too(dataset, tmp_path):
    run = run_of(dataset, "")
    longer = dataclasses.replace(run.spec, window_minutes=60)
    longer_run = dataclasses.replace(run, spec=longer, objective=objectives.build(run.config, longer))
    windows = check_windows(longer_run)
    assert windows.values.shape[1:] == (60, 3) and np.isnan(windows.values[:, 30:]).all()
    np.testing.assert_array_equal(np.isfinite(windows.values), windows.batch["observed"])


def test_what_differs_by_more_than_rounding_is_not_exported(dataset, tmp_path, monkeypatch):
    class Wrong(EmbeddingFunction):
        def __call__(self, values):
            return {
                name: output + 1e-4 if name == "hour" else output for name, output in super().__call__(values).items()
            }

    monkeypatch.setattr(stablehlo, "EmbeddingFunction", Wrong)
    with pytest.raises(RunError, match=r"the export's `hour` differs from the run's by up to 0\.0001\d* on 4 windows"):
        export_run(run_of(dataset, ""), tmp_path, tmp_path / "out", "stablehlo", model_card)
    assert not (tmp_path / "out").exists()


def test_windows_to_check_on_can_be_named(dataset, tmp_path):
    moved = half_hour_dataset(tmp_path / "gone")
    run = run_of(moved, "")
    shutil.rmtree(moved)
    with pytest.raises(UserError, match=r"compared with its run on real windows.*Name a dataset with --data\."):
        check_windows(run)
    assert check_windows(run, [dataset]).summary.startswith("4 windows of half_hours")
