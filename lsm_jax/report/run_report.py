"""The report of a run: one self-contained HTML page of whatever the run's folder holds."""

from __future__ import annotations

import collections
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jinja2

import lsm_jax
from lsm_jax.config import Config, to_json
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import Dataset, open_dataset
from lsm_jax.errors import RunError, UserError
from lsm_jax.evals import SUITES
from lsm_jax.evals.result import write_whole
from lsm_jax.evals.suite import check_never_trained_on
from lsm_jax.events import read_events
from lsm_jax.report.charts import line_chart
from lsm_jax.report.embedding_map import SPLIT, draw_maps, embed_split
from lsm_jax.report.render import by_split, number, percent, png_address, readable, render
from lsm_jax.train.metrics import read_metrics
from lsm_jax.train.run import Run, load_run
from lsm_jax.train.workdir import SPEC, read_config

_Parsed = TypeVar("_Parsed")

_HEADLINES = (
    ("random_imputation", "80%"),
    ("temporal_interpolation", "60min"),
    ("temporal_extrapolation", "60min"),
    ("sensor_imputation", "50%"),
)
_ABLATIONS = ("model_swapped_encoder", "context_only")  # they have a table of their own
_REPRESENTATIONS = {
    "validation_window_cosine": "mean cosine between windows",
    "validation_token_spread": "spread of tokens",
}
_LOSSES = {
    "masked_reconstruction": "masked MSE (z)",
    "imputed_reconstruction": "masked MSE (z), imputed cells included",
    "simclr": "contrastive loss (nats / view)",
    "clip": "contrastive loss (nats / pair)",
    "siglip": "sigmoid loss (nats / window)",
    "cap": "captioning loss (nats / token)",
    "coca": "contrastive + captioning loss",
}
_MAX_EVENTS = 500  # on the page
_CONTRASTIVE = ("zeroshot", "fewshot", "retrieval")
_SUITES = {
    "masked_reconstruction": ("generative",),
    "imputed_reconstruction": ("generative",),
    "simclr": ("probe",),
    "supervised": ("probe",),
    "clip": _CONTRASTIVE,
    "siglip": _CONTRASTIVE,
    "cap": ("captioning",),
    "coca": (*_CONTRASTIVE, "captioning"),
}


def write_report(
    workdir: Path,
    out: Path,
    map_windows: int = 0,
    caption_days: int = 0,
    progress: Callable[[int, int], None] | None = None,
    place: str = "",
) -> Path:
    """Writes the page and returns its path. What has not been done yet is named with the command that does it.

    Args:
      map_windows: windows of the test split on the map of embeddings, which takes the run's model; 0 makes no map.
      caption_days: days of each test split with the caption that the run writes, which takes its model too; a run that
        writes none has none.
      progress: called with the windows embedded and in total.
      place: of the run as commands on the page name it; `workdir` where left out.

    Raises:
      UserError: `workdir` is not the folder of a run, or an evaluation in it is damaged.
    """
    config, spec, metrics = read_config(workdir), DataSpec.load(workdir / SPEC), read_metrics(workdir)
    step = max((record["step"] for record in metrics), default=0)
    suites = _SUITES.get(config.objective.name, ())
    generative = workdir / "eval" / "generative.json"
    evaluation = _read_json(generative, lambda content: _evaluation(content, step))
    other_suites = list(_other_suites(workdir / "eval", step))
    evaluated = {other["suite"] for other in other_suites} | ({"generative"} if evaluation else set())
    figures = sorted((workdir / "eval" / "figures").glob("*.png"))
    # Without the person loss, which has another unit.
    name = "reconstruction_loss" if config.objective.person_weight else "loss"
    losses = {name: "training", f"validation_{name}": "validation"}
    seconds = _newest(metrics, "time", {})
    opened, dataset_rows, datasets_missing = _open(config)
    caption_days = caption_days if "captioning" in suites else 0
    values = {
        "title": workdir.resolve().name,
        "place": shlex.quote(place or str(workdir)),
        "config": config,
        "spec": spec,
        "step": step,
        "evaluation": evaluation,
        "other_suites": other_suites,
        "probes": _read_json(workdir / "eval" / "probe.json", _probes),
        "not_evaluated": [suite for suite in suites if suite not in evaluated],
        "reconstructs": "generative" in suites,
        "pictures": [(file.stem.replace("-", " "), png_address(file.read_bytes())) for file in figures],
        "losses": line_chart(metrics, losses, _loss_label(config)),
        "representations": line_chart(metrics, _REPRESENTATIONS, "validation windows"),
        "speed": line_chart(metrics, {"windows_per_second": "throughput"}, "windows / s", from_zero=True),
        "windows_per_second": _newest(metrics, "windows_per_second", None),
        "events": _timeline(read_events(workdir)),
        "seconds": sorted(((name, spent) for name, spent in seconds.items() if spent), key=lambda item: -item[1]),
        **_model_sections(workdir, opened, map_windows, caption_days, progress),
        "datasets": dataset_rows,
        "datasets_missing": datasets_missing,
        "config_text": to_json(config),
        "made_by": f"lsm_jax {lsm_jax.__version__}, {time.strftime('%Y-%m-%d %H:%M')}",
    }
    try:
        page = render("run_report.html", **values)
    except (ValueError, KeyError, TypeError, jinja2.TemplateError) as error:
        raise _damaged(generative, error) from None
    write_whole(out, page)
    return out


