"""Score cards: the evaluations of several runs side by side, each compared with the first.

Squared errors are compared in pairs: the same people are drawn for both runs, and only where both were scored on the
same cells of the same people. Other scores stand with their own intervals. Of robustness the card shows drops, the
smaller the better. A line has a best score only where each run can be compared with the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsm_jax.errors import UserError
from lsm_jax.evals.result import Row, channels_of_other_units, own_scores, write_whole
from lsm_jax.evals.statistics import bootstrap, score_and_interval, weighted_ratio
from lsm_jax.report.render import render
from lsm_jax.train.workdir import EVALUATIONS

_KEYS = ("dataset", "method", "task", "setting", "class", "unit", "metric", "kind", "removal")
_MODEL = ("model", "pretrained")  # the one method of most suites, which needs no column
_LOWER_IS_BETTER = ("mse", "mae", "median rank", "drop", "sentences unrecorded", "sentences unread")
_MUST_AGREE = ("split", "seed", "max_windows", "mask_channels")

Suites = Mapping[str, Mapping[str, Any]]


def write_comparison(folders: Sequence[Path], out: Path, seed: int = 0) -> str:
    """Writes `compare.json`, `compare.md` and `compare.html` into `out`, and returns the Markdown.

    Args:
      folders: of runs, or folders that `lsm evaluate --out` wrote; the first is the one that others are compared with.
      seed: of the bootstrap.

    Raises:
      UserError: fewer than two folders, or one without evaluations, or a damaged evaluation.
    """
    if len(folders) < 2:
        raise UserError("name at least two runs to compare.")
    evaluations = dict(zip(_names(folders), map(_read, folders), strict=True))
    content = compare(evaluations, seed)
    write_whole(out / "compare.json", json.dumps(content, indent=1, allow_nan=False))
    write_whole(out / "compare.html", render("compare.html", title="Score card", **content))
    text = render("compare.md", **content)
    write_whole(out / "compare.md", text)
    return text


def compare(evaluations: Mapping[str, Suites], seed: int = 0) -> dict[str, Any]:
    """The content of `compare.json`.

    Args:
      evaluations: by run, the content of each `SUITE.json`.
    """
    suites = list(dict.fromkeys(suite for content in evaluations.values() for suite in content))
    cards = [_card(suite, {run: content.get(suite) for run, content in evaluations.items()}, seed) for suite in suites]
    return {"runs": [_about(run, content) for run, content in evaluations.items()], "suites": cards}


def _card(suite: str, contents: Mapping[str, Mapping[str, Any] | None], seed: int) -> dict[str, Any]:
    """One suite: a line per task, with the score of each run and its difference from the first."""
    first, *others = contents
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run, content in contents.items():
        for row, value in own_scores(content["results"] if content else ()):
            names = {key: row[key] for key in _KEYS if row.get(key) is not None and row[key] not in _MODEL}
            measure, value = _measure(row, value)
            line = lines.setdefault(tuple(names.items()), {"names": names, "measure": measure, "scores": {}})
            line["scores"][run] = {"value": value, "ci95": row["ci95"], "people": row["people"]}
    notes = [f"{run}: not evaluated." for run, content in contents.items() if content is None]
    unlike = set()
    for other in others:
        one, two = contents[first], contents[other]
        if not (one and two):
            continue
        if reason := _why_unlike(one, two, first):
            unlike.add(other)
            notes.append(f"{other}: {reason}")
        else:
            notes += [f"{other}: {note}" for note in _pair(lines.values(), one, two, first, other, seed)]
    for line in lines.values():
        line["lower_is_better"] = line["measure"] in _LOWER_IS_BETTER
        line["best"] = _best(line, first, unlike)
    keys = [key for key in _KEYS if any(key in line["names"] for line in lines.values())]
    return {"suite": suite, "keys": keys, "lines": list(lines.values()), "notes": notes}


def _measure(row: Row, value: float) -> tuple[str, float]:
    """What a line shows, and its value: that which the interval `ci95` of the row is of."""
    if row.get("drop") is not None:
        return "drop", row["drop"]
    return "mse" if "mse" in row else str(row.get("metric") or row.get("class") or "score"), value


def _best(line: Mapping[str, Any], first: str, unlike: set[str]) -> float | None:
    """The best score of a line; None where one of its runs cannot be compared with the first."""
    scores = line["scores"]
    unpaired = {run for run in scores if run != first and "lower_by" not in scores[run]}
    if unlike & {*scores} or (line["measure"] == "mse" and unpaired):
        return None
    return float((min if line["lower_is_better"] else max)(score["value"] for score in scores.values()))


def _why_unlike(one: Mapping[str, Any], two: Mapping[str, Any], first: str) -> str | None:
    """Why two evaluations of a suite do not compare, if they do not."""
    settings = [key for key in _MUST_AGREE if one["provenance"].get(key) != two["provenance"].get(key)]
    if settings:
        return f"evaluated with another {', '.join(settings)} than {first}: not compared."
    if rescaled := channels_of_other_units(one["provenance"], two["provenance"]):
        return (
            f"its errors have other units than those of {first}, from data of another mean or standard deviation of "
            f"{', '.join(rescaled[:5])}{' ...' * (len(rescaled) > 5)}: not compared. Train both on the same data."
        )
    return None


def _pair(
    lines: Iterable[dict[str, Any]], one: Mapping[str, Any], two: Mapping[str, Any], first: str, other: str, seed: int
) -> Iterator[str]:
    """Adds to the lines what `other` changes relative to `first`; yields why it cannot where it cannot."""
    other_people, other_cells = [], []
    for line in lines:
        if line["measure"] != "mse" or not {first, other} <= {*line["scores"]}:
            continue
        task = f"{line['names'].get('task')} {line['names'].get('setting')}"
        mine, theirs = (_by_person(content, task) for content in (one, two))
        if not mine or mine.keys() != theirs.keys():
            other_people.append(task)
            continue
        pairs = np.array([[mine[person], theirs[person]] for person in mine])
        if (pairs[:, 0, 1] != pairs[:, 1, 1]).any():
            other_cells.append(task)
            continue
        ratio = bootstrap(weighted_ratio(pairs[:, 1, 0], pairs[:, 0, 0]), np.arange(len(mine)), seed)
        lower, interval = score_and_interval(1 - ratio, len(mine))
        sure = interval is not None and not interval[0] <= 0 <= interval[1]
        line["scores"][other] |= {"lower_by": lower, "lower_by_ci95": interval, "sure": sure, "paired": len(mine)}
    if other_people:
        yield (
            f"not known to be scored on the people of {first} ({', '.join(other_people)}): not compared. Run `lsm "
            "evaluate` on the same --data for both."
        )
    if other_cells:
        yield (
            f"scored on other cells than {first} ({', '.join(other_cells)}): windows or tokens differ. `lsm evaluate "
            "--mask-channels` hides the same cells for models with other tokens."
        )


def _by_person(content: Mapping[str, Any], task: str) -> dict[tuple[str, str], Sequence[float]]:
    """The sum of squared errors and the cells of each person who has any in a task."""
    rows = content.get("by_person", ())
    return {(row["dataset"], row["participant"]): row["scores"][task] for row in rows if task in row["scores"]}


def _about(run: str, suites: Suites) -> Row:
    """What a run is, from the provenance of its evaluations."""
    made = next(iter(suites.values()))["provenance"]
    config = made["config"]
    return {
        "name": run,
        "objective": config["objective"]["name"],
        "size": config["model"]["size"],
        "windows": made["step"] * config["train"]["batch_size"],
        "step": made["step"],
        "minutes": made["minutes"],
    }


def _read(folder: Path) -> dict[str, Any]:
    """The evaluations in a run's folder, or in this folder itself, by suite."""
    inside = folder / EVALUATIONS if (folder / EVALUATIONS).is_dir() else folder
    suites = {}
    for file in sorted(inside.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(content, dict) and "results" in content:
                content["provenance"]["config"]["objective"]["name"], [*own_scores(content["results"])]
                suites[str(content["suite"])] = content
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            raise UserError(f"{file}: damaged ({error!r}); run `lsm evaluate` again.") from None
    if not suites:
        raise UserError(f"{folder} has no evaluation; run `lsm evaluate --workdir {folder}` first.")
    return suites


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    resolved = [folder.resolve() for folder in folders]
    if len({*resolved}) < len(resolved):
        raise UserError("the same folder is named twice.")
    length = next(n for n in range(1, 99) if len({path.parts[-n:] for path in resolved}) == len(resolved))
    return ["/".join(path.parts[-length:]) for path in resolved]
