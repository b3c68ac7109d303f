"""Facts checked against windows: true, false, or not recorded."""

from __future__ import annotations

import numpy as np
import pytest

from lsm_jax.captions.fact_check import FactChecker, Tolerance, Verdict
from lsm_jax.captions.facts import Fact
from lsm_jax.windows import Event


@pytest.fixture(scope="module")
def judge(make_window) -> FactChecker:
    """Heart rate that rises from 08:00 to 16:00 with a peak at 20:20, recorded until 22:00; running and a mood."""
    heart = np.concatenate([np.full(480, 60.0), np.linspace(60, 90, 480), np.full(480, 75.0)])
    heart[1200:1240] = 130
    heart[1320:] = np.nan
    events = [Event("activity", "running", 600, 660), Event("mood", "calm", 700, 701), Event("session", "tag", 30, 31)]
    return FactChecker(make_window({"heart_rate": heart, "glucose": np.full(1440, np.nan)}, events))


@pytest.mark.parametrize(
    ("fact", "verdict"),
    [
        (Fact("maximum", "heart_rate", 131.0), "true"),
        (Fact("maximum", "heart_rate", 133.0), "false"),
        (Fact("mean", "glucose", 5.0), "unrecorded"),
        (Fact("mean", "steps", 5.0), "unrecorded"),
        (Fact("increase", "heart_rate", None, 480, 960), "true"),
        (Fact("increase", "heart_rate", None, 500, 900), "true"),
        (Fact("decrease", "heart_rate", None, 480, 960), "false"),
        (Fact("steady", "heart_rate", None, 0, 480), "true"),
        (Fact("steady", "heart_rate", None, 480, 960), "false"),
        (Fact("steady", "heart_rate", None, 1330, 1440), "unrecorded"),
        (Fact("peak", "heart_rate", 130.0, 1220, 1220), "true"),
        (Fact("peak", "heart_rate", 130.5, 1250, 1250), "true"),
        (Fact("peak", "heart_rate", 110.0, 1220, 1220), "false"),
        (Fact("peak", "heart_rate", 130.0, 700, 700), "false"),
        (Fact("drop", "heart_rate", 60.0, 1380, 1380), "unrecorded"),
        (Fact("activity", "running", 60.0, 600, 660), "true"),
        (Fact("activity", "running", 66.0, 612, 650), "true"),
        (Fact("activity", "running", 60.0, 616, 676), "false"),
        (Fact("activity", "running", 95.0, 600, 660), "false"),
        (Fact("activity", "walking", 60.0, 600, 660), "false"),
        (Fact("activity", "running", 60.0, 1370, 1430), "unrecorded"),
        (Fact("mood", "calm", None, 710, 710), "true"),
        (Fact("mood", "sad", None, 700, 700), "false"),
        (Fact("mood", "sad", None, 1400, 1400), "unrecorded"),
        (Fact("mark", "tag", 1.0, 30, 30), "true"),
        (Fact("mark", "tag", 2.0, 30, 30), "false"),
    ],
)
def test_verdicts(judge: FactChecker, fact: Fact, verdict: str) -> None:
    assert judge(fact) is Verdict(verdict)


def test_a_tighter_tolerance_accepts_less(make_window) -> None:
    window = make_window({"heart_rate": np.full(1440, 60.0)}, [Event("activity", "running", 600, 660)])
    strict = FactChecker(window, Tolerance(sds=0.001, minutes=2))
    assert strict(Fact("mean", "heart_rate", 61.0)) is Verdict.FALSE
    assert FactChecker(window)(Fact("mean", "heart_rate", 61.0)) is Verdict.TRUE
    assert strict(Fact("activity", "running", 60.0, 605, 660)) is Verdict.FALSE
