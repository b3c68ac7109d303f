"""Runs that learn from captions: begun from LSM-2's encoder, frozen or not, and gone on with their own tokenizer."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from short_training import half_hour_dataset
from tiny_run import MINUTES, save_run, tiny_dataset, tiny_run, tiny_windows

from lsm_jax import objectives
from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.config import Config, with_changes
from lsm_jax.data.loader import Loader
from lsm_jax.data.spec import data_spec, open_datasets
from lsm_jax.errors import UserError
from lsm_jax.events import read_events
from lsm_jax.train.loop import train
from lsm_jax.train.mesh import make_mesh, to_devices
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.run import keep_normalisation, load_run, with_encoder_of
from lsm_jax.train.schedule import TrainSchedule
from lsm_jax.train.state import make_program
from lsm_jax.train.workdir import TOKENIZER, TRAINED_ON, read_trained_on, replace_text, run_captions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset, a tokenizer of its captions, and an untrained run of LSM-2 on it."""
    folder = tmp_path_factory.mktemp("language")
    tiny_dataset(folder / "data")
    captioner = Captioner(("statistical",))
    Tokenizer.train([captioner(window).text for window in tiny_windows()], 300).save(folder / "tokenizer.json")
    save_run(tiny_run(folder / "data"), folder / "lsm2")
    return folder


def configured(folder, **changes):
    return with_changes(
        Config(),
        {
            "data.paths": (str(folder / "data"),), "data.window_minutes": MINUTES, "objective.name": "coca",
            "language.levels": "statistical", "language.tokenizer": str(folder / "tokenizer.json"),
            "language.vocab_size": 300, "language.text_length": 48, "language.caption_queries": 2,
            "train.batch_size": 4, "train.duration": "2 steps", "train.log_every": "1 steps", "train.peak_flops": 1e9,
            "evaluate.batches": 1, "optimizer.warmup": "0 steps", "optimizer.schedule": "constant", **changes,
        },
    )  # fmt: skip


def program_of(config):
    spec = data_spec(config.data, open_datasets(config.data))
    return make_program(config, objectives.build(config, spec), make_mesh(config.mesh), TrainSchedule(4, 24, 2)), spec


def test_a_frozen_encoder_is_lsm2s_and_stays_so(folder, tmp_path):
    config = configured(folder, **{"model.encoder_from": str(folder / "lsm2"), "model.freeze_encoder": True})
    train(config, tmp_path / "run")
    before, after = load_run(folder / "lsm2"), load_run(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, after.params["encoder"], before.params["encoder"])
    initial = objectives.build(config, after.spec).init(jax.random.split(jax.random.key(config.seed))[0])
    assert np.abs(after.params["decoder"]["norm"]["scale"] - initial["decoder"]["norm"]["scale"]).max() > 0
    assert after.tokenizer is not None and after.tokenizer.vocabulary == 300
    # The LSM-2 run may be gone by then.
    config = with_changes(config, {"train.duration": "3 steps"})
    (folder / "lsm2").rename(folder / "moved")
    try:
        assert train(config, tmp_path / "run") == 3
    finally:
        (folder / "moved").rename(folder / "lsm2")


def test_people_of_the_encoder_are_not_held_out_from_the_run_that_starts_from_it(folder, tmp_path):
    shutil.copytree(folder / "lsm2", tmp_path / "lsm2")
    (dataset,) = open_datasets(configured(folder).data)
    people = {dataset.name: ["a"], "earlier": ["b", "c"]}
    replace_text(tmp_path / "lsm2" / TRAINED_ON, json.dumps({"participants": people}))
    config = configured(folder, **{"model.encoder_from": str(tmp_path / "lsm2")})
    train(config, tmp_path / "run")
    listed = read_trained_on(tmp_path / "run")
    own = {*dataset.source("train").participants}
    assert {*listed[dataset.name]} == {"a"} | own and listed["earlier"] == ["b", "c"]
    # They stay listed where the encoder's folder has gone.
    shutil.rmtree(tmp_path / "lsm2")
    train(with_changes(config, {"train.duration": "3 steps"}), tmp_path / "run")
    assert read_trained_on(tmp_path / "run") == listed


def test_a_run_of_coca_stopped_and_resumed_is_bit_identical(folder, tmp_path):
    config = configured(folder, **{"language.event_crop_prob": 0.5, "train.duration": "4 steps"})
    assert train(config, tmp_path / "whole") == 4
    for steps in (2, 4):
        assert train(with_changes(config, {"train.duration": f"{steps} steps"}), tmp_path / "parts") == steps
    whole, parts = load_run(tmp_path / "whole"), load_run(tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole.params, parts.params)
    losses = [[each["loss"] for each in read_metrics(run) if "loss" in each] for run in tmp_path.glob("[wp]*")]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    # Captions of more than 48 tokens are told of where the run begins, once.
    told = [each["sentence"] for each in read_events(tmp_path / "parts") if each["event"] == "captions_cut"]
    assert len(told) == 1 and "language.text_length=48" in told[0]


