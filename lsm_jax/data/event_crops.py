"""Random crops of a day around one logged event, for learning from captions.

The caption of a whole day names a handful of events somewhere in 1440 minutes, and a randomly initialised model takes
long to learn which words describe which hours. A crop around one event leaves little else for the words to describe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lsm_jax.captions.semantic import EVENT_KINDS, captioned_events
from lsm_jax.windows import Window

MIN_CROP_MINUTES = 60
_MAX_MARGIN_MINUTES = 30  # around an event, so that the end of the crop does not tell where the event ends


def event_crop(window: Window, random: np.random.Generator, kinds: Sequence[str] = EVENT_KINDS) -> tuple[int, int]:
    """A random interval of a window, as its first minute and one past its last, that cuts no event.

    The event is drawn by kind first, because a day has more meals than runs. The length is log-uniform between
    `MIN_CROP_MINUTES` and the window's length. The interval then grows until every event that a caption could mention
    lies inside it with a margin, or outside. A window without such events gets an interval anywhere.

    Args:
      window: a window of one minute per step.
      kinds: kinds of events that captions mention.
    """
    steps = len(window.observed)
    shortest = min(MIN_CROP_MINUTES, steps)
    length = round(shortest * (steps / shortest) ** random.random())
    margin = int(random.integers(1, _MAX_MARGIN_MINUTES + 1))
    events = captioned_events(window, kinds)
    spans = [(max(event.steps.start - margin, 0), min(event.steps.stop + margin, steps)) for event in events]
    if spans:
        kind = random.choice(sorted({event.kind for event in events}))
        start, end = spans[random.choice([index for index, event in enumerate(events) if event.kind == kind])]
        first = min(int(random.integers(min(max(end - length, 0), start), start + 1)), steps - length)
        interval = first, max(first + length, end)
    else:
        first = int(random.integers(steps - length + 1))
        interval = first, first + length
    while True:
        overlapping = [span for span in spans if span[0] < interval[1] and interval[0] < span[1]]
        starts, ends = zip(interval, *overlapping, strict=True)
        grown = min(starts), max(ends)
        if grown == interval:
            return interval
        interval = grown


def mask_outside(window: Window, first: int, last: int) -> Window:
    """The window with nothing observed or logged outside the interval [first, last)."""
    inside = np.zeros(len(window.observed), bool)
    inside[first:last] = True
    observed = window.observed & inside[:, None]
    events = tuple(event for event in window.events if first <= event.start and event.end <= last)
    return dataclasses.replace(window, values=np.where(observed, window.values, 0), observed=observed, events=events)
