"""Pictures of an evaluation: days reconstructed, and error against minutes of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsm_jax.channels import CLIPPED_AT_ZERO, channel
from lsm_jax.data.store import Dataset
from lsm_jax.evals.baselines import predict_baselines
from lsm_jax.evals.pairs import (
    Windows,
    model_batch,
    person_chunks,
    scored_cells,
    task_pairs,
)
from lsm_jax.evals.results import Results
from lsm_jax.objectives import masked
from lsm_jax.tokens.tasks import Task
from lsm_jax.train.run import Run

SHOWN_TASKS: tuple[Task, ...] = (
    Task("random_imputation", share=0.8),
    Task("temporal_interpolation", minutes=180),
    Task("temporal_extrapolation", minutes=180),
    Task("sensor_imputation", share=0.5),
)
COLOURS: Mapping[str, str] = {"truth": "#334155", "model": "#e4572e", "linear": "#2a9d8f", "hidden": "#f3e7c9"}
_MOST_CHANNELS = 5
_CANDIDATES = 200


def write_reconstructions(
    run: Run, datasets: Mapping[str, Dataset], folder: Path, split: str, seed: int, batch_size: int = 32
) -> list[Path]:
    """Draws the fullest day of a person of each data set under four tasks, one PNG per data set.

    Args:
      batch_size: that of the evaluation before, whose compiled programs then serve here too.

    Returns:
      The files, `reconstruction-DATASET.png`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, dataset in datasets.items():
        windows = _fullest_window(dataset, run, split)
        filled = sorted(_reconstructed(run, windows, seed, batch_size), key=lambda one: SHOWN_TASKS.index(one.task))
        if filled:
            paths.append(folder / f"reconstruction-{name}.png")
            _draw(run, windows, filled, name).savefig(paths[-1], dpi=130, facecolor="white")
    return paths


def learning_curve(points: Sequence[Results]) -> Figure:
    """Error of the model against minutes of training, the best baseline of each task as a level line.

    Args:
      points: checkpoints of one run, in order, scored on the same windows.
    """
    curves: dict[tuple[str, str], list[tuple[float, dict[str, Any]]]] = {}
    for point in points:
        for row in point.comparisons:
            if row["channel"] == "all":
                curves.setdefault((row["task"], row["setting"]), []).append((point.provenance["minutes"], row))
    names = list(dict.fromkeys(task for task, _ in curves))
    figure = Figure(figsize=(3.4 * len(names), 3.2), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        for number, ((_, setting), line) in enumerate((key, line) for key, line in curves.items() if key[0] == name):
            colour = f"C{number}"
            axes.plot([m for m, _ in line], [row["model_mse"] for _, row in line], "o-", color=colour, label=setting)
            axes.axhline(line[-1][1]["baseline_mse"], color=colour, linestyle=":", linewidth=1)
        axes.set(title=name.replace("_", " "), xlabel="minutes of training", ylabel="MSE (z)")
        axes.legend(frameon=False, fontsize=8)
    return figure


def _fullest_window(dataset: Dataset, run: Run, split: str) -> Windows:
    """Of a sample of the split, the window with the most recorded, many channels before long ones."""
    source = dataset.held_out(split)
    number = dict.fromkeys(source.participants, 0)
    best: Windows | None = None
    for windows in person_chunks(source, run.spec, number, _CANDIDATES):
        row = int(np.argmax([_fullness(observed) for observed in windows.observed]))
        if best is None or _fullness(windows.observed[row]) > _fullness(best.observed[0]):
            best = windows.part(slice(row, row + 1))
    assert best is not None  # a held-out source is never empty
    return best


def _fullness(observed: np.ndarray) -> float:
    return float(np.sqrt(observed.mean(axis=0)).sum())


@dataclasses.dataclass(frozen=True)
class _Filled:
    """One window under one task: where cells were hidden, and what was put there, z-scored."""

    task: Task
    step: np.ndarray
    channel: np.ndarray
    lines: Mapping[str, np.ndarray]


def _reconstructed(run: Run, windows: Windows, seed: int, batch_size: int) -> Iterator[_Filled]:
    objective = masked(run.objective)
    for pairs in task_pairs(windows, SHOWN_TASKS, objective.tokens, seed, batch_size, objective.max_context_tokens):
        visible, cells = scored_cells(windows, pairs, objective.tokens)
        batch, hidden = model_batch(windows, pairs, visible)
        model = np.asarray(objective.reconstruct(run.params, batch, hidden))[tuple(cells)]
        values = windows.values[pairs.window]
        linear = predict_baselines(values, visible, cells, np.zeros_like(values), np.zeros_like(values))["linear"]
        for row, number in enumerate(pairs.task):
            here = cells.window == row
            lines = {"model": model[here], "linear": linear[here]}
            yield _Filled(SHOWN_TASKS[int(number)], cells.step[here], cells.channel[here], lines)


def _draw(run: Run, windows: Windows, filled: Sequence[_Filled], title: str) -> Figure:
    recorded = windows.observed[0].sum(axis=0)
    shown = [int(c) for c in np.argsort(-recorded, kind="stable")[:_MOST_CHANNELS] if recorded[c]]
    figure = Figure(figsize=(3.3 * len(filled), 0.7 + 1.2 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(filled), squeeze=False, sharex=True)
    figure.suptitle(f"{title}: one day of a person never trained on", fontsize=11, x=0.01, ha="left")
    for column, one in enumerate(filled):
        for row, number in enumerate(shown):
            here = one.channel == number
            lines = {method: line[here] for method, line in one.lines.items()}
            _panel(grid[row, column], run, windows, number, one.step[here], lines)
        grid[0, column].set_title(f"{one.task.name.replace('_', ' ')}, {one.task.setting}", fontsize=10)
        grid[-1, column].set_xlabel("hour of the day", fontsize=9)
    for row, number in enumerate(shown):
        kind = channel(run.spec.channels[number])
        grid[row, 0].set_ylabel(f"{kind.name.replace('_', ' ')}\n({kind.unit})", fontsize=8)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=4, frameon=False, fontsize=9)
    return figure


def _panel(
    axes: Axes,
    run: Run,
    windows: Windows,
    number: int,
    steps: np.ndarray,
    lines: Mapping[str, np.ndarray],
) -> None:
    """One channel under one task, in natural units; hidden spans shaded."""
    name = run.spec.channels[number]
    mean, sd = float(run.spec.mean[number]), float(run.spec.sd[number])
    minutes = windows.values.shape[1]
    hours = (int(windows.start_minute[0]) + np.arange(minutes)) / 60
    truth = np.where(windows.observed[0, :, number], windows.values[0, :, number] * sd + mean, np.nan)
    hidden = np.zeros(minutes, bool)
    hidden[steps] = True
    axes.fill_between(
        hours, 0, 1, where=hidden, step="mid", transform=axes.get_xaxis_transform(), color=COLOURS["hidden"], lw=0,
        label="hidden",
    )  # fmt: skip
    axes.plot(hours, truth, color=COLOURS["truth"], linewidth=0.7, alpha=0.75, label="recorded")
    for method, predicted in lines.items():
        curve = np.full(minutes, np.nan)
        natural = predicted * sd + mean
        curve[steps] = np.maximum(natural, 0) if name in CLIPPED_AT_ZERO else natural
        style = "--" if method == "linear" else "-"
        axes.plot(hours, curve, style, color=COLOURS[method], linewidth=1.1, label=method)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0)
