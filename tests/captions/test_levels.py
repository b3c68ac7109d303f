"""What captions state: what was recorded, by the published thresholds, and reproducibly."""

from __future__ import annotations

import dataclasses
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from lsm_jax.captions.caption import LEVELS, Captioner, parse_levels
from lsm_jax.captions.fact_check import FactChecker, Verdict
from lsm_jax.captions.facts import STATISTICS, TRENDS, Fact, LocalClock
from lsm_jax.captions.grammar import parse_caption
from lsm_jax.captions.semantic import event_facts
from lsm_jax.captions.structural import BIN_MINUTES
from lsm_jax.errors import UserError
from lsm_jax.windows import Event

FEW = hypothesis.settings(max_examples=15)
SEEDS = st.integers(0, 10_000)
ALL = Captioner(LEVELS)


def minutes(first: int, last: int, value: float = 70.0) -> np.ndarray:
    """A day's signal recorded from one minute to another."""
    signal = np.full(1440, np.nan)
    signal[first:last] = value
    return signal


@FEW
@hypothesis.given(
    SEEDS, st.integers(0, 1439), st.sampled_from([(1440, 1), (288, 5), (96, 15), (24, 60), (600, 1), (30, 1)])
)
def test_every_caption_is_read_back_and_true(random_day, seed: int, start_minute: int, shape: tuple[int, int]) -> None:
    window = random_day(seed, shape[0], start_minute, shape[1])
    caption = ALL(window, epoch=seed)
    reading = parse_caption(caption.text)
    assert reading.unparsed == ()
    assert reading.facts == caption.facts
    judge = FactChecker(window)
    assert [fact for fact in caption.facts if judge(fact) is not Verdict.TRUE] == []


@FEW
@hypothesis.given(SEEDS, st.sampled_from([np.nan, np.inf, -1e30, 7.0]))
def test_unobserved_cells_are_never_looked_at(random_day, seed: int, garbage: float) -> None:
    window = random_day(seed)
    other = dataclasses.replace(window, values=np.where(window.observed, window.values, np.float32(garbage)))
    assert ALL(other) == ALL(window)


@FEW
@hypothesis.given(SEEDS, st.integers(0, 1300), st.integers(60, 900))
def test_nothing_is_said_of_unrecorded_hours(random_day, seed: int, first: int, length: int) -> None:
    window = random_day(seed)
    minute = np.arange(1440)[:, None]
    observed = window.observed & ~((minute >= first) & (minute < first + length))
    window = dataclasses.replace(window, observed=observed)
    place = {name: column for column, name in enumerate(window.channels)}
    for fact in Captioner(("structural", "semantic"))(window).facts:
        if fact.kind in TRENDS:
            stretch = observed[fact.start : fact.end, place[fact.subject]].reshape(-1, BIN_MINUTES)
            assert stretch.mean(axis=1).min() >= 0.5
        elif fact.subject in place:
            assert observed[fact.start - 20 : fact.start + 20, place[fact.subject]].mean() >= 0.5
        else:
            assert observed[max(fact.start - 10, 0) : fact.end + 10].any()


def test_statistics_are_of_the_recorded_minutes(make_window) -> None:
    signal = minutes(600, 700)
    signal[600:650] = 90
    window = make_window({"heart_rate": signal, "glucose": minutes(0, 29, 5.0)})
    facts = Captioner(("statistical",))(window).facts
    assert facts == tuple(
        Fact(kind, "heart_rate", value) for kind, value in zip(STATISTICS, (80, 90, 70, 10), strict=True)
    )


def test_a_channel_that_never_moves_is_said_in_one_number(make_window) -> None:
    caption = Captioner(("statistical",))(make_window({"steps": minutes(0, 60, 0.0)}))
    assert [statement.form for statement in caption.statements] == ["constant"]
    assert caption.text.count("0.0 steps/min") == 1


