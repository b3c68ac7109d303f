"""Pictures of an evaluation: one window per dataset with the model's reconstruction of what four tasks hide."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsm_jax.channels import CLIPPED_AT_ZERO, channel
from lsm_jax.data.store import Dataset
from lsm_jax.evals.baselines import predict_fills
from lsm_jax.evals.suite import unique_names
from lsm_jax.evals.task_batches import WindowStack, model_batch, person_stacks, scored_cells, task_pairs
from lsm_jax.objectives import masked
from lsm_jax.report.render import duration, readable
from lsm_jax.report.style import LIGHT, new_figure, styled
from lsm_jax.tokens.tasks import Task
from lsm_jax.train.run import Run
from lsm_jax.windows import MINUTES_PER_DAY

TASKS: tuple[Task, ...] = (
    Task("random_imputation", share=0.8),
    Task("temporal_interpolation", minutes=180),
    Task("temporal_extrapolation", minutes=180),
    Task("sensor_imputation", share=0.5),
)
PNG: Mapping[str, Any] = {"dpi": 130, "facecolor": LIGHT["paper"]}  # how `Figure.savefig` writes pictures
_LINES = {"model": ("-", LIGHT["vermilion"]), "linear": ("--", LIGHT["blue"])}
_MAX_CHANNELS = 5
_MAX_CANDIDATES = 200  # windows of which the fullest is drawn


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The hidden cells of one window under one task, and their z-scored values by method."""

    task: Task
    step: Int[np.ndarray, " cells"]
    channel: Int[np.ndarray, " cells"]
    values: Mapping[str, Float[np.ndarray, " cells"]]


def write_reconstructions(
    run: Run,
    datasets: Sequence[Dataset],
    folder: Path,
    split: str,
    seed: int,
    batch_size: int = 32,
    never_trained_on: bool = False,
) -> list[Path]:
    """Draws the fullest window of each dataset under four tasks, one PNG per dataset, instead of those in the folder.

    Args:
      batch_size: that of the evaluation before, so that its compiled programs are used again.
      never_trained_on: whether it was checked that the run was trained on nobody of the split.

    Returns:
      The files, `reconstruction-DATASET.png`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for earlier in folder.glob("reconstruction-*.png"):
        earlier.unlink()
    minutes = run.spec.window_minutes
    span = "one day" if minutes == MINUTES_PER_DAY else duration(60 * minutes)
    whose = f"{span} of a person {'never trained on' if never_trained_on else f'of the {split} split'}"
    paths = []
    for name, dataset in unique_names(datasets).items():
        window = _fullest_window(dataset, run, split)
        reconstructions = sorted(_reconstruct(run, window, seed, batch_size), key=lambda one: TASKS.index(one.task))
        if reconstructions:
            paths.append(folder / f"reconstruction-{name}.png")
            draw_reconstructions(run, window, reconstructions, f"{name}: {whose}").savefig(paths[-1], **PNG)
    return paths


@styled()
def draw_reconstructions(
    run: Run, window: WindowStack, reconstructions: Sequence[Reconstruction], title: str
) -> Figure:
    """One window: the channels with the most observed cells as rows, the tasks as columns."""
    observed = window.observed[0].sum(axis=0)
    channels = [int(c) for c in np.argsort(-observed, kind="stable")[:_MAX_CHANNELS] if observed[c]]
    rows, columns = len(channels), len(reconstructions)
    figure, grid = new_figure(3.3 * columns, 0.8 + 1.2 * rows, nrows=rows, ncols=columns, squeeze=False, sharex=True)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    for column, reconstruction in zip(grid.T, reconstructions, strict=True):
        for axes, number in zip(column, channels, strict=True):
            cells = reconstruction.channel == number
            values = {method: predicted[cells] for method, predicted in reconstruction.values.items()}
            _draw_channel(axes, run, window, number, reconstruction.step[cells], values)
        column[0].set_title(
            f"{readable(reconstruction.task.name)}, {readable(reconstruction.task.setting)}", fontsize=10
        )
        column[-1].set_xlabel("hour of the day")
    for axes, number in zip(grid[:, 0], channels, strict=True):
        kind = channel(run.spec.channels[number])
        axes.set_ylabel(f"{textwrap.fill(readable(kind.name), 15)}\n({kind.unit})")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _draw_channel(
    axes: Axes,
    run: Run,
    window: WindowStack,
    number: int,
    hidden_steps: Int[np.ndarray, " cells"],
    values: Mapping[str, Float[np.ndarray, " cells"]],
) -> None:
    """One channel under one task in its own unit, the hidden steps shaded."""
    name = run.spec.channels[number]
    mean, sd = float(run.spec.mean[number]), float(run.spec.sd[number])
    minutes = window.values.shape[1]
    hours = (int(window.start_minute[0]) + np.arange(minutes)) / 60
    hidden = np.zeros(minutes, bool)
    hidden[hidden_steps] = True
    axes.fill_between(
        hours, 0, 1, where=hidden, step="mid", transform=axes.get_xaxis_transform(), color=LIGHT["amber"], alpha=0.25,
        linewidth=0, label="hidden",
    )  # fmt: skip
    recorded = np.where(window.observed[0, :, number], window.values[0, :, number] * sd + mean, np.nan)
    axes.plot(hours, recorded, color=LIGHT["ink"], linewidth=0.7, alpha=0.75, label="recorded")
    for method, predicted in values.items():
        curve = np.full(minutes, np.nan)
        curve[hidden_steps] = predicted * sd + mean
        curve = np.maximum(curve, 0) if name in CLIPPED_AT_ZERO else curve
        style, colour = _LINES[method]
        axes.plot(hours, curve, style, color=colour, linewidth=1.1, label=method)
    axes.margins(x=0)


def _reconstruct(run: Run, window: WindowStack, seed: int, batch_size: int) -> Iterator[Reconstruction]:
    objective = masked(run.objective)
    for pairs in task_pairs(window, TASKS, objective.tokens, seed, batch_size):
        visible, cells = scored_cells(window, pairs, objective.tokens)
        batch, hidden = model_batch(window, pairs, visible)
        model = objective.reconstruct(run.params, batch, hidden)[tuple(cells)]
        values = window.values[pairs.window]
        linear = predict_fills(values, visible, cells, np.zeros_like(values), np.zeros_like(values))["linear"]
        for row, number in enumerate(pairs.task):
            here = cells.window == row
            predicted = {"model": model[here], "linear": linear[here]}
            yield Reconstruction(TASKS[int(number)], cells.step[here], cells.channel[here], predicted)


def _fullest_window(dataset: Dataset, run: Run, split: str) -> WindowStack:
    """The window with the most observed cells of a sample of the split; many channels count more than long ones."""

    def fullness(observed: Bool[np.ndarray, "t c"]) -> float:
        return float(np.sqrt(observed.mean(axis=0)).sum())

    source = dataset.nonempty_source(split)
    fullest: WindowStack | None = None
    for windows in person_stacks(source, run.spec, dict.fromkeys(source.participants, 0), _MAX_CANDIDATES):
        row = int(np.argmax([fullness(observed) for observed in windows.observed]))
        if fullest is None or fullness(windows.observed[row]) > fullness(fullest.observed[0]):
            fullest = windows[row : row + 1]
    assert fullest is not None  # a held-out source is never empty
    return fullest
