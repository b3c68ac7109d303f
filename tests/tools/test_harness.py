"""The harness itself, under a clock that the tests turn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsm_jax.tools.bench.harness import Contender, Timings, race, spread, times_faster

seconds = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9)


class Clock:
    """Stands still until someone works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, duration: float):
        def run(number: int) -> int:
            self.now += duration
            return number

        return run


def test_contenders_take_turns_after_one_warm_up_each() -> None:
    clock, order = Clock(), []

    def run(name: str):
        return lambda number: order.append((name, number))

    timings = race([Contender(name, run(name)) for name in "abc"], rounds=2, clock=clock)
    assert order == [(name, number) for number in (0, 1, 2) for name in "abc"]
    assert all(len(timing.seconds) == len(timing.cpu_seconds) == 2 for timing in timings.values())


def test_a_turn_may_begin_with_untimed_runs() -> None:
    clock, order = Clock(), []

    def run(number: int) -> int:
        clock.now += 2.0 if order and order[-1] == number else 9.0  # slow where another's turn came between
        order.append(number)
        return number

    other = Contender("other", lambda number: order.append(None))
    timing = race([Contender("a", run), other], rounds=2, clock=clock, untimed=1)["a"]
    assert [number for number in order if number is not None] == [0, 1, 1, 2, 2]
    assert timing.seconds == [2.0, 2.0]
    assert timing.returned == [0, 1, 2]


def test_only_the_run_is_timed_and_what_it_returns_is_kept() -> None:
    clock, prepared, finished = Clock(), [], []

    def prepare(number: int) -> None:
        prepared.append(number)
        clock.now += 50

    contender = Contender("a", clock.work(2.0), prepare, lambda: finished.append(clock.work(30)(0)))
    timing = race([contender], rounds=3, clock=clock)["a"]
    assert timing.seconds == [2.0, 2.0, 2.0]
    assert timing.returned == prepared == [0, 1, 2, 3]
    assert len(finished) == 4


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 1), (19.0, 1), (20.0, 2), (59.0, 5), (1e9, 8)])
def test_the_budget_ends_a_race_between_rounds(budget: float, rounds: int) -> None:
    clock, calls = Clock(), []
    contenders = [Contender("a", clock.work(3.0)), Contender("b", clock.work(7.0))]
    timings = race(contenders, 8, budget, lambda done, total: calls.append((done, total)), clock)
    assert timings["a"].seconds == [3.0] * rounds
    assert timings["b"].seconds == [7.0] * rounds
    assert calls == [(done, 16) for done in range(1, 2 * rounds + 1)]


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        race([Contender("a", print), Contender("a", print)], rounds=1)


@settings(max_examples=25)
@given(values=seconds, factor=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_spread_is_ordered_scales_and_ignores_the_order(values: list[float], factor: float, seed: int) -> None:
    found = spread(values)
    ordered = [found[name] for name in ("minimum", "lower_quartile", "median", "upper_quartile")]
    assert ordered == sorted(ordered)
    assert found["minimum"] == min(values)
    assert ordered[3] <= max(values)
    assert found["rounds"] == len(values)
    assert spread(list(np.random.default_rng(seed).permutation(values))) == found
    scaled = spread([factor * value for value in values])
    assert scaled["median"] == pytest.approx(factor * found["median"])


@settings(max_examples=25)
@given(values=seconds, factor=st.floats(0.1, 10))
def test_times_faster_is_exact_for_a_constant_factor(values: list[float], factor: float) -> None:
    slow, fast = Timings([factor * value for value in values]), Timings(values)
    for name, value in times_faster(slow, fast).items():
        assert value == pytest.approx(factor), name
    assert times_faster(slow, fast)["ratio"] == pytest.approx(1 / times_faster(fast, slow)["ratio"])


def test_a_disturbed_round_does_not_widen_the_ratio() -> None:
    """What slows a whole round slows both, so that the ratio of every round stays."""
    fast = Timings([1.0, 9.0, 1.0, 5.0])
    slow = Timings([2.0, 18.0, 2.0, 10.0])
    assert times_faster(slow, fast) == {"ratio": 2.0, "lower_quartile": 2.0, "upper_quartile": 2.0}