def test_an_encoder_that_is_not_frozen_learns(folder):
    config = configured(folder)
    program, spec = program_of(config)
    state = with_encoder_of(program.init(), str(folder / "lsm2"), config)
    encoder = jax.device_get(state.params["encoder"])
    loader = Loader(config.data, open_datasets(config.data), spec, "train", 0, 4, captions=run_captions(folder, config))
    state, metrics = program.step(state, to_devices(program.mesh, next(loader), 4))
    loader.close()
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, encoder, jax.device_get(state.params["encoder"]))
    assert moved["stack"]["norm"]["scale"] and float(metrics["text_share"]) == 1.0


def test_an_encoder_of_other_shapes_is_refused_by_name(folder):
    config = configured(folder, **{"tokens.patch_channels": 3})
    program, _ = program_of(config)
    with pytest.raises(UserError, match=r"encoder_from=.*has \(20, 96\) at patches/projection/kernel.*\(60, 96\)"):
        with_encoder_of(program.init(), str(folder / "lsm2"), config)


def test_an_encoder_of_other_settings_is_refused_with_what_to_give(folder):
    config = configured(folder, **{"model.rotary": False, "model.asinh_inputs": False})
    program, _ = program_of(config)
    with pytest.raises(UserError, match=r"give --config.model.asinh_inputs=True --config.model.rotary=True\."):
        with_encoder_of(program.init(), str(folder / "lsm2"), config)


def test_an_encoder_of_shorter_windows_is_refused_where_positions_are_learned(folder):
    config = configured(folder, **{"data.window_minutes": MINUTES // 2})
    program, _ = program_of(config)
    with_encoder_of(program.init(), str(folder / "lsm2"), config)
    longer = with_changes(config, {"data.window_minutes": 2 * MINUTES, "tokens.min_observed_share": 0.5})
    sentence = rf"give --config\.tokens\.min_observed_share=0\.0 --config\.data\.window_minutes={MINUTES}\."
    with pytest.raises(UserError, match=sentence):
        with_encoder_of(program.init(), str(folder / "lsm2"), longer)


def test_an_encoder_of_imputed_windows_is_refused_with_what_to_do(folder, tmp_path):
    run = tiny_run(folder / "data")
    lsm1 = with_changes(run.config, {"objective.name": "imputed_reconstruction"})
    save_run(dataclasses.replace(run, config=lsm1), tmp_path / "lsm1")
    config = configured(folder)
    program, _ = program_of(config)
    with pytest.raises(UserError, match=r"encoder of LSM-1 .* --suite probe --methods fine_tuned\."):
        with_encoder_of(program.init(), str(tmp_path / "lsm1"), config)


def test_values_are_normalised_as_the_encoder_knew_them(folder, tmp_path):
    half_hour_dataset(tmp_path / "data")
    config = configured(folder, **{"model.encoder_from": str(folder / "lsm2"), "data.paths": (str(tmp_path / "data"),)})
    own, pretrained = data_spec(config.data, open_datasets(config.data)), load_run(folder / "lsm2").spec
    taken = keep_normalisation(own, tmp_path, config)
    assert taken.channels == own.channels == pretrained.channels
    np.testing.assert_array_equal(taken.mean, pretrained.mean)
    assert np.abs(taken.mean - own.mean).max() > 0
    np.testing.assert_array_equal(taken.observed_share, own.observed_share)


def test_gradients_of_comparisons_are_not_accumulated(folder):
    with pytest.raises(UserError, match=r"train\.grad_accum_steps=2: objective coca compares"):
        program_of(configured(folder, **{"train.grad_accum_steps": 2}))
    program_of(configured(folder, **{"train.grad_accum_steps": 2, "objective.name": "cap"}))


def test_a_run_keeps_to_its_tokenizer(folder, tmp_path):
    config = configured(folder)
    captioner = Captioner(("semantic", "statistical"), 9)
    Tokenizer.train([captioner(window).text for window in tiny_windows(seed=3)], 290).save(tmp_path / TOKENIZER)
    with pytest.raises(UserError, match="is another tokenizer than"):
        run_captions(tmp_path, config)
    assert run_captions(tmp_path, with_changes(config, {"language.levels": ""})) is None
