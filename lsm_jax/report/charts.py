"""Charts of a run over its steps, and of its error over the minutes it trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.figure import Figure

from lsm_jax.evals.result import EvalResult
from lsm_jax.report.render import readable
from lsm_jax.report.style import HUES, LIGHT, inline_svg, new_figure, styled

_POINTS_PER_MEAN = 40  # the moving mean is over one part in so many of the points


@styled()
def line_chart(
    metrics: Sequence[Mapping[str, Any]], labels: Mapping[str, str], ylabel: str, from_zero: bool = False
) -> Markup | None:
    """Metrics over steps as an SVG, each raw and as a moving mean; None where no metric has a value yet.

    Args:
      labels: the name of each metric in the legend.
    """
    curves = {name: series(metrics, name) for name in labels}
    curves = {name: (steps, values) for name, (steps, values) in curves.items() if len(steps)}
    if not curves:
        return None
    figure, axes = new_figure(3.9, 2.4)
    means = []
    for hue, (name, (steps, values)) in zip(HUES, curves.items(), strict=False):
        means.append(_moving_mean(values))
        axes.plot(steps, values, color=LIGHT[hue], linewidth=0.8, alpha=0.3)
        dots = "." if len(steps) < 50 else ""  # a single point has no line
        axes.plot(steps, means[-1], color=LIGHT[hue], linewidth=1.6, marker=dots, label=labels[name])
    if len(labels) > 1:
        axes.legend()
    # The first steps of a loss fall from far above and would flatten all that follows. Of a short curve, such as that
    # of validation, that is the first point.
    low = 0 if from_zero else min(mean.min() for mean in means)
    high = max(max(np.quantile(mean, 0.98, method="lower"), mean[len(mean) // 2 :].max()) for mean in means)
    if high > low:
        axes.set_ylim(low - (0 if from_zero else 0.06 * (high - low)), high + 0.12 * (high - low))
    axes.set(xlabel="step", ylabel=ylabel)
    axes.grid(axis="y")
    return inline_svg(figure, f"{' and '.join(labels.values())} over steps")


@styled()
def error_over_minutes(points: Sequence[EvalResult]) -> Figure:
    """The model's error over minutes of training; the best baseline of each setting as a dotted line.

    Args:
      points: checkpoints of one run, in order, scored on the same windows.
    """
    curves: dict[tuple[str, str], list[tuple[float, dict[str, Any]]]] = {}
    for point in points:
        for row in point.comparisons:
            if row["channel"] == "all":
                curves.setdefault((row["task"], row["setting"]), []).append((point.provenance["minutes"], row))
    tasks = list(dict.fromkeys(task for task, _ in curves))
    figure, grid = new_figure(3.4 * len(tasks), 3.2, ncols=len(tasks), squeeze=False)
    for axes, task in zip(grid[0], tasks, strict=True):
        settings = [(setting, curve) for (name, setting), curve in curves.items() if name == task]
        for hue, (setting, curve) in zip(HUES, settings, strict=False):
            minutes, rows = zip(*curve, strict=True)
            axes.plot(minutes, [row["model_mse"] for row in rows], "o-", color=LIGHT[hue], label=readable(setting))
            axes.axhline(rows[-1]["baseline_mse"], color=LIGHT[hue], linestyle=":", linewidth=1)
        axes.set(title=readable(task), xlabel="minutes of training", ylabel="MSE (z)")
        axes.legend()
    return figure


def series(
    metrics: Sequence[Mapping[str, Any]], name: str
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """The steps and values of one metric where it is a finite number."""
    points = [
        (record["step"], record[name])
        for record in metrics
        if isinstance(record.get(name), int | float) and math.isfinite(record[name])
    ]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def _moving_mean(values: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
    width = max(1, len(values) // _POINTS_PER_MEAN)
    if width == 1:
        return values
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.full(width, 1 / width), mode="valid")
