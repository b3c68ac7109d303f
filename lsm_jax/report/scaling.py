"""Scaling over a grid of runs: loss against data, parameters and compute, power laws, the compute-optimal frontier."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lsm_jax import objectives
from lsm_jax.config import Config
from lsm_jax.data.spec import DataSpec, open_datasets
from lsm_jax.errors import UserError
from lsm_jax.evals.result import EvalResult, channels_of_other_units, write_whole
from lsm_jax.evals.scaling import (
    DRAWS,
    FLATTEST,
    MIN_POINTS,
    STEEPEST,
    PowerLaw,
    frontier,
    law_with_intervals,
)
from lsm_jax.report.reconstructions import PNG
from lsm_jax.report.render import number, readable, render
from lsm_jax.report.style import HUES, LIGHT, inline_svg, new_figure, styled
from lsm_jax.sharding import axes_of, named_parameters
from lsm_jax.train.loop import make_schedule
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.workdir import CONFIG, EVALUATIONS, SPEC, read_config

# Evaluations that differ in one of these do not compare.
_SETTINGS = ("split", "seed", "max_windows", "mask_channels")
VALIDATION = "validation_loss"
# Axis of a fit: its unit, and what the runs of one curve have in common.
AXES = {"data_hours": ("h", "parameters"), "parameters": ("", "data_hours"), "compute": ("FLOP", "")}

Drawn = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ScaledRun:
    """A run of the grid.

    Attributes:
      data_hours: length of the recordings of its training people.
      compute: useful FLOPs of the whole training.
      tokens_seen: observed tokens of all batches.
      loss: the score at the end.
      curve: (compute, validation loss) during training.
      by_person: sum of squared errors and cells by person; empty for the validation loss.
    """

    name: str
    size: str
    parameters: int
    data_hours: float
    compute: float
    tokens_seen: float
    step: int
    loss: float
    curve: tuple[tuple[float, float], ...]
    by_person: Mapping[str, tuple[float, float]]


def write_scaling(folder: Path, out: Path, score: str = VALIDATION) -> str:
    """Reads the runs in `folder`, writes `scaling.json`, `.md`, `.html` and `.png` into `out`; returns the Markdown.

    Args:
      score: `validation_loss`, or a squared error of the generative suite: `generative/random_imputation_80%`.

    Raises:
      UserError: there are fewer than two finished runs.
    """
    notes: list[str] = []
    runs = sorted(_read_runs(folder, score, notes), key=lambda run: (run.parameters, run.data_hours, run.name))
    if len(runs) < 2:
        raise UserError(" ".join([f"{folder} has {len(runs)} runs with a {score}; scaling needs several.", *notes]))
    content = scaling(runs, score)
    content["notes"] = notes + content["notes"]
    write_whole(out / "scaling.json", json.dumps(content, indent=1, allow_nan=False))
    scaling_figure(content).savefig(out / "scaling.png", **PNG)
    text = render("scaling.md", **content)
    write_whole(out / "scaling.md", text)
    write_whole(out / "scaling.html", scaling_page(content))
    return text


def scaling(runs: Sequence[ScaledRun], score: str) -> dict[str, Any]:
    """The content of `scaling.json`."""
    drawn = _draws_of_people(runs)
    fits: list[dict[str, Any]] = []
    residuals = f"from the residuals ({DRAWS} draws)."
    over = f"over people ({DRAWS} draws); those of the frontier are {residuals}" if drawn else residuals
    notes = [f"Intervals are {over}"]
    for axis, (_, shared) in AXES.items():
        curves: dict[Any, list[ScaledRun]] = {}
        for run in runs if shared else ():
            curves.setdefault(getattr(run, shared), []).append(run)
        for value, members in curves.items():
            amounts = [getattr(run, axis) for run in members]
            if len({*amounts}) < 2:
                continue
            fits.append(_fit(axis, {shared: value}, members, amounts, drawn, notes))
            for before, after in _rises(members, axis, drawn):
                notes.append(f"loss rises from {before.name} ({before.loss:.4g}) to {after.name} ({after.loss:.4g}).")
    # The validation loss is known all along a run, other scores at its end.
    reached = [
        (run, curve) for run in runs for curve in (run.curve if score == VALIDATION else ((run.compute, run.loss),))
    ]
    best = frontier(*(np.array([curve[column] for _, curve in reached]) for column in (0, 1)))
    points = [
        {"compute": amount, "loss": loss, "parameters": run.parameters, "run": run.name}
        for run, (amount, loss) in (reached[index] for index in best)
    ]
    amounts, losses = ([point[name] for point in points] for name in ("compute", "loss"))
    fits.append(
        {"axis": "compute", "shared": {}, "points": points} | _law(amounts, losses, None, notes, "the frontier")
    )
    return {
        "score": score,
        "runs": [{k: v for k, v in dataclasses.asdict(run).items() if k != "by_person"} for run in runs],
        "fits": fits,
        "frontier": points,
        "notes": notes,
    }


def _fit(
    axis: str, shared: Mapping[str, Any], members: Sequence[ScaledRun], amounts: Sequence[float], drawn: Drawn,
    notes: list[str],
) -> dict[str, Any]:  # fmt: skip
    """One curve: its points and, where there are enough, its law."""
    points = [{axis: amount, "loss": run.loss, "run": run.name} for run, amount in zip(members, amounts, strict=True)]
    losses = np.stack([drawn[run.name] for run in members], axis=1) if drawn else None
    where = ", ".join(f"{name} {number(value)}" for name, value in shared.items())
    law = _law(amounts, [run.loss for run in members], losses, notes, f"{axis} at {where}")
    return {"axis": axis, "shared": dict(shared), "points": points} | law


def _law(
    amounts: Sequence[float], losses: Sequence[float], drawn: np.ndarray | None, notes: list[str], what: str
) -> dict[str, Any]:
    if len({*amounts}) < MIN_POINTS:
        notes.append(f"no law of {what}: {len({*amounts})} different amounts, and a fit needs {MIN_POINTS}.")
        return {"law": None}
    law = law_with_intervals(np.array(amounts), np.array(losses), drawn)
    low, high = law["ci95"]["b"]
    if low <= -0.99 * STEEPEST and high >= -1.01 * FLATTEST:
        notes.append(f"{what}: every exponent fits, so these losses say nothing about a law.")
    return {"law": law}


def _rises(members: Sequence[ScaledRun], axis: str, drawn: Drawn) -> Iterator[tuple[ScaledRun, ScaledRun]]:
    """Neighbours on an axis where more of it has a higher loss; surely so where people were drawn."""
    ordered = sorted(members, key=lambda run: getattr(run, axis))
    for before, after in itertools.pairwise(ordered):
        sure = not drawn or np.percentile(drawn[after.name] - drawn[before.name], 2.5) > 0
        if after.loss > before.loss and sure:
            yield before, after


def _draws_of_people(runs: Sequence[ScaledRun]) -> dict[str, np.ndarray]:
    """The loss of each run for draws of people, the same for all.

    Empty unless all runs were scored on equal cells of two people or more.
    """
    cells = [{person: count for person, (_, count) in run.by_person.items()} for run in runs]
    if len(cells[0]) < 2 or any(each != cells[0] for each in cells):
        return {}
    people = sorted(cells[0])
    weights = np.random.default_rng(0).multinomial(len(people), np.full(len(people), 1 / len(people)), DRAWS)
    sums = {run.name: np.array([run.by_person[person] for person in people]) for run in runs}
    return {name: (weights @ pair[:, 0]) / (weights @ pair[:, 1]) for name, pair in sums.items()}


def _read_runs(folder: Path, score: str, notes: list[str]) -> Iterator[ScaledRun]:
    """The finished runs in a folder; adds to `notes` why others are left out."""
    counts: dict[Any, int] = {}
    first: dict[str, Any] = {}
    for file in sorted(folder.glob(f"**/{CONFIG}")):
        if (file.parent / SPEC).is_file():
            try:
                yield _read_run(file.parent, str(file.parent.relative_to(folder)), score, counts, first)
            except UserError as error:
                notes.append(f"{file.parent.relative_to(folder)} is left out: {error}")


def _read_run(workdir: Path, name: str, score: str, counts: dict[Any, int], first: dict[str, Any]) -> ScaledRun:
    """One run; UserError where it is not finished or has no score.

    Args:
      counts: keeps the parameters of each model.
      first: keeps the provenance of the first run's evaluation; all others must have been evaluated alike.
    """
    config, spec, metrics = read_config(workdir), DataSpec.load(workdir / SPEC), read_metrics(workdir)
    datasets = open_datasets(config.data)
    training = [record for record in metrics if "useful_flops" in record]
    step, total = max((record["step"] for record in training), default=0), make_schedule(config, datasets).total
    if step < total:
        raise UserError(f"it has taken {step} of {total} steps; run the grid again.")
    loss, by_person = _score(workdir, score, metrics, step, first)
    flops, tokens = (
        float(np.mean([record[metric] for record in training])) for metric in ("useful_flops", "tokens_observed")
    )
    model = (config.objective, config.model, config.tokens, config.language, spec.channels, spec.window_minutes)
    if model not in counts:  # tracing a model takes a second
        counts[model] = _parameters(config, spec)
    validated = _validation_losses(metrics)
    return ScaledRun(
        name=name,
        size=config.model.size,
        parameters=counts[model],
        data_hours=sum(float(dataset.source("train").steps.sum()) for dataset in datasets) / 60,
        compute=flops * step,
        tokens_seen=tokens * step,
        step=step,
        loss=loss,
        curve=tuple((flops * at, value) for at, value in validated if at and math.isfinite(value)),
        by_person=by_person,
    )


def _validation_losses(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Steps and validation losses, without the person loss, which depends on how many people there are.

    NaN where a loss was not finite, which `metrics.jsonl` has as null.
    """
    losses = [
        (record["step"], record.get("validation_reconstruction_loss", record[VALIDATION]))
        for record in metrics
        if VALIDATION in record
    ]
    return [(step, math.nan if loss is None else float(loss)) for step, loss in losses]


