"""Captions that a run writes: true ones score as true, false ones as false, and what the baselines say."""

import dataclasses

import numpy as np
import pytest
from language_run import by_letters, language_dataset, language_run, with_oracle

from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.fact_check import Verdict, check_sentences
from lsm_jax.captions.facts import STATISTICS, Fact
from lsm_jax.captions.grammar import facts_of, parse_caption
from lsm_jax.errors import UserError
from lsm_jax.evals.captioning import Captioning, check_caption, count_correct, mean_day, overlap_scores, usual_activity
from lsm_jax.windows import Event


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return language_dataset(tmp_path_factory.mktemp("data") / "logged")


@pytest.fixture(scope="module")
def run(dataset):
    return language_run(dataset.path)


@pytest.fixture
def window(dataset):
    """Four hours from midnight on; the last of them without a value."""
    whole = dataset.source("train")[0]
    observed = whole.observed.copy()
    observed[:180], observed[180:] = True, False
    events = (Event("activity", "running", 10, 50), Event("activity", "yoga", 100, 150))
    return dataclasses.replace(whole, observed=observed, events=events)


def test_our_own_caption_is_true(window):
    counts = check_caption(Captioner(("statistical", "semantic"))(window).text, window)
    assert counts["true facts"] == (14, 14) and counts["true numbers"] == (12, 12)
    assert counts["sentences unrecorded"] == counts["sentences unread"] == (0, 5)
    assert counts["activity precision"] == counts["activity recall"] == (2, 2)
    assert counts["activity F1"] == (4, 4) and counts["sleep F1"] == (0, 0)


def test_false_late_unrecorded_and_unparsed_statements_are_counted_apart(window):
    text = (
        "The wearer did some running between 00:15 and 01:00. The wearer did some running between 00:16 and 01:00. "
        "The wearer did some yoga between 01:20 and 02:30. The wearer slept between 03:10 and 03:50. Hello there."
    )
    verdicts = [sentence.verdict for sentence in check_sentences(text, window)]
    assert verdicts == [Verdict.TRUE, Verdict.TRUE, Verdict.FALSE, Verdict.UNRECORDED, None]
    counts = check_caption(text, window)
    assert counts["activity precision"] == (1, 3)  # predicted twice and happened once; yoga began 20 minutes later
    assert counts["activity recall"] == (1, 2) and counts["activity F1"] == (2, 5)
    assert counts["sentences unrecorded"] == (1, 5) and counts["sentences unread"] == (1, 5)
    assert counts["true facts"] == (2, 4) and counts["true numbers"] == (0, 0) and counts["sleep recall"] == (0, 0)
    assert check_caption("", window)["activity recall"] == (0, 2)


def test_events_are_found_once_in_whatever_order():
    true = [Fact("activity", "running", 30.0, 60, 90), Fact("activity", "running", 30.0, 80, 110)]
    predicted = [Fact("activity", "running", 30.0, 62, 92)] * 3
    assert count_correct(predicted, true) == count_correct(predicted, true[::-1]) == 1
    assert count_correct(true[::-1], true) == 2 and count_correct([], true) == 0


def test_overlap_of_the_same_words_is_whole():
    texts, person = ["the wearer slept from one to two", "the wearer did some running today", ""], np.array([0, 1, 1])
    whole = overlap_scores(texts, [texts] * 3, person, 0)
    assert [round(score, 6) for score, _ in whole.values()] == [100, 100, 1]
    assert whole["overlap", "ROUGE-L"][1] == [1, 1]
    none = overlap_scores(["x y z"] * 3, [texts] * 3, person, 0)
    assert none["overlap", "BLEU"][0] < 1 and none["overlap", "ROUGE-L"][0] == 0
    assert overlap_scores(["a"], [[""]], person[:1], 0) == {}


def test_who_writes_our_captions_is_true_and_the_same_words_for_all_are_not(dataset, run):
    result = Captioning(batch_size=4).run(with_oracle(run, dataset.source("test"), by_letters), [dataset])
    scores = {(row["method"], row["class"]): row["score"] for row in result.results}
    assert {method for method, _ in scores} == {"model", "nearest_caption", "mean_day", "usual_activity", "reworded"}
    for method in ("model", "reworded"):
        assert scores[method, "activity F1"] == scores[method, "true facts"] == 1
        assert scores[method, "sentences unrecorded"] == scores[method, "sentences unread"] == 0
    assert scores["model", "BLEU"] == pytest.approx(100) and scores["reworded", "BLEU"] < 100
    assert scores["usual_activity", "activity F1"] < 1 and scores["nearest_caption", "sentences unread"] == 0
    assert len(result.details) == len(dataset.source("test"))
    assert result.details[0]["text"] == result.details[0]["ours"]


@pytest.mark.parametrize("decode", ["greedy", "nucleus"])
def test_a_real_run_writes_in_batches_of_any_size(dataset, run, decode):
    source = dataset.source("test")

    def written(size, seed=0):
        suite = Captioning(batch_size=size, decode=decode, seed=seed)
        return [text for _, rows in suite.generate(run, source) for _, text in rows]

    texts = written(4)
    assert texts == written(6) and len(texts) == len(source) and any(texts)
    assert (texts == written(4, seed=1)) == (decode == "greedy")


def test_names_of_decodings_are_checked(dataset, run):
    source = dataset.source("test")
    with pytest.raises(UserError, match=r"--decode gready: .*Did you mean 'greedy'\?"):
        next(Captioning(decode="gready").generate(run, source))


def test_typical_days_are_those_of_the_clock():
    days = [
        (Fact("sleep", "asleep", 40.0, 1430, 30), Fact("activity", "yoga", 40.0, 600, 640)),
        (Fact("sleep", "asleep", 40.0, 10, 50), Fact("activity", "golf", 40.0, 700, 740)),
        (Fact("sleep", "asleep", 80.0, 0, 40), Fact("activity", "golf", 60.0, 800, 860)),
    ]  # fmt: skip
    (sleep, activity) = facts_of(mean_day(days))
    assert (sleep.subject, sleep.start, sleep.end) == ("asleep", 0, 40)
    assert (activity.subject, activity.start, activity.end, activity.value) == ("golf", 750, 800, 50)
    assert facts_of(usual_activity(days)) == (activity,)
    assert usual_activity([()]) == mean_day([()]) == ""
    numbers = [Fact(kind, "heart_rate", value) for kind, value in zip(STATISTICS, (70, 90, 60, 5), strict=True)]
    parsed = parse_caption(mean_day([numbers, [dataclasses.replace(fact, value=fact.value + 1) for fact in numbers]]))
    assert [fact.value for fact in parsed.facts] == [70.5, 90.5, 60.5, 5.5] and not parsed.unparsed