def test_fixed_channels_always_and_extras_in_turn(make_window, random_day) -> None:
    window = random_day(3)
    window = dataclasses.replace(window, observed=np.ones_like(window.observed), values=np.abs(window.values) + 1)
    spoken = [{fact.subject for fact in Captioner(("statistical",))(window, epoch).facts} for epoch in range(8)]
    assert set.intersection(*spoken) >= {"heart_rate", "rmssd", "steps", "skin_temperature", "sleep_coefficient"}
    assert "sleep_state" not in set.union(*spoken)  # codes have no mean


def test_the_housing_of_a_device_is_no_skin(make_window) -> None:
    window = make_window({"device_temperature": np.full(600, 28.0), "skin_temperature": np.full(600, 33.0)})
    facts = Captioner(("statistical",))(window).facts
    assert {fact.subject for fact in facts} == {"skin_temperature"}


def test_a_planted_rise_and_peak_are_found_and_a_gap_is_not(make_window) -> None:
    ramp = np.concatenate([np.full(480, 60.0), np.linspace(60, 90, 480), np.full(480, 90.0)])
    facts = Captioner(("structural",))(make_window({"heart_rate": ramp})).facts
    rises = [fact for fact in facts if fact.kind == "increase"]
    assert rises and all(fact.start < 960 and fact.end > 480 for fact in rises)
    assert not [fact for fact in facts if fact.kind == "decrease"]
    ramp[600:800] = np.nan
    broken = Captioner(("structural",))(make_window({"heart_rate": ramp})).facts
    assert all(fact.end <= 600 or fact.start >= 800 for fact in broken)

    level = np.full(1440, 60.0)
    level[800:840] = 120.0
    (peak,) = (f for f in Captioner(("structural",))(make_window({"heart_rate": level})).facts if f.kind == "peak")
    assert peak == Fact("peak", "heart_rate", 120.0, 820, 820)


def test_a_peak_does_not_hide_another_beyond_a_gap(make_window) -> None:
    signal = np.full(1440, 60.0)
    signal[400:440], signal[560:600] = 120.0, 110.0  # bins 10 and 14

    def peaks() -> list[int | None]:
        facts = Captioner(("structural",))(make_window({"heart_rate": signal})).facts
        return [fact.start for fact in facts if fact.kind == "peak"]

    assert peaks() == [420]
    signal[480:520] = np.nan
    assert peaks() == [420, 580]


def test_the_longest_activities_are_kept_and_every_mood(make_window) -> None:
    events = [Event("activity", f"sport {place}", 100 * place, 100 * place + 15 + 3 * place) for place in range(14)]
    events += [Event("sleep", "asleep", 200 * place, 200 * place + 30 + place) for place in range(4)]
    events += [Event("mood", "calm", 90 * place, 90 * place + 1) for place in range(12)]
    facts = Captioner(("semantic",))(make_window({"heart_rate": minutes(0, 1440)}, events)).facts
    activities = [fact for fact in facts if fact.kind == "activity"]
    assert [fact.subject for fact in activities] == [f"sport {place}" for place in range(6, 14)]
    assert [fact.value for fact in facts if fact.kind == "sleep"] == [32, 33]
    assert sum(fact.kind == "mood" for fact in facts) == 12
    few = Captioner(("semantic",), events=("sleep",))(make_window({"heart_rate": minutes(0, 1440)}, events)).facts
    assert few == tuple(fact for fact in facts if fact.kind == "sleep")
    assert [fact.start for fact in facts] == sorted(fact.start for fact in facts)


def test_short_activities_are_skipped_meals_join_and_marks_are_counted(make_window) -> None:
    events = [Event("activity", "running", 300, 319), Event("session", "stress", 600, 660)]
    events += [Event("meal", "food or drink", minute, minute + 1) for minute in (480, 490, 500, 800)]
    events += [Event("session", "tag", minute, minute + 1) for minute in (610, 620, 650)]
    window = make_window({"heart_rate": minutes(0, 1440)}, events)
    assert event_facts(window) == (
        Fact("meal", "food or drink", 21.0, 480, 501),
        Fact("session", "stress", 60.0, 600, 660),
        Fact("mark", "tag", 3.0, 610, 651),
        Fact("meal", "food or drink", None, 800, 800),
    )


