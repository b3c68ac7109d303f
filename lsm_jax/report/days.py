"""Pictures of single days for the data card, with marks at the hours that a caption speaks of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lsm_jax.captions.facts import EVENTS, Fact, LocalClock
from lsm_jax.data.store import Moments
from lsm_jax.report.render import readable
from lsm_jax.report.style import LIGHT, hide_frame, inline_svg, new_figure, styled
from lsm_jax.windows import MINUTES_PER_DAY, Event, Window

_COLOUR_RANGE = 2.5  # standard deviations on both sides of the mean that the colours span
_EVENT_COLOURS = {"sleep": "blue", "activity": "vermilion", "session": "purple", "meal": "green", "mood": "amber"}
_LETTERS = 65  # of the names of events, from one side of a picture to the other
_ROW_INCHES = 0.16
_NUMBER_WIDTH = 0.03  # of a digit of a mark's number, as a share of the picture


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a sentence of a caption speaks of: its number, the fact, and the steps [first, last) of the window."""

    number: int
    fact: Fact
    first: int
    last: int

    @property
    def text(self) -> str:
        """The number, with the direction of a peak or drop."""
        return f"{self.number}{ {'peak': '▲', 'drop': '▼'}.get(self.fact.kind, '') }"


def caption_marks(window: Window, facts_by_sentence: Sequence[Sequence[Fact]]) -> list[Mark]:
    """The marks of a caption, numbered by its sentences from 1 on; facts about the whole window have none."""
    clock = LocalClock(window)
    facts = [(number, fact) for number, facts in enumerate(facts_by_sentence, 1) for fact in facts]
    spans = [(number, fact, clock.span(fact)) for number, fact in facts]
    return [Mark(number, fact, *span) for number, fact, span in spans if span]


@styled()
def draw_day(window: Window, moments: Mapping[str, Moments], description: str, marks: Sequence[Mark] = ()) -> Markup:
    """One window as an SVG: channels by local time, coloured by their distance from the mean, with its events on top.

    Cells that were not observed show the grey background.

    Args:
      moments: of the training split; a channel without any is drawn on the scale of this window.
      marks: of the window's caption, drawn on the channel or kind of event that each is about. A mark on a channel
        that the window lacks is left out.
    """
    channels = window.channels
    standardised = np.ma.masked_array(_standardised(window, moments).T, mask=~window.observed.T)
    marked = [mark for mark in marks if _event_kind(mark.fact) or mark.fact.subject in channels]
    kinds = sorted({event.kind for event in window.events} | {_event_kind(mark.fact) for mark in marked} - {""})
    heights = [(_ROW_INCHES + 0.02) * len(kinds) + 0.02, max(_ROW_INCHES * len(channels), 0.8)]
    figure, (events, cells) = new_figure(
        4.0, 0.35 + sum(heights), nrows=2, ncols=1, sharex=True, gridspec_kw={"height_ratios": heights}
    )
    figure.get_layout_engine().set(w_pad=0, h_pad=0.01, hspace=0.02)  # type: ignore[union-attr, call-arg]
    cells.set_facecolor(LIGHT["missing"])
    cells.imshow(
        np.ma.repeat(standardised, 8, axis=0),  # so that smoothing along time does not blur one channel into the next
        cmap=matplotlib.colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0)),
        vmin=-_COLOUR_RANGE,
        vmax=_COLOUR_RANGE,
        aspect="auto",
        extent=(0, len(window.observed), len(channels), 0),
    )
    cells.set_yticks(np.arange(len(channels)) + 0.5, [readable(name) for name in channels], fontsize=8)
    shown = _shown_steps(window)
    cells.set_xticks(*_clock_ticks(window, *shown), fontsize=8)
    cells.set_xlim(shown)
    hide_frame(cells)
    _draw_events(events, window.events, kinds, shown[1] - shown[0])
    free: dict[tuple[bool, int], float] = {}  # where a row has space for the next number
    for mark in sorted(marked, key=lambda mark: mark.first):
        kind = _event_kind(mark.fact)
        row = kinds.index(kind) if kind else channels.index(mark.fact.subject)
        at = max(mark.first, free.get((bool(kind), row), 0))
        free[bool(kind), row] = at + (shown[1] - shown[0]) * _NUMBER_WIDTH * len(mark.text)
        _draw_mark(events if kind else cells, mark, row, at)
    return inline_svg(figure, description)