def _score(
    workdir: Path, score: str, metrics: Sequence[Mapping[str, Any]], step: int, first: dict[str, Any]
) -> tuple[float, dict[str, tuple[float, float]]]:
    """The score at the end of a run, at `step`, and its parts by person where they are kept."""
    if score == VALIDATION:
        validated = _validation_losses(metrics)
        if not validated:
            raise UserError("it has no validation loss.")
        if not math.isfinite(validated[-1][1]):
            raise UserError("its last validation loss is not finite.")
        return validated[-1][1], {}
    suite, _, task = score.partition("/")
    file = workdir / EVALUATIONS / f"{suite}.json"
    if not file.is_file():
        raise UserError(f"it has no evaluation; run `lsm evaluate --workdir {workdir} --suite {suite}`.")
    try:
        result = EvalResult(**json.loads(file.read_text(encoding="utf-8")))
        errors = [row for row in result.results if row.get("mse") is not None]
        scores = dataclasses.replace(result, results=errors).scalars()
        scored = int(result.provenance["step"])
        people = {
            f"{row['dataset']} {row['participant']}": tuple(values)
            for row in result.by_person
            for name, values in row["scores"].items()
            if name.replace(" ", "_") == task
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file}: damaged ({error!r}); run `lsm evaluate` again.") from None
    if task not in scores:
        raise UserError(f"{file} has no squared error {task!r}; it has {', '.join(scores) or 'none'}.")
    if scored != step:
        raise UserError(f"{file} is of step {scored}, and the run ends at {step}; run `lsm evaluate` again.")
    if not first:
        first.update(result.provenance)
    for name in _SETTINGS:
        if result.provenance.get(name) != first.get(name):
            raise UserError(
                f"{file} was evaluated with another {name} than the first run ({first.get(name)}): evaluate all alike."
            )
    if rescaled := channels_of_other_units(first, result.provenance):
        raise UserError(f"{file}: errors of {', '.join(rescaled)} have other units than those of the first run.")
    return float(scores[task]), people


