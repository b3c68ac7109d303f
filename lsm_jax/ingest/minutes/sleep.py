"""Sleep as devices log it, in spells of one stage: events, and the channels of the stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from lsm_jax.ingest.reader import RecordEvent, Series

Stage = Literal["light", "deep", "rem", "awake", "asleep", "restless", "in bed"]
STAGES: tuple[Stage, ...] = get_args(Stage)
MAX_GAP_MINUTES = 30  # spells that are nearer than this belong to one sleep
STAGE_CHANNELS = {"awake": "sleep_awake", "light": "sleep_light", "deep": "sleep_deep", "rem": "sleep_rem"}
STAGED = frozenset({"light", "deep", "rem"})  # a sleep without one of these has no stages
SLEEP_CHANNELS = (*STAGE_CHANNELS.values(), "sleep_state")
_CLASSIC_STATES = {"asleep": 1.0, "restless": 2.0, "awake": 3.0}  # of the channel "sleep_state"


class Spell(NamedTuple):
    """A stage that lasted from `start` to `end`, in seconds since the epoch, UTC."""

    start: float
    end: float
    stage: Stage


def best_spells(ranked: Iterable[tuple[int, Spell]]) -> list[Spell]:
    """The spells of the best sources in order of time; one that overlaps a spell of a better source is left out.

    What says only that somebody was in bed ranks below every sleep.

    Args:
      ranked: each spell with the rank of its source, 0 is the best.
    """
    by_rank: dict[tuple[bool, int], set[Spell]] = {}
    for rank, spell in ranked:
        by_rank.setdefault((spell.stage == "in bed", rank), set()).add(spell)
    kept: list[Spell] = []
    for _, spells in sorted(by_rank.items()):
        taken = np.array([*_joined(kept, 0), (np.inf, np.inf)])  # in order, and apart
        mine = sorted(spells)
        before = np.searchsorted(taken[:, 0], [spell.end for spell in mine]) - 1
        ends = np.append(taken[:, 1], -np.inf)[before]  # index -1: nothing starts before the spell ends
        kept = sorted([*kept, *(spell for spell, end in zip(mine, ends, strict=True) if end <= spell.start)])
    return kept


def sleep_events(spells: Sequence[Spell]) -> tuple[RecordEvent, ...]:
    """An event "asleep" for each sleep, from falling asleep to waking up, and an event for each stage within it.

    Args:
      spells: in order of time.
    """
    events = []
    for sleep in sleeps_of(spells):
        if asleep := [spell for spell in sleep if spell.stage != "awake"]:
            events.append(("asleep", asleep[0].start, max(spell.end for spell in asleep)))
        for stage in STAGES[:-1]:
            if stage != "asleep":
                times = _joined([spell for spell in sleep if spell.stage == stage], 1)
                events += [(stage, start, end) for start, end in times]
    in_bed = _joined([spell for spell in spells if spell.stage == "in bed"], 60 * MAX_GAP_MINUTES)
    events += [("in bed", start, end) for start, end in in_bed]
    return tuple(RecordEvent("sleep", name, start / 60, end / 60) for name, start, end in events)


def sleep_series(spells: Sequence[Spell]) -> Iterator[Series]:
    """The share of each minute that each stage has; of a sleep without stages the channel `sleep_state`.

    Minutes outside sleep, or covered for less than half, are not observed.

    Args:
      spells: in order of time.
    """
    minutes: dict[str, list[np.ndarray]] = {}
    values: dict[str, list[np.ndarray]] = {}
    for sleep in sleeps_of(spells):
        is_staged = any(spell.stage in STAGED for spell in sleep)
        stages = STAGE_CHANNELS if is_staged else _CLASSIC_STATES
        first = int(sleep[0].start // 60)
        count = int(-(-max(spell.end for spell in sleep) // 60)) - first
        shares = {stage: _share(sleep, stage, first, count) for stage in stages}
        covered = np.sum([*shares.values()], axis=0)
        minute = np.flatnonzero(covered >= 0.5)
        if is_staged:
            found = {STAGE_CHANNELS[stage]: share[minute] / covered[minute] for stage, share in shares.items()}
        else:  # the most wakeful state of the minute
            states = [np.where(shares[stage] > 0, state, 0) for stage, state in _CLASSIC_STATES.items()]
            found = {"sleep_state": np.max(states, axis=0)[minute]}
        for channel, value in found.items():
            minutes.setdefault(channel, []).append(first + minute)
            values.setdefault(channel, []).append(value)
    for channel in minutes:
        minute, once = np.unique(np.concatenate(minutes[channel]), return_index=True)
        yield Series(channel, minute, np.concatenate(values[channel])[once].astype(np.float32))


def _share(spells: Sequence[Spell], stage: str, first: int, count: int) -> Float[np.ndarray, " n"]:
    """The share of each of `count` minutes from `first` on that spells of a stage cover, at most 1."""
    covered = np.zeros(count)
    for spell in spells:
        if spell.stage == stage:
            begin, end = spell.start / 60 - first, spell.end / 60 - first
            minutes = np.arange(int(begin), int(np.ceil(end)))
            covered[minutes] += np.minimum(minutes + 1, end) - np.maximum(minutes, begin)
    return np.minimum(covered, 1)


def sleeps_of(spells: Sequence[Spell]) -> Iterator[list[Spell]]:
    """Spells that follow each other closely, as one sleep each; not those that only say "in bed"."""
    sleep: list[Spell] = []
    end = -np.inf
    for spell in spells:
        if spell.stage == "in bed":
            continue
        if sleep and spell.start > end + 60 * MAX_GAP_MINUTES:
            yield sleep
            sleep = []
        sleep.append(spell)
        end = max(end, spell.end)
    if sleep:
        yield sleep


def _joined(spells: Sequence[Spell], gap_seconds: float) -> list[tuple[float, float]]:
    """(start, end) of runs of spells that are at most `gap_seconds` apart."""
    runs: list[tuple[float, float]] = []
    for spell in spells:
        if runs and spell.start <= runs[-1][1] + gap_seconds:
            runs[-1] = (runs[-1][0], max(runs[-1][1], spell.end))
        else:
            runs.append((spell.start, spell.end))
    return runs