def _event_kind(fact: Fact) -> str:
    """The kind of event that a fact is about; empty for a fact about a channel."""
    return {"mark": "session"}.get(fact.kind, fact.kind) if fact.kind in EVENTS else ""


def _draw_events(axes: Axes, events: Sequence[Event], kinds: Sequence[str], shown: int) -> None:
    axes.set_ylim(max(len(kinds), 1), 0)
    axes.set_yticks(np.arange(len(kinds)) + 0.5, kinds, fontsize=8)
    axes.tick_params(labelbottom=False)
    hide_frame(axes)
    for event in events:
        row, width = kinds.index(event.kind), max(event.end - event.start, shown / 360)
        colour = LIGHT[_EVENT_COLOURS.get(event.kind, "soft")]
        box = ((event.start, width),), (row + 0.06, 0.88)
        axes.broken_barh(*box, color=colour, alpha=0.35, linewidth=0)
        axes.broken_barh(*box, facecolor="none", edgecolor=colour, linewidth=0.6)
        if width * _LETTERS > shown * (len(event.name) + 3):
            centre = event.start + width / 2
            axes.text(centre, row + 0.53, event.name, color=LIGHT["ink"], fontsize=7, ha="center", va="center")


def _draw_mark(axes: Axes, mark: Mark, row: int, at: float) -> None:
    """A frame around a span, and the number inside at its start; the number alone at a moment."""
    moment = mark.last - mark.first <= 1
    if not moment:
        for colour, width in ((LIGHT["paper"], 2.6), (LIGHT["ink"], 1.1)):  # seen on every colour of the cells
            box = Rectangle((mark.first, row + 0.08), mark.last - mark.first, 0.84)
            axes.add_patch(box).set(fill=False, edgecolor=colour, linewidth=width, zorder=3)
    axes.text(
        at, row + 0.5, mark.text, color=LIGHT["ink"], fontsize=7, ha="center" if moment else "left",
        va="center_baseline", zorder=4,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": LIGHT["paper"], "edgecolor": LIGHT["ink"], "linewidth": 0.6},
    ).set_in_layout(False)  # fmt: skip


def _standardised(window: Window, moments: Mapping[str, Moments]) -> Float[np.ndarray, "t c"]:
    """Standard deviations from the channel's mean; the values of unobserved cells have no meaning."""
    standardised = np.zeros(window.values.shape)
    for column, name in enumerate(window.channels):
        values = window.values[:, column].astype(np.float64)
        own = values[window.observed[:, column]] if window.observed[:, column].any() else np.zeros(1)
        trained = moments.get(name)
        mean, sd = (trained.mean, trained.sd) if trained and trained.count else (own.mean(), own.std())
        standardised[:, column] = (values - mean) / (sd or own.std() or 1.0)
    return standardised


def _shown_steps(window: Window) -> tuple[int, int]:
    """The steps [first, last) to show: all, or the hours around records and events that take at most half of them."""
    steps, margin = len(window.observed), max(30 // window.minutes_per_step, 1)
    recorded = np.flatnonzero(window.observed.any(axis=1))
    edges = [*recorded[:1], *recorded[-1:] + 1, *(edge for event in window.events for edge in (event.start, event.end))]
    if not edges or 2 * (max(edges) - min(edges)) > steps:
        return 0, steps
    return max(int(min(edges)) - margin, 0), min(int(max(edges)) + margin, steps)


def _clock_ticks(window: Window, first: int, last: int) -> tuple[list[float], list[str]]:
    """Positions in steps and local times, about five of them between two steps."""
    minutes = (last - first) * window.minutes_per_step
    every = next((tick for tick in (15, 30, 60, 120, 180) if minutes <= 5 * tick), 360)
    begin = int(window.start.timestamp()) // 60 + window.utc_offset_minutes
    start = begin + first * window.minutes_per_step
    times = range(-(-start // every) * every, start + minutes + 1, every)
    labels = [f"{time % MINUTES_PER_DAY // 60:02d}:{time % 60:02d}" for time in times]
    return [(time - begin) / window.minutes_per_step for time in times], labels
