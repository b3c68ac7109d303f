"""Every sentence can be parsed back exactly, and nothing else is taken for one."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from lsm_jax.captions.facts import STATISTICS, Fact, clock_minutes
from lsm_jax.captions.grammar import (
    FORMS,
    VERBS,
    Statement,
    event_name,
    facts_of,
    parse_caption,
    parse_sentence,
    wording,
)
from lsm_jax.captions.phrases import CHANNEL_OF, PHRASES, rounded
from lsm_jax.channels import REGISTRY

FEW = hypothesis.settings(max_examples=12)
MOMENTS = ("mood", "meal_moment")
starts, ends = st.integers(0, 1439), st.integers(1, 1440)
names = st.one_of(st.sampled_from(["walking", "strength training", "hiit", "calm", "stress"]), st.text()).map(
    event_name
)


@st.composite
def statements(draw, form: str) -> Statement:
    """Any statement of a form."""
    channel = draw(st.sampled_from(sorted(REGISTRY)))
    value = rounded(channel, draw(st.floats(-20_000, 20_000)))
    start, end = draw(starts), draw(ends)
    if form == "statistics":
        return Statement(form, tuple(Fact(k, channel, rounded(channel, draw(st.floats(-99, 99)))) for k in STATISTICS))
    if form == "constant":
        return Statement(form, tuple(Fact(k, channel, 0.0 if k == "deviation" else value) for k in STATISTICS))
    if form == "trend":
        return Statement(form, (Fact(draw(st.sampled_from(sorted(VERBS["trend"]))), channel, None, start, end),))
    if form == "extreme":
        return Statement(form, (Fact(draw(st.sampled_from(sorted(VERBS["extreme"]))), channel, value, start, start),))
    kind = {"sleep_named": "sleep", "meal_moment": "meal", "marks": "mark"}.get(form, form)
    name = "asleep" if form == "sleep" else draw(names)
    if form in MOMENTS:
        return Statement(form, (Fact(kind, name, None, start, start),))
    if kind == "mark":
        count = 1.0 if form == "mark" else float(draw(st.integers(2, 99)))
        return Statement(form, (Fact(kind, name, count, start, start if form == "mark" else end),))
    return Statement(form, (Fact(kind, name, float(clock_minutes(start, end)), start, end),))


@pytest.mark.parametrize("form", FORMS)
def test_every_template_is_read_back(form: str) -> None:
    @FEW
    @hypothesis.given(statements(form))
    def check(statement: Statement) -> None:
        verbs = VERBS[form][statement.facts[0].kind] if form in VERBS else ("",)
        sentences = [wording(statement, template, verb) for template in FORMS[form] for verb in verbs]
        assert len({*sentences}) == len(sentences)
        assert [parse_sentence(sentence) for sentence in sentences] == [statement] * len(sentences)
        assert facts_of(" ".join(sentences)) == statement.facts * len(sentences)

    check()


def test_there_are_as_many_templates_as_published() -> None:
    published = {"statistics": 20, "trend": 15, "extreme": 15, "activity": 20, "sleep": 20, "mood": 10}
    assert {form: len(FORMS[form]) for form in published if len(FORMS[form]) < published[form]} == {}


def test_phrases_name_one_channel_each() -> None:
    assert len(CHANNEL_OF) == len(PHRASES) == len(REGISTRY)


@pytest.mark.parametrize(
    "sentence",
    [
        "Readings of heart rate averaged 70 bpm and ranged between 50.0 and 90.0, with a deviation of 5.0.",
        "Readings of heart rate averaged 70.0 ms and ranged between 50.0 and 90.0, with a deviation of 5.0.",
        "Readings of hart rate averaged 70.0 bpm and ranged between 50.0 and 90.0, with a deviation of 5.0.",
        "Heart rate rose from 10:00 to 25:10.",
        "Heart rate rose from 10:00 to 00:00.",
        "Heart rate rose from 24:00 to 10:00.",
        "Heart rate peaked from 10:00 to 12:00.",
        "heart rate rose from 10:00 to 12:00.",
        "Heart rate rose from 10:00 to 12:00",
        "The wearer slept for 90 minutes, from 01:00 to 02:30.",
        "Mood at 8:15: calm.",
        "Nothing of the kind.",
        "<end>",
    ],
)
def test_other_sentences_stay_unparsed(sentence: str) -> None:
    reading = parse_caption(f"Mood at 08:15: calm. {sentence}")
    assert reading.facts == (Fact("mood", "calm", None, 495, 495),)
    assert reading.unparsed == (sentence,)


def test_a_duration_that_contradicts_its_times_is_parsed_as_written() -> None:
    (fact,) = facts_of("The wearer slept for 2 hours, from 01:00 to 02:30.")
    assert (fact.value, fact.start, fact.end) == (120, 60, 150)


@hypothesis.given(st.text(max_size=300))
def test_any_text_can_be_parsed(text: str) -> None:
    assert parse_caption(text).facts == ()


def test_names_cannot_end_their_sentence() -> None:
    assert event_name("  Hot Yoga (60 min). The wearer slept!\n") == "hot yoga 60 min the wearer slept"
    assert event_name("...") == "unnamed"
    assert len(event_name("long " * 30)) <= 40