def test_events_without_recorded_data_are_skipped(make_window) -> None:
    events = [Event("activity", "running", 0, 60), Event("mood", "calm", 100, 101), Event("mood", "sad", 640, 641)]
    window = make_window({"heart_rate": minutes(630, 1440)}, events)
    assert event_facts(window) == (Fact("mood", "sad", None, 640, 640),)


@pytest.mark.parametrize(("first", "last", "whole"), [(0, 445, False), (1384, 1440, False), (1, 1439, True)])
@pytest.mark.parametrize(("kind", "name"), [("sleep", "asleep"), ("session", "stress")])
def test_an_event_cut_at_midnight_has_no_length_and_no_end(
    make_window, kind: str, name: str, first: int, last: int, whole: bool
) -> None:
    window = make_window({"heart_rate": minutes(0, 1440)}, [Event(kind, name, first, last)])
    texts = {Captioner(("semantic",))(window, epoch).text for epoch in range(200)}
    said = re.compile(r"\bhours?\b|\bminutes?\b|lasted|spans|ran")
    assert any(said.search(text) for text in texts) is whole
    assert len(texts) >= 7
    assert {fact for text in texts for fact in parse_caption(text).facts} == {*event_facts(window)}


def test_the_rest_of_a_session_is_no_button_press(make_window) -> None:
    events = [Event("session", "stress test", 0, 1), Event("session", "tag", 0, 1), Event("session", "lap", 700, 701)]
    events += [Event("session", "baseline", 1439.5, 1440), Event("session", "tag", 1439, 1440)]
    window = make_window({"heart_rate": minutes(0, 1440)}, events)
    assert set(event_facts(window)) == {
        Fact("session", "stress test", 1.0, 0, 1),
        Fact("session", "baseline", 1.0, 1439, 1440),
        Fact("mark", "tag", 2.0, 0, 1440),
        Fact("mark", "lap", 1.0, 700, 700),
    }
    assert {*Captioner(("semantic",))(window).facts} == {*event_facts(window)}


def test_captions_are_the_same_again_and_other_words_each_epoch(random_day) -> None:
    window = random_day(5)
    texts = [ALL(window, epoch).text for epoch in range(6)]
    assert texts == [ALL(window, epoch).text for epoch in range(6)]
    assert len({*texts}) == 6
    assert Captioner(LEVELS, seed=1)(window).text != texts[0]
    semantic = [Captioner(("semantic",))(window, epoch) for epoch in range(6)]
    assert len({caption.facts for caption in semantic}) == 1 < len({caption.text for caption in semantic})


def test_times_are_the_local_clock_and_a_long_window_is_refused(make_window) -> None:
    events = [Event("activity", "running", 500, 590)]
    window = make_window({"heart_rate": np.full(1440, 60.0)}, events, start_minute=17 * 60)
    (fact,) = event_facts(window)
    assert (fact.start, fact.end, fact.value) == (17 * 60 + 500 - 1440, 17 * 60 + 590 - 1440, 90)
    with pytest.raises(UserError, match="1500 minutes is longer"):
        ALL(make_window({"heart_rate": np.full(1500, 60.0)}))


@hypothesis.given(st.integers(0, 1439), st.integers(1, 1440), st.data())
def test_the_clock_runs_both_ways(make_window, start_minute: int, steps: int, data: st.DataObject) -> None:
    clock = LocalClock(make_window({"heart_rate": np.full(steps, 60.0)}, start_minute=start_minute))
    first = data.draw(st.integers(0, steps - 1))
    last = data.draw(st.integers(first + 1, steps))
    assert clock.steps_of(clock.start(first), clock.end(last)) == (first, last)


def test_an_empty_window_has_an_empty_caption(make_window) -> None:
    assert ALL(make_window({"heart_rate": np.full(1440, np.nan)})).text == ""


def test_levels_are_named() -> None:
    assert parse_levels("all") == LEVELS
    assert parse_levels("semantic+statistical") == ("semantic", "statistical")
    with pytest.raises(UserError, match=r"'structual'.*Did you mean 'structural'"):
        parse_levels("semantic+structual")
    with pytest.raises(UserError, match="name one twice"):
        parse_levels("semantic+semantic")
