"""The charts of a report, as SVG in data addresses: nothing is fetched when the page is opened."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, ACCENT, SECOND, GRID = "#1f2937", "#e4572e", "#2a6f97", "#e5e7eb"
_BUCKETS = (
    "#2a9d8f",
    "#2a6f97",
    "#8ab17d",
    "#e9c46a",
    "#f4a261",
    "#e76f51",
    "#9d8189",
    "#6d6875",
    "#b5838d",
    "#cbd5e1",
)
_SMOOTH_OVER = 40  # a moving mean over this fraction of the points is drawn over the raw ones


def learning_curves(metrics: Sequence[Mapping[str, Any]], loss: str) -> str | None:
    """Training and validation loss over steps; None where there is no loss yet.

    Args:
      loss: what it is, and in which unit.
    """
    training, validation = series(metrics, "loss"), series(metrics, "validation_loss")
    if not len(training[0]) and not len(validation[0]):
        return None
    figure = Figure(figsize=(6.2, 3.0), layout="constrained")
    axes = figure.subplots()
    if len(training[0]):
        axes.plot(*training, color=ACCENT, linewidth=0.8, alpha=0.3)
        axes.plot(training[0], _smoothed(training[1]), color=ACCENT, linewidth=1.6, label="training")
    if len(validation[0]):
        axes.plot(*validation, "o-", color=SECOND, linewidth=1.6, markersize=3.5, label="validation")
    axes.legend(frameon=False)
    # The first steps fall from far above and would flatten all that follows.
    values = np.concatenate([_smoothed(training[1]), validation[1]])
    low, high = values.min(), np.quantile(values, 0.98)
    if high > low:
        axes.set_ylim(low - 0.06 * (high - low), high + 0.12 * (high - low))
    return _finish(figure, axes, "step", loss)


def throughput(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """Windows a second over steps."""
    steps, speed = series(metrics, "windows_per_second")
    if not len(steps):
        return None
    figure = Figure(figsize=(6.2, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, speed, color=SECOND, linewidth=1.2)
    axes.set_ylim(0, 1.12 * speed.max())
    return _finish(figure, axes, "step", "windows / s")


def goodput(shares: Mapping[str, float]) -> str | None:
    """Where wall time went: one bar of named buckets, given in any unit."""
    total = sum(shares.values())
    if not total > 0:
        return None
    figure = Figure(figsize=(12.6, 1.15), layout="constrained")
    axes = figure.subplots()
    left = 0.0
    for number, (name, amount) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
        share = amount / total
        axes.barh(0, share, left=left, color=_BUCKETS[number % len(_BUCKETS)], label=f"{name} {share:.1%}")
        left += share
    axes.set_xlim(0, 1)
    axes.axis("off")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.08), ncols=6, frameon=False, fontsize=8)
    return _data_address(figure)


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of one metric."""
    points = [
        (entry["step"], entry[name])
        for entry in metrics
        if isinstance(entry.get(name), int | float) and math.isfinite(entry[name])
    ]
    return np.array([step for step, _ in points], float), np.array([value for _, value in points], float)


def interval_bar(improvement: float, ci95: Sequence[float] | None, scale: float) -> str:
    """A small inline SVG: the improvement as a bar from zero, its interval as a whisker; `scale` is the half width."""
    width, height, middle = 120, 18, 60

    def x(value: float) -> float:
        return middle + max(-1.0, min(1.0, value / scale)) * (middle - 3)

    left, right = sorted((middle, x(improvement)))
    colour = "#2a9d8f" if improvement > 0 else ACCENT
    parts = [f'<rect x="{left:.1f}" y="5" width="{right - left:.1f}" height="8" rx="1.5" fill="{colour}"/>']
    if ci95:
        low, high = x(ci95[0]), x(ci95[1])
        parts.append(f'<path d="M{low:.1f} 9H{high:.1f}M{low:.1f} 6v6M{high:.1f} 6v6" stroke="{INK}" fill="none"/>')
    parts.append(f'<path d="M{middle} 1v16" stroke="#9ca3af"/>')
    return f'<svg width="{width}" height="{height}" role="img" aria-label="{improvement:+.1%}">{"".join(parts)}</svg>'


def png_address(content: bytes) -> str:
    """A PNG file as an image address."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _smoothed(values: np.ndarray) -> np.ndarray:
    width = max(1, len(values) // _SMOOTH_OVER)
    if len(values) < 2 or width == 1:
        return values
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")


def _finish(figure: Figure, axes: Axes, horizontal: str, vertical: str) -> str:
    axes.set(xlabel=horizontal, ylabel=vertical)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    return _data_address(figure)


def _data_address(figure: Figure) -> str:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue().encode()).decode()
