"""The one way speed is measured here: contenders take turns, A B C A B C, on one machine.

Machines drift: clocks change, other work comes and goes. Contenders measured one after the other would each meet
another machine; taking turns they meet the same one, and what disturbs one round disturbs all of it. Every contender
runs once before anything is timed, figures are medians with their spread, and contenders are compared by the ratio of
their medians.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
      name: unique among the contenders of a race.
      run: does the work of a round, which is complete when it returns; round 0 is the warm-up.
      prepare, finish: what a round needs before and after, not timed.
      cpu_clock: processor seconds so far, of all threads of the process that does the work.
    """

    name: str
    run: Callable[[int], Any]
    prepare: Callable[[int], None] | None = None
    finish: Callable[[], None] | None = None
    cpu_clock: Callable[[], float] = time.process_time


@dataclasses.dataclass(frozen=True)
class Timings:
    """A contender's rounds, in order.

    Attributes:
      seconds: wall time.
      cpu_seconds: of all threads of its process; other work on the machine disturbs it less.
      returned: what `run` returned, in the warm-up first.
    """

    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    returned: list[Any] = dataclasses.field(default_factory=list)


def race(
    contenders: Sequence[Contender],
    rounds: int,
    budget: float = float("inf"),
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    again: int = 0,
) -> dict[str, Timings]:
    """Times contenders in turns.

    Args:
      rounds: how often each is timed.
      again: runs that are not timed at the beginning of every turn. While others had theirs, which may take minutes, a
        virtual machine may have taken back the memory that a contender stands in.
      budget: seconds; no round is begun that would probably end later, but one is always run.
      progress: called with the runs done and the runs to do.
      clock: tells the seconds.

    Returns:
      Timings by name; every contender has as many.
    """
    timings = {contender.name: Timings() for contender in contenders}
    if len(timings) < len(contenders):
        raise ValueError("two contenders of one name")
    for contender in contenders:
        _take_turn(contender, 0, timings[contender.name], clock)
    begun = clock()
    for number in range(1, rounds + 1):
        spent = clock() - begun
        if number > 1 and spent * number / (number - 1) > budget:
            break
        for place, contender in enumerate(contenders, start=1):
            for _ in range(again):
                _take_turn(contender, number, Timings(), clock)
            _take_turn(contender, number, timings[contender.name], clock)
            if progress:
                progress((number - 1) * len(contenders) + place, rounds * len(contenders))
    return timings


def _take_turn(contender: Contender, number: int, timings: Timings, clock: Callable[[], float]) -> None:
    if contender.prepare:
        contender.prepare(number)
    cpu, begun = contender.cpu_clock(), clock()
    returned = contender.run(number)
    seconds = clock() - begun
    cpu = contender.cpu_clock() - cpu
    if contender.finish:
        contender.finish()
    timings.returned.append(returned)
    if number:
        timings.seconds.append(seconds)
        timings.cpu_seconds.append(cpu)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, fastest, quartiles and number of the values (at least one)."""
    lower, median, upper = np.percentile(values, [25, 50, 75])
    return {
        "median": float(median),
        "minimum": float(min(values)),
        "lower_quartile": float(lower),
        "upper_quartile": float(upper),
        "rounds": len(values),
    }


def times_faster(baseline: Timings, contender: Timings) -> dict[str, float]:
    """How many times less wall time than a baseline of the same race: ratio of medians.

    The quartiles are those of the ratios round by round, in which whatever slowed a whole round cancels.
    """
    by_round = np.array(baseline.seconds) / np.array(contender.seconds)
    lower, upper = np.percentile(by_round, [25, 75])
    ratio = np.median(baseline.seconds) / np.median(contender.seconds)
    return {"ratio": float(ratio), "lower_quartile": float(lower), "upper_quartile": float(upper)}


def against(timings: Mapping[str, Timings], name: str, baselines: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """`times_faster` than each baseline that took part; `baselines` maps how a report calls it to its name."""
    return {
        label: times_faster(timings[other], timings[name])
        for label, other in baselines.items()
        if other in timings and other != name
    }
