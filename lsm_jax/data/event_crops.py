"""Excerpts: a stretch of a day shown and spoken of by itself.

A caption of a whole day names a handful of events somewhere in 1440 minutes, and from random weights it takes long to
find out which words are about which hours. In a stretch around one event there is little else that they could be about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lsm_jax.captions.semantic import KINDS, captioned_events
from lsm_jax.windows import Window

SHORTEST = 60  # minutes
_MARGIN = 30  # minutes at most around an event, so that the end of the record does not tell where it ends


def event_crop(window: Window, random: np.random.Generator, kinds: Sequence[str] = KINDS) -> tuple[int, int]:
    """First minute and the one after the last of a stretch that holds an event and cuts none.

    Its length is log-uniform from `SHORTEST` to the window's, and grows until every event that a caption could speak of
    lies inside with a margin, or outside. The event is drawn by its kind first: a day has more meals than runs.

    Args:
      window: of minutes.
      kinds: of events that captions speak of.
    """
    steps = len(window.observed)
    shortest = min(SHORTEST, steps)
    length = round(shortest * (steps / shortest) ** random.random())
    margin = int(random.integers(1, _MARGIN + 1))
    spoken = captioned_events(window, kinds)
    events = [(max(event.start - margin, 0), min(event.end + margin, steps)) for event in spoken]
    if events:
        kind = random.choice(sorted({event.kind for event in spoken}))
        start, end = events[random.choice([place for place, event in enumerate(spoken) if event.kind == kind])]
        begin = min(int(random.integers(min(max(end - length, 0), start), start + 1)), steps - length)
        stretch = begin, max(begin + length, end)
    else:
        begin = int(random.integers(steps - length + 1))
        stretch = begin, begin + length
    while True:
        touched = [event for event in events if event[0] < stretch[1] and stretch[0] < event[1]]
        grown = min([stretch[0], *(start for start, _ in touched)]), max([stretch[1], *(end for _, end in touched)])
        if grown == stretch:
            return stretch
        stretch = grown


def mask_outside(window: Window, first: int, last: int) -> Window:
    """The window as if nothing had been recorded, or logged, outside of a stretch."""
    within = np.zeros(len(window.observed), bool)
    within[first:last] = True
    observed = window.observed & within[:, None]
    events = tuple(event for event in window.events if first <= event.start and event.end <= last)
    return dataclasses.replace(window, values=np.where(observed, window.values, 0), observed=observed, events=events)
