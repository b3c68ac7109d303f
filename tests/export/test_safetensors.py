import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_run import CHANNELS, MINUTES, perturbed, tiny_config, tiny_dataset, tiny_run

from lsm_jax.config import with_changes
from lsm_jax.data.spec import data_spec
from lsm_jax.errors import RunError, UserError
from lsm_jax.export.card import card_of
from lsm_jax.export.check import check_windows
from lsm_jax.export.folder import export_run
from lsm_jax.export.safetensors import check_export, load_exported
from lsm_jax.objectives import build
from lsm_jax.report.render import model_card
from lsm_jax.train.run import Run
from lsm_jax.train.workdir import write_data, write_trained_on


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("private-place") / "tiny")


@pytest.fixture(scope="module")
def run(dataset):
    return tiny_run(dataset.path)


@pytest.fixture(scope="module")
def exported(run, dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("workdir")
    write_data(workdir, [dataset])
    write_trained_on(workdir, [dataset])
    out = workdir / "export" / "safetensors"
    export_run(run, workdir, out, "safetensors", model_card)
    return out


@pytest.fixture
def copy(exported, tmp_path):
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_comes_back_bit_for_bit(run, exported):
    loaded = load_exported(exported)
    assert loaded.step == run.step
    assert loaded.spec.channels == CHANNELS
    for ours, theirs in zip(jax.tree.leaves(run.params), jax.tree.leaves(loaded.params), strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        assert (np.asarray(ours) == np.asarray(theirs)).all()
    assert len(check_export(run, loaded, check_windows(run))) == 2


def test_a_fresh_process_gives_the_runs_embeddings(run, exported, tmp_path):
    windows = check_windows(run)
    np.save(tmp_path / "values.npy", windows.values[:-1])  # the last one recorded nothing
    code = (
        "import sys, numpy as np, lsm_jax; encoder = lsm_jax.load(sys.argv[1]); "
        "np.save(sys.argv[3], np.asarray(encoder.embed(np.load(sys.argv[2]))))"
    )
    files = exported, tmp_path / "values.npy", tmp_path / "vectors.npy"
    subprocess.run([sys.executable, "-c", code, *map(str, files)], check=True)
    expected = run.objective.embed(run.params, windows.batch)[: len(windows.values) - 1]
    np.testing.assert_allclose(np.load(tmp_path / "vectors.npy"), expected, atol=1e-5)


def test_the_folder_needs_no_framework_and_names_no_place_and_nobody(exported, dataset):
    assert sorted(file.name for file in exported.iterdir()) == [
        "README.md", "card.json", "config.json", "model.safetensors", "spec.json",
    ]  # fmt: skip
    tensors = load_file(exported / "model.safetensors")
    assert all("/" in name for name in tensors)
    text = "".join((exported / name).read_text() for name in ("card.json", "config.json", "README.md"))
    assert "private-place" not in text
    assert not any(person in text for person in dataset.source("train").participants)


def test_the_card_says_what_is_trained_on_what(exported, run, dataset):
    card = json.loads((exported / "card.json").read_text())
    assert card["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(run.params))
    assert [channel["name"] for channel in card["channels"]] == [*CHANNELS]
    assert card["channels"][0]["unit"] == "bpm"
    (trained_on,) = card["training_data"]
    assert trained_on["name"] == "tiny"
    assert trained_on["windows"] == len(dataset.source("train"))
    assert trained_on["fingerprint"] == dataset.fingerprint
    people = sorted({*dataset.source("train").participants})
    digest = hashlib.sha256("\n".join(people).encode()).hexdigest()
    assert card["trained_on"] == {"people": len(people), "fingerprint": digest}
    assert card["evaluation"] is None
    assert card["step"] == 7
    assert "lsm evaluate" in (exported / "README.md").read_text()


def test_an_evaluation_goes_into_the_card(run, tmp_path):
    row = {
        "task": "random_imputation", "setting": "80%", "channel": "all", "baseline": "linear", "model_mse": 0.5,
        "baseline_mse": 1.0, "improvement": 0.5, "ci95": [0.4, 0.6], "windows": 10, "people": 5,
    }  # fmt: skip
    scored = {"tiny": {"windows": 10, "people": 5}}
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "generative.json").write_text(
        json.dumps(
            {"comparisons": [row], "provenance": {"step": 6, "split": "test", "max_windows": 12, "datasets": scored}}
        )
    )
    text = model_card(card_of(run, run.config, tmp_path, "safetensors") | {"sha256": {}, "checked": []})
    assert "| random_imputation | 80% | 0.500 | linear | 1.000 | +50.0% (+40.0% to +60.0%) |" in text
    assert "\n10 windows of 5 people of tiny (at most 12 windows a dataset).\n" in text
    assert "the parameters in this folder are of step 7" in text
    assert "never trained on" not in text  # nothing says whom the run was trained on
    (tmp_path / "trained_on.json").write_text('{"participants": {"tiny": ["a"]}}')
    text = model_card(card_of(run, run.config, tmp_path, "safetensors") | {"sha256": {}, "checked": []})
    assert "z-scored values on people never trained on:" in text


def test_the_card_describes_the_data_of_the_training(tmp_path):
    used, unused = tiny_dataset(tmp_path / "used", people=6), tiny_dataset(tmp_path / "unused", name="unused", people=6)
    run = tiny_run(used.path, unused.path)
    config = with_changes(run.config, {"data.weights": (1.0, 0.0), "model.encoder_from": "runs/earlier"})
    run = dataclasses.replace(run, config=config)
    write_data(tmp_path, [used, unused])
    write_trained_on(tmp_path, [used], {"of the encoder": ["somebody"]})
    before = card_of(run, config, tmp_path, "safetensors")
    assert [entry["name"] for entry in before["training_data"]] == ["tiny"] and "people" in before["training_data"][0]
    assert before["encoder_data"] == [{"name": "of the encoder", "people": 1}]
    assert "of the encoder: 1 people" in model_card(before | {"sha256": {}, "checked": []})
    shutil.rmtree(used.path)
    tiny_dataset(used.path, people=9, name="another")
    after = card_of(run, config, tmp_path, "safetensors")["training_data"]
    assert after == [{"name": "tiny", "fingerprint": used.fingerprint}]


def test_a_fine_tuned_run_is_exported_with_its_predictions(dataset, tmp_path):
    config = with_changes(
        tiny_config(dataset.path),
        {"objective.name": "supervised", "supervised.task": "sex", "supervised.classes": ("F", "M")},
    )
    spec = data_spec(config.data, [dataset])
    objective = build(config, spec)
    run = perturbed(Run(config, spec, objective, objective.init(jax.random.key(0)), 7))
    checks = export_run(run, tmp_path, tmp_path / "out", "safetensors", model_card)["checked"]
    assert [check.split(":")[0] for check in checks[1:]] == ["embed", "predict"]
    batch = check_windows(run).batch
    windows = {**batch, "spans": np.tile(np.int32([0, MINUTES]), (len(batch["values"]), 1, 1))}
    ours, theirs = (each.objective.predict(each.params, windows) for each in (run, load_exported(tmp_path / "out")))
    np.testing.assert_array_equal(ours, theirs)
    assert np.ptp(np.asarray(ours)[:, 0, 0]) > 0


def test_what_differs_is_never_exported(run, exported):
    loaded = load_exported(exported)
    changed = jax.tree.map(lambda leaf: leaf + 1e-3, loaded.params)
    with pytest.raises(RunError, match="differs"):
        check_export(run, dataclasses.replace(loaded, params=changed), check_windows(run))


def test_a_folder_in_the_way_is_refused(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(UserError, match="not an export"):
        export_run(run, tmp_path, tmp_path, "safetensors", model_card)
    assert (tmp_path / "thesis.txt").read_text() == "all my work"


def test_an_export_with_something_beside_it_is_refused(run, copy):
    (copy / ".git").mkdir()
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"\.git, notes\.txt in it would be deleted"):
        export_run(run, copy, copy, "safetensors", model_card)
    assert (copy / "notes.txt").read_text() == "mine"


def test_a_card_of_something_else_is_not_an_export(run, tmp_path):
    (tmp_path / "card.json").write_text('{"front": "Frohe Ostern"}')
    with pytest.raises(UserError, match="not an export"):
        export_run(run, tmp_path, tmp_path, "safetensors", model_card)


def test_an_export_is_replaced_through_a_link_and_kept_if_that_fails(run, copy, monkeypatch):
    link = copy.with_name(f"{copy.name}-link")
    link.symlink_to(copy)
    (copy / "README.md").write_text("earlier")
    rename = Path.rename

    def fail(source, target):
        if source.name == "export":
            raise KeyboardInterrupt
        return rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail)
        with pytest.raises(KeyboardInterrupt):
            export_run(run, copy, link, "safetensors", lambda card: "new")
    assert (copy / "README.md").read_text() == "earlier" and load_exported(copy).step == 7
    export_run(run, copy, link, "safetensors", lambda card: "new")
    assert link.is_symlink() and (copy / "README.md").read_text() == "new"
    assert not [*copy.parent.glob(f".{copy.name}*")]


def test_damage_is_named(copy):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:100], b"", whole[:-7], b"\xff" * 400):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_exported(copy)


def test_parameters_of_another_model_are_refused(copy):
    file = copy / "model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[0]
    for changed in (
        {other: tensor for other, tensor in tensors.items() if other != name},
        tensors | {name: tensors[name][..., :1]},
        tensors | {name: tensors[name].astype(np.float16)},
        tensors | {"extra/kernel": tensors[name]},
    ):
        save_file(changed, file, metadata={"format": "lsm_jax", "step": "7"})
        with pytest.raises(UserError, match="parameter"):
            load_exported(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "spec.json"])
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError):
        load_exported(copy)
