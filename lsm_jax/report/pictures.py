"""Pictures of a dataset as PNG: when channels are missing, how long gaps last, what single days look like.

Grey means *not recorded* in all of them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lsm_jax.data.store import Moments
from lsm_jax.windows import MINUTES_PER_DAY, Event, Window

_GREY = "#d9dce1"
_INK = "#1f2933"
_SOFT = "#6b7683"
_ACCENT = "#0f766e"
_RECORDED_TO_MISSING = LinearSegmentedColormap.from_list("recorded_to_missing", [_ACCENT, "#8fc9c1", _GREY])
_EVENT_COLOURS = {
    "sleep": "#4f46e5",
    "activity": "#ea580c",
    "session": "#be185d",
    "meal": "#65a30d",
    "mood": "#ca8a04",
}
_SPREAD = 2.5  # standard deviations either side of a channel's mean that the colours of a day span
_STYLE: Any = {  # matplotlib's stubs want every key as a literal
    "font.family": "sans-serif",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # labels come from data; a dollar sign in one is no formula
}


def missingness_picture(card: Mapping[str, Any]) -> bytes:
    """Share of missing steps by channel (rows) and local hour (columns)."""
    by_hour = card["missing_by_hour"]
    shares = np.array([[np.nan if share is None else share for share in row] for row in by_hour.values()], np.float64)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(9.0, 0.6 + 0.21 * max(len(by_hour), 3))
        image = axes.imshow(shares, cmap=_RECORDED_TO_MISSING, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        axes.set_xticks(np.arange(0, 24, 3), [f"{hour:02d}:00" for hour in range(0, 24, 3)])
        axes.set_yticks(np.arange(len(by_hour)), _readable(by_hour))
        axes.set_xticks(np.arange(25) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(by_hour) + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="both", length=0)
        _frameless(axes)
        bar = figure.colorbar(image, ax=axes, fraction=0.025, pad=0.015, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0 %", "50 %", "100 %"])
        bar.ax.tick_params(length=0, colors=_SOFT)
        bar.outline.set_visible(False)
        return _png(figure)


def gaps_picture(card: Mapping[str, Any]) -> bytes:
    """Share of the missing time that lies in gaps of each length, over all channels."""
    bounds = card["gaps"]["minutes_at_least"]
    minutes = np.array(list(card["gaps"]["minutes"].values()), np.float64).reshape(-1, len(bounds)).sum(axis=0)
    shares = 100 * minutes / max(minutes.sum(), 1)
    labels = [_span(low, high) for low, high in zip(bounds, [*bounds[1:], None], strict=True)]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(9.0, 2.4)
        bars = axes.bar(np.arange(len(bounds)), shares, color=_ACCENT, width=0.72)
        axes.bar_label(bars, [f"{share:.0f} %" if share >= 0.5 else "" for share in shares], padding=2, color=_SOFT)
        axes.set_xticks(np.arange(len(bounds)), labels)
        axes.set_yticks([])
        axes.tick_params(length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(0, max(shares.max() * 1.15, 1))
        return _png(figure)


def day_picture(window: Window, moments: Mapping[str, Moments]) -> bytes:
    """One window: channels (rows) by local time, coloured by standard deviations from the channel's mean.

    Args:
      moments: the training split's; a channel it never saw is drawn at its own scale.
    """
    scaled = np.ma.masked_array(_standardised(window, moments).T, mask=~window.observed.T)
    kinds = sorted({event.kind for event in window.events})
    heights = [0.16 * len(kinds) + 0.02, max(0.135 * len(window.channels), 0.8)]
    colours = matplotlib.colormaps["viridis"].with_extremes(bad=_GREY)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 0.35 + sum(heights)), dpi=150, layout="constrained")
        figure.get_layout_engine().set(h_pad=0.01, hspace=0.02)  # type: ignore[union-attr, call-arg]
        events, cells = figure.subplots(2, 1, sharex=True, height_ratios=heights)
        extent = (0, len(window.observed), len(window.channels), 0)
        cells.imshow(
            scaled, cmap=colours, vmin=-_SPREAD, vmax=_SPREAD, aspect="auto", interpolation="none", extent=extent
        )
        cells.set_yticks(np.arange(len(window.channels)) + 0.5, _readable(window.channels), fontsize=6.5)
        cells.set_xticks(*_clock(window))
        cells.tick_params(length=0)
        _frameless(cells)
        _draw_events(events, window.events, kinds)
        return _png(figure)


def _draw_events(axes: Axes, events: Sequence[Event], kinds: Sequence[str]) -> None:
    axes.set_ylim(max(len(kinds), 1), 0)
    axes.set_yticks(np.arange(len(kinds)) + 0.5, kinds, fontsize=6.5)
    axes.tick_params(length=0, labelbottom=False)
    _frameless(axes)
    for event in events:
        row, width = kinds.index(event.kind), max(event.end - event.start, 4)
        axes.broken_barh([(event.start, width)], (row + 0.08, 0.84), color=_EVENT_COLOURS.get(event.kind, _SOFT))
        # A name is drawn where it fits: about eleven minutes of a day's picture to the letter.
        if width > 11 * len(event.name):
            centre = event.start + width / 2
            axes.text(centre, row + 0.52, event.name, color="white", fontsize=6, ha="center", va="center")


def _standardised(window: Window, moments: Mapping[str, Moments]) -> np.ndarray:
    """float64[T, C]: standard deviations from the mean; unobserved cells hold anything."""
    scaled = np.zeros(window.values.shape)
    for column, name in enumerate(window.channels):
        values = window.values[:, column].astype(np.float64)
        seen = values[window.observed[:, column]]
        known = moments.get(name)
        mean, sd = (known.mean, known.sd) if known and known.count else (seen.mean() if seen.size else 0.0, 0.0)
        scaled[:, column] = (values - mean) / (sd or (seen.std() if seen.size else 0.0) or 1.0)
    return scaled


def _clock(window: Window) -> tuple[list[float], list[str]]:
    """Tick places in steps and their local times, every three hours (every half hour in short windows)."""
    minutes = len(window.observed) * window.minutes_per_step
    every = 180 if minutes > 600 else 30
    start = int(window.start.timestamp()) // 60 + window.utc_offset_minutes
    first = -(-start // every) * every
    times = range(first, start + minutes + 1, every)
    labels = [f"{time % MINUTES_PER_DAY // 60:02d}:{time % 60:02d}" for time in times]
    return [(time - start) / window.minutes_per_step for time in times], labels


def _readable(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    return [name.replace("_", " ") for name in names]


def _span(low: int, high: int | None) -> str:
    """A gap length's label: minutes below an hour, hours above."""

    def text(minutes: int) -> str:
        return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h"

    if high is None:
        return f"{text(low)} or more"
    if high == low + 1:
        return text(low)
    return f"{low}–{high} min" if high <= 60 else f"{text(low)[:-2].strip()}–{text(high)}"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.subplots()


def _frameless(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
