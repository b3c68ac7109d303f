"""Captions beside their batches: the same for all loaders, new in each epoch, and about what the batch shows."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from random_windows import CHANNELS, random_windows

from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.tokenizer import BEGIN, END, PAD
from lsm_jax.config import LanguageConfig
from lsm_jax.data.loader import Loader, evaluation_batches
from lsm_jax.data.spec import data_spec
from lsm_jax.data.store import open_dataset, write_dataset
from lsm_jax.data.text import CaptionTokens, activity_names, check_held_out_activities
from lsm_jax.errors import UserError
from lsm_jax.objectives.sensor_language import caption_loss
from lsm_jax.windows import Event, crop


def texts(loader, captions, count=1):
    ids = np.concatenate([next(loader)["text"] for _ in range(count)])
    loader.close()
    return captions.tokenizer.decode(ids)


def test_a_batch_has_the_caption_of_each_of_its_windows(dataset, data_config, captions):
    config = data_config(dataset)
    spec = data_spec(config, [dataset])
    source = dataset.source("train")
    epoch = len(source)
    first = texts(Loader(config, [dataset], spec, "train", 1, epoch, captions=captions), captions)
    written = [captions.captioner(source[place]).text for place in range(epoch)]
    assert sorted(first) == sorted(written)
    again = texts(Loader(config, [dataset], spec, "train", 1, epoch, position=1, captions=captions), captions)
    assert sorted(again) == sorted(captions.captioner(source[place], 1).text for place in range(epoch))
    assert sorted(again) != sorted(written)
    # Two hosts read what one reads, and processes what threads do.
    halves = [
        texts(Loader(config, [dataset], spec, "train", 1, 6, 0, host, 2, captions), captions, count=2)
        for host in range(2)
    ]
    whole = texts(Loader(config, [dataset], spec, "train", 1, 6, captions=captions), captions, count=2)
    assert [*halves[0][:3], *halves[1][:3], *halves[0][3:], *halves[1][3:]] == whole
    assert (
        texts(
            Loader(dataclasses.replace(config, workers=1), [dataset], spec, "train", 1, 6, captions=captions),
            captions,
            count=2,
        )
        == whole
    )


def test_evaluation_batches_have_captions_and_padding(dataset, data_config, captions):
    source, spec = dataset.source("test"), data_spec(data_config(dataset), [dataset])
    batches = list(evaluation_batches(source, spec, 4, captions=captions))
    rows = np.concatenate([batch["text"] for batch, _ in batches])
    written = captions.tokenizer.decode(rows[: len(source)])
    assert written == [captions.captioner(source[place]).text for place in range(len(source))]
    assert (rows[len(source) :] == PAD).all()
    assert "text" not in next(iter(evaluation_batches(source, spec, 4)))[0]


def test_long_captions_are_cut_and_have_no_end(captions):
    window = next(random_windows(1, 1))
    whole = captions([window], [0])[0]
    cut = dataclasses.replace(captions, length=20)([window], [0])[0]
    np.testing.assert_array_equal(cut, whole[:20])
    assert END in whole and END not in cut


def test_a_crop_is_a_window_of_its_own():
    window = dataclasses.replace(
        next(random_windows(1, 1)),
        events=(Event("activity", "running", 50, 100), Event("sleep", "asleep", 0, 80), Event("mood", "calm", 10, 10)),
    )
    part = crop(window, 60, 30, [2, 0])
    np.testing.assert_array_equal(part.values, window.values[60:90][:, [2, 0]])
    assert part.channels == (CHANNELS[2], CHANNELS[0])
    assert (part.start - window.start).total_seconds() == 3600
    assert part.events == (Event("activity", "running", 0, 30), Event("sleep", "asleep", 0, 20))
    assert crop(window, 0, 1440, [0, 1, 2]) is window


def test_a_tokenizer_that_does_not_fit_is_named(tmp_path, captions):
    language = LanguageConfig(levels="semantic", vocab_size=300, text_length=64)
    captions.tokenizer.save(tmp_path / "large.json")
    with pytest.raises(UserError, match=r"large\.json has \d+ ids .* language\.vocab_size=300"):
        CaptionTokens.from_config(language, tmp_path / "large.json")
    with pytest.raises(UserError, match=r"language\.tokenizer is empty"):
        CaptionTokens.from_config(language, type(tmp_path)(""))
    with pytest.raises(UserError, match="unknown caption level"):
        CaptionTokens.from_config(dataclasses.replace(language, levels="semantics"), tmp_path / "large.json")
    with pytest.raises(UserError, match=r"kind of event 'meals'.*meal"):
        CaptionTokens.from_config(dataclasses.replace(language, events=("meals",)), tmp_path / "large.json")
    with pytest.raises(UserError, match=r"language\.event_crop_prob=1\.5"):
        excessive = dataclasses.replace(language, vocab_size=10000, event_crop_prob=1.5)
        CaptionTokens.from_config(excessive, tmp_path / "large.json")


def test_days_with_a_held_out_activity_have_no_caption(captions):
    window = next(random_windows(1, 1))
    events = (Event("activity", "Stair climbing!", 50, 100), Event("session", "tag", 5, 6), Event("sleep", "run", 0, 9))
    held_out, other = dataclasses.replace(window, events=events), dataclasses.replace(window, events=events[1:])
    assert activity_names(held_out) == {"stair climbing"} and activity_names(other) == set()
    without = dataclasses.replace(captions, held_out_activities=("stair climbing", "run"))
    ids = without([held_out, other], [0, 0])
    assert (ids[0] == PAD).all()
    np.testing.assert_array_equal(ids[1], captions([other], [0])[0])
    assert (captions([held_out], [0]) != PAD).any()


@pytest.mark.parametrize("event", [Event("session", "Stress", 1439, 1440), Event("session", "stress", 700.5, 701.5)])
def test_a_held_out_session_is_known_by_the_rest_that_captions_name(captions, event):
    window = next(random_windows(1, 1))
    window = dataclasses.replace(window, observed=np.ones_like(window.observed), events=(event,))
    assert "stress" in Captioner(("semantic",))(window).text
    assert activity_names(window) == {"stress"}
    assert (dataclasses.replace(captions, held_out_activities=("stress",))([window], [0]) == PAD).all()


def test_windows_with_nothing_observed_take_part_in_no_loss(captions):
    window = next(random_windows(1, 1))
    empty = dataclasses.replace(window, observed=np.zeros_like(window.observed))
    ids = captions([empty, window], [0, 0])
    assert (ids[0] == PAD).all() and ids[1, 0] == BEGIN
    assert float(caption_loss(jnp.zeros((1, ids.shape[1], 4)), jnp.asarray(ids[:1]))[1]) == 0


def test_captions_that_are_mostly_cut_are_told(captions):
    windows = list(random_windows(2, 2))
    short = dataclasses.replace(captions, length=20)
    assert short.cut_warning(short(windows, [0] * len(windows))).startswith(
        f"{len(windows)} of the {len(windows)} captions in the first batch are longer than language.text_length=20 "
    )
    assert captions.cut_warning(captions(windows, [0] * len(windows))) == ""


def test_days_without_anything_to_describe_have_an_empty_caption(captions):
    window = dataclasses.replace(next(random_windows(1, 1)), events=())
    semantic = dataclasses.replace(captions, captioner=Captioner(("semantic",)))
    (row,) = semantic([window], [0])
    assert row[:2].tolist() == [BEGIN, END] and (row[2:] == PAD).all()
    assert captions.tokenizer.decode(row[None]) == [""]


def test_a_held_out_activity_must_be_in_the_data(tmp_path):
    window = dataclasses.replace(next(random_windows(1, 1)), events=(Event("activity", "Rowing", 50, 100),))
    write_dataset(tmp_path / "data", "rows", CHANNELS, [window])
    dataset = open_dataset(tmp_path / "data")
    check_held_out_activities(("rowing",), [dataset])
    with pytest.raises(UserError, match=r"no dataset has an activity 'roving'\. Did you mean 'rowing'\?"):
        check_held_out_activities(("rowing", "roving"), [dataset])
