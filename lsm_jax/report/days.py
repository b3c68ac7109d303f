"""Pictures of single days for the data card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.axes import Axes

from lsm_jax.data.store import Moments
from lsm_jax.report.render import readable
from lsm_jax.report.style import LIGHT, hide_frame, inline_svg, new_figure, styled
from lsm_jax.windows import MINUTES_PER_DAY, Event, Window

_COLOUR_RANGE = 2.5  # standard deviations on both sides of the mean that the colours span
_EVENT_COLOURS = {"sleep": "blue", "activity": "vermilion", "session": "purple", "meal": "green", "mood": "amber"}
_MINUTES_PER_LETTER = 16  # of an event's name, in the picture of a whole day


@styled()
def draw_day(window: Window, moments: Mapping[str, Moments], description: str) -> Markup:
    """One window as an SVG: channels by local time, coloured by their distance from the mean, with its events on top.

    Cells that were not observed show the grey background.

    Args:
      moments: of the training split; a channel without any is drawn on the scale of this window.
    """
    channels = window.channels
    standardised = np.ma.masked_array(_standardised(window, moments).T, mask=~window.observed.T)
    kinds = sorted({event.kind for event in window.events})
    heights = [0.15 * len(kinds) + 0.02, max(0.13 * len(channels), 0.8)]
    figure, (events, cells) = new_figure(
        4.3, 0.35 + sum(heights), nrows=2, ncols=1, sharex=True, gridspec_kw={"height_ratios": heights}
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
    cells.set_yticks(np.arange(len(channels)) + 0.5, [readable(name) for name in channels], fontsize=7)
    cells.set_xticks(*_clock_ticks(window), fontsize=7)
    hide_frame(cells)
    _draw_events(events, window.events, kinds)
    return inline_svg(figure, description)


def _draw_events(axes: Axes, events: Sequence[Event], kinds: Sequence[str]) -> None:
    axes.set_ylim(max(len(kinds), 1), 0)
    axes.set_yticks(np.arange(len(kinds)) + 0.5, kinds, fontsize=7)
    axes.tick_params(labelbottom=False)
    hide_frame(axes)
    for event in events:
        row, width = kinds.index(event.kind), max(event.end - event.start, 4)
        colour = LIGHT[_EVENT_COLOURS.get(event.kind, "soft")]
        axes.broken_barh([(event.start, width)], (row + 0.06, 0.88), color=colour)
        if width > _MINUTES_PER_LETTER * len(event.name):
            centre = event.start + width / 2
            axes.text(centre, row + 0.53, event.name, color="white", fontsize=6, ha="center", va="center")


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


def _clock_ticks(window: Window) -> tuple[list[float], list[str]]:
    """Positions in steps and local times: every six hours, in windows of less than ten hours every hour."""
    minutes = len(window.observed) * window.minutes_per_step
    every = 360 if minutes > 600 else 60
    start = int(window.start.timestamp()) // 60 + window.utc_offset_minutes
    first = -(-start // every) * every
    times = range(first, start + minutes + 1, every)
    labels = [f"{time % MINUTES_PER_DAY // 60:02d}:{time % 60:02d}" for time in times]
    return [(time - start) / window.minutes_per_step for time in times], labels