def _parameters(config: Config, spec: DataSpec) -> int:
    """Trainable numbers in the model's matrices.

    Tables with a row for each channel do not grow with the model and are left out, as embeddings are by Kaplan et al.
    (2020, arXiv 2001.08361, section 2.1); so are biases and scales.
    """
    init: Callable[..., Any] = objectives.build(config, spec).init
    shapes = named_parameters(jax.eval_shape(init, jax.random.key(0)))
    return sum(math.prod(leaf.shape) for path, leaf in shapes if axes_of(path, leaf.shape).is_kernel)


@styled()
def scaling_figure(content: Mapping[str, Any]) -> Figure:
    """Loss over data, parameters and compute; points are runs, lines are laws, dotted where there is none."""
    figure, panels = new_figure(11.5, 4.2, ncols=len(AXES))
    for axes, axis in zip(panels, AXES, strict=True):
        _draw_axis(axes, axis, content)
    return figure


@styled()
def scaling_page(content: Mapping[str, Any]) -> str:
    """The content of `scaling.json` as one self-contained page, with a picture for each axis."""
    pictures = []
    for axis in AXES:
        figure, axes = new_figure(3.9, 3.9)
        _draw_axis(axes, axis, content)
        pictures.append((readable(axis), inline_svg(figure, f"{content['score']} over {readable(axis)}")))
    return render("scaling.html", title="Scaling", pictures=pictures, **content)


def _draw_axis(axes: Axes, axis: str, content: Mapping[str, Any]) -> None:
    unit, shared = AXES[axis]
    if axis == "compute":
        for run in content["runs"]:
            if run["curve"] and content["score"] == VALIDATION:
                axes.plot(*zip(*run["curve"], strict=True), color=LIGHT["missing"], linewidth=0.8)
    curves = [fit for fit in content["fits"] if fit["axis"] == axis]
    for place, fit in enumerate(curves):
        amounts, losses = (np.array([point[name] for point in fit["points"]]) for name in (axis, "loss"))
        colour = LIGHT[HUES[place % len(HUES)]]
        label = number(fit["shared"][shared]) if shared else "frontier"
        axes.plot(amounts, losses, "o", color=colour, markersize=4, label=label)
        if fit["law"]:
            line = np.geomspace(amounts.min(), amounts.max(), 100)
            axes.plot(line, PowerLaw(*(fit["law"][name] for name in "abc"))(line), color=colour, linewidth=1.2)
        else:
            axes.plot(amounts, losses, ":", color=colour, linewidth=1)
    axes.set(xscale="log", xlabel=f"{readable(axis)}{f' ({unit})' if unit else ''}", ylabel=content["score"])
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: number(value) if value < 1e7 else f"{value:.0e}".replace("+", ""))
    axes.xaxis.set_minor_formatter(NullFormatter())  # matplotlib's own are formulas, which the style shows as text
    if curves:
        axes.legend(title=readable(shared), loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
