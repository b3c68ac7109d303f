"""Event crops contain an event, cut none, and their captions mention nothing outside of them."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from random_windows import random_windows

from lsm_jax.captions.semantic import captioned_events, event_facts
from lsm_jax.data.event_crops import MIN_CROP_MINUTES, event_crop, mask_outside
from lsm_jax.data.loader import Loader
from lsm_jax.data.spec import data_spec
from lsm_jax.windows import Event

WINDOWS = list(random_windows(4, 2))


@st.composite
def logged_windows(draw):
    """A window with events anywhere in it, overlapping or not."""
    window = draw(st.sampled_from(WINDOWS))
    steps = len(window.observed)
    spans = draw(st.lists(st.tuples(st.integers(0, steps - 25), st.integers(20, 300)), max_size=5))
    kinds = st.sampled_from([("activity", "running"), ("sleep", "asleep"), ("meal", "lunch")])
    events = [Event(*draw(kinds), start, min(start + length, steps)) for start, length in spans]
    return dataclasses.replace(window, events=tuple(sorted(events, key=lambda event: event.start)))


@settings(max_examples=50, deadline=None)
@given(logged_windows(), st.integers(0, 2**32))
def test_a_crop_contains_an_event_and_cuts_none(window, seed):
    first, last = event_crop(window, np.random.default_rng(seed))
    steps, events = len(window.observed), captioned_events(window)
    assert 0 <= first < last <= steps and last - first >= min(MIN_CROP_MINUTES, steps)
    within = [event for event in events if first <= event.start and event.end <= last]
    outside = [event for event in events if event.end <= first or last <= event.start]
    assert len(within) + len(outside) == len(events)
    assert within or not events
    assert (first, last) == event_crop(window, np.random.default_rng(seed))


@settings(max_examples=25, deadline=None)
@given(logged_windows(), st.integers(0, 2**32))
def test_nothing_outside_the_interval_is_observed_or_logged(window, seed):
    first, last = event_crop(window, np.random.default_rng(seed))
    part = mask_outside(window, first, last)
    np.testing.assert_array_equal(part.observed[first:last], window.observed[first:last])
    np.testing.assert_array_equal(part.values[first:last], window.values[first:last])
    assert not part.observed[:first].any() and not part.observed[last:].any()
    assert (part.values[~part.observed] == 0).all()
    # Times are still those of the day.
    assert {*event_facts(part)} <= {*event_facts(window)}


def test_crop_lengths_are_log_uniform():
    random, quiet = np.random.default_rng(0), dataclasses.replace(WINDOWS[0], events=())
    lengths = np.array([last - first for first, last in (event_crop(quiet, random) for _ in range(400))])
    steps = len(quiet.observed)
    middle = np.sqrt(min(MIN_CROP_MINUTES, steps) * steps)
    assert 0.4 < (lengths < middle).mean() < 0.6
    assert lengths.min() < 1.2 * min(MIN_CROP_MINUTES, steps) and lengths.max() > 0.9 * steps


def test_batches_are_cropped_as_their_captions(dataset, data_config, captions):
    config = data_config(dataset)
    spec, size = data_spec(config, [dataset]), len(dataset.source("train"))
    partly = dataclasses.replace(captions, event_crop_prob=0.5)
    loaders = [Loader(config, [dataset], spec, "train", 1, size, captions=each) for each in (captions, partly)]
    whole, batch = (next(loader) for loader in loaders)
    for loader in loaders:
        loader.close()
    less = batch["observed"].sum(axis=(1, 2)) < whole["observed"].sum(axis=(1, 2))
    assert 0 < less.sum() < size
    np.testing.assert_array_equal(batch["text"][~less], whole["text"][~less])
    kept = batch["observed"]
    assert (whole["observed"] | ~kept).all()
    np.testing.assert_array_equal(batch["values"], np.where(kept, whole["values"], 0))
    # What is hidden is hidden in all channels at the same steps: before and after one interval.
    hidden = (whole["observed"] & ~kept).any(axis=2)
    for row in np.flatnonzero(less):
        minutes = np.flatnonzero(kept[row].any(axis=1))
        assert not hidden[row, minutes[0] : minutes[-1] + 1].any() if len(minutes) else True


def test_a_day_with_a_held_out_activity_is_never_cropped(captions):
    events = (Event("activity", "running", 100, 160), Event("activity", "yoga", 900, 960))
    day = dataclasses.replace(WINDOWS[0], events=events)
    partly = dataclasses.replace(captions, event_crop_prob=1.0)
    without = dataclasses.replace(partly, held_out_activities=("yoga",))
    crops = [partly.event_crop(day, epoch) for epoch in range(20)]
    assert any(last <= 900 for _, last in crops)
    assert [without.event_crop(day, epoch) for epoch in range(20)] == [None] * 20
    running = dataclasses.replace(day, events=events[:1])
    assert [without.event_crop(running, epoch) for epoch in range(20)] == [
        partly.event_crop(running, epoch) for epoch in range(20)
    ]