def _loss_label(config: Config) -> str:
    if config.objective.name == "supervised":
        return "cross entropy (nats / example)" if config.supervised.classes else "squared error (z)"
    return _LOSSES.get(config.objective.name, "loss")


def _timeline(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The newest events of all processes, as the template takes them, and how many there were of each name."""
    text = lambda event, name: str(event.get(name, ""))  # noqa: E731
    rows = [
        {name: text(event, name) for name in ("host", "process", "event", "step", "sentence")}
        | {"time": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["time"]))}
        for event in events[-_MAX_EVENTS:]
    ]
    counts = collections.Counter(text(event, "event") for event in events)
    return {"rows": rows, "counts": counts.most_common(), "left_out": len(events) - len(rows)}


def _other_suites(folder: Path, step: int) -> Iterator[dict[str, Any]]:
    """The other suites that have been run; their tables are files of their own."""
    for suite in (name for name in SUITES if name != "generative"):
        scored = _read_json(folder / f"{suite}.json", lambda content: int(content["provenance"]["step"]))
        if scored is not None:
            file = f"{folder.name}/{suite}.md"
            yield {"suite": suite, "file": file, "step": scored, "stale": _stale(scored, step)}


def _probes(content: Mapping[str, Any]) -> dict[str, Any]:
    """The table of the probe suite: the first metric of each task by method."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in content["results"]:
        line = lines.setdefault((row["dataset"], row["task"]), {**row, "values": {}})
        if row["metric"] == line["metric"] and row["value"] is not None:
            line["values"][row["method"]] = float(row["value"])
    methods = dict.fromkeys(row["method"] for row in content["results"])
    return {"methods": list(methods), "rows": list(lines.values()), "notes": list(content["notes"])}


def _read_json(file: Path, parse: Callable[[Mapping[str, Any]], _Parsed]) -> _Parsed | None:
    """What `parse` makes of an evaluation's file; None where there is no file."""
    if not file.is_file():
        return None
    try:
        return parse(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file}: damaged ({error!r}); run `lsm evaluate` again.")


def _evaluation(content: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The tables of the generative suite as the template takes them."""
    results, provenance = content["results"], content["provenance"]
    totals = {(row["task"], row["setting"]): row for row in content["comparisons"] if row["channel"] == "all"}
    mse: dict[tuple[str, str], dict[str, float]] = {}
    for row in results:
        if row["channel"] == "all":
            mse.setdefault((row["task"], row["setting"]), {})[row["method"]] = float(row["mse"])
    tasks = [task for task, _ in mse]
    model = {(row["task"], row["setting"], row["channel"]): row for row in results if row["method"] == "model"}
    encoder = _encoder(content["encoder"], mse)
    drawn = (*content["comparisons"], *content["by_dataset"], *encoder["rows"])
    ends = [abs(end) for row in drawn for end in (row["improvement"], *(row["ci95"] or ()))]
    widest = max([0.1, *ends])
    return {
        "split": provenance["split"],
        "datasets": provenance["datasets"],
        "step": int(provenance["step"]),
        "stale": _stale(provenance["step"], step),
        "methods": [each for each in dict.fromkeys(row["method"] for row in results) if each not in _ABLATIONS],
        "encoder": encoder,
        "limits": (-widest, widest),
        "headlines": [totals[key] for key in _HEADLINES if key in totals],
        "rows": [
            totals[key] | {"mse": by_method, "first_of_task": tasks.index(key[0]) == i}
            for i, (key, by_method) in enumerate(mse.items())
        ],
        "by_dataset": content["by_dataset"],
        "by_channel": [
            row | {name: model[row["task"], row["setting"], row["channel"]][name] for name in ("mae_natural", "unit")}
            for row in content["comparisons"]
            if row["channel"] != "all"
        ],
    }


def _encoder(rows: Sequence[Mapping[str, Any]], mse: Mapping[tuple[str, str], Mapping[str, float]]) -> dict[str, Any]:
    """What the encoder contributes to each task: the model against itself with another day's encoder output."""
    swapped = [row for row in rows if row["baseline"] == _ABLATIONS[0]]
    return {
        "rows": [dict(row) | {"mse": mse[row["task"], row["setting"]]} for row in swapped],
        "least": min((row["improvement"] for row in swapped), default=0.0),
    }


def _stale(scored: int, step: int) -> str:
    return f"Training has since gone on to step {step:,}." if step > scored else ""


def _model_sections(
    workdir: Path,
    datasets: Sequence[Dataset],
    map_windows: int,
    caption_days: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, dict[str, Any] | None]:
    """The map of embeddings and the captions of days, or why there are none; None where none are asked for."""
    held_out = [dataset for dataset in datasets if len(dataset.source(SPLIT))]
    sections: dict[str, Callable[[Run], dict[str, Any]]] = {}
    if map_windows:
        sections["map"] = lambda run: _embedding_map(run, held_out, map_windows, progress)
    if caption_days:
        from lsm_jax.report.written_captions import written_captions  # with scikit-learn, which takes seconds

        sections["captions"] = lambda run: {"days": written_captions(run, held_out, caption_days), "step": run.step}
    made: dict[str, dict[str, Any] | None] = {"map": None, "captions": None}
    run, checked = None, False
    for name, section in sections.items():
        try:
            checked = checked or check_never_trained_on(workdir, held_out, SPLIT)
            run = run or load_run(workdir)
            made[name] = {**section(run), "split": SPLIT, "checked": checked}
        except (UserError, RunError) as error:
            made[name] = {"why": str(error)}
    return made


def _embedding_map(
    run: Run, datasets: Sequence[Dataset], windows: int, progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    embedded = embed_split(run, datasets, windows, progress)
    people = len({*zip(embedded.datasets, embedded.people, strict=True)})
    return {
        "pictures": draw_maps(embedded), "windows": len(embedded.people), "people": people, "step": embedded.step
    }  # fmt: skip


def _open(config: Config) -> tuple[list[Dataset], list[dict[str, str]], list[str]]:
    """The run's datasets, a table row for each, and a sentence for each that cannot be opened any more."""
    opened, rows, missing = [], [], []
    for path in config.data.paths:
        try:
            dataset = open_dataset(path)
            rows.append(_dataset_row(dataset.card))
            opened.append(dataset)
        except (UserError, KeyError, TypeError, ValueError) as error:
            missing.append(f"Dataset {Path(path).name} is not at hand: {error}")
    return opened, rows, missing


def _dataset_row(card: Mapping[str, Any]) -> dict[str, str]:
    return {
        "name": str(card["name"]),
        "people": number(card["people"]),
        "days": number(card["days"]),
        "splits": by_split(card["people_by_split"]),
        "missing": percent(card["missing_share"]),
        "channels": ", ".join(readable(name) for name in card["channels"]),
    }


def _newest(metrics: Sequence[Mapping[str, Any]], name: str, default: Any) -> Any:
    """The last value of a metric that is not zero, empty or missing."""
    return next((record[name] for record in reversed(metrics) if record.get(name)), default)
