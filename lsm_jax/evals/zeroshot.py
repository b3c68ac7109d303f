"""The zero-shot suite: which activities a day holds, told by sentences alone, beside probes that had labels.

A day may hold several activities, so each class is scored by itself, one against the rest: the AUROC, over all days of
the split, of how much more a day is like the class's sentences than like what all classes share. `Days.labels` says
which days count.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from lsm_jax.captions.grammar import event_name
from lsm_jax.data.store import Dataset
from lsm_jax.evals.days import Days, embedded_texts, read_days
from lsm_jax.evals.findings import Findings, Row, Settings
from lsm_jax.evals.probes import probe_scores
from lsm_jax.evals.prompts import Prompts, read_prompts, shipped_prompts
from lsm_jax.evals.ranking import auroc, replicated, score_and_interval
from lsm_jax.evals.results import provenance
from lsm_jax.objectives import sensor_language
from lsm_jax.train.run import Run

_MARK = "tag"  # a button press is a session's mark, not an activity


def evaluate_zeroshot(
    run: Run, datasets: Mapping[str, Dataset], settings: Settings, *, probes: bool = True
) -> Findings:
    """Scores sentences against held-out days.

    Args:
      probes: adds what labels reach: a logistic regression on the run's embeddings of all training days (the upper
        reference) and one on per-channel day statistics (what is to be had without the model).

    Raises:
      UserError: a prompt file or a run that does not serve.
    """
    sensor_language(run.objective)
    results: list[Row] = []
    notes, details = [], []
    for name, dataset in datasets.items():
        prompts, absent = prompts_for(dataset, settings)
        classes = tuple(prompts.texts)
        days = read_days(run, dataset.held_out(settings.split), settings, statistics=probes)
        likeness = days.embeddings @ class_directions(run, prompts).T
        scores = {"zeroshot": likeness} | (probe_methods(run, dataset, days, classes, settings) if probes else {})
        rows, left_out = auroc_rows(scores, days, classes, settings.seed, run.config.language.held_out_activities)
        results += [{"dataset": name, **row} for row in rows]
        notes += [f"{name}: prompts of {prompts.file.name}, {len(days.examples)} days."]
        notes += [f"{name}: {each} is left out: {why}." for each, why in left_out.items()]
        notes += [f"{name}: {', '.join(absent)} of the prompt file occur in no day."] * bool(absent)
        details += window_scores(name, days, classes, likeness)
    told = {"split": settings.split, "seed": settings.seed, "max_windows": settings.max_windows}
    return Findings("zeroshot", results, notes, {**provenance(run), **told}, details)


def prompts_for(dataset: Dataset, settings: Settings) -> tuple[Prompts, list[str]]:
    """The prompts named, all of whose classes the data must have; or shipped ones, and their classes it lacks."""
    known = logged_classes(dataset)
    if settings.prompts is None:
        return shipped_prompts(known)
    prompts = read_prompts(settings.prompts)
    prompts.require(known)
    return prompts, []


def logged_classes(dataset: Dataset) -> list[str]:
    """The activities and sessions that a dataset's logs name, by its card, as captions name them."""
    events = dataset.card.get("events", {})
    return sorted({event_name(name) for kind in ("activity", "session") for name in events.get(kind, {})} - {_MARK})


def class_directions(run: Run, prompts: Prompts) -> Float[np.ndarray, "c e"]:
    """From what all classes share to each class, which is the mean of its sentences' embeddings made of length one.

    Shared are the contexts; of sentences that stand alone, the mean of the classes, which makes activities of one day
    compete. Without either, days would be ranked by how like they are to short texts, and to the times in them.
    """
    vectors = embedded_texts(run, prompts.fitting(run.words, run.config.language.text_length))
    ends = np.cumsum([len(texts) for texts in prompts.texts.values()])
    classes = np.stack([_centre(part) for part in np.split(vectors, ends[:-1])])
    if prompts.contexts:
        return classes - _centre(embedded_texts(run, prompts.contexts))
    return classes - classes.mean(axis=0) if len(classes) > 1 else classes


def _centre(vectors: Float[np.ndarray, "n e"]) -> Float[np.ndarray, " e"]:
    mean = vectors.mean(axis=0)
    return mean / np.linalg.norm(mean)


def probe_methods(
    run: Run, dataset: Dataset, days: Days, classes: Sequence[str], settings: Settings
) -> dict[str, Float[np.ndarray, "n c"]]:
    """Scores of probes that learn from every training day's labels."""
    train, validation = (
        read_days(run, dataset.held_out(split), settings.learning, statistics=True) for split in ("train", "validation")
    )
    labels = train.labels(classes), validation.labels(classes)
    return {
        "linear_probe": probe_scores(train.embeddings, validation.embeddings, days.embeddings, *labels),
        "statistics_probe": probe_scores(train.statistics, validation.statistics, days.statistics, *labels),
    }


def auroc_rows(
    scores: Mapping[str, Float[np.ndarray, "n c"]],
    days: Days,
    classes: Sequence[str],
    seed: int,
    unseen: Sequence[str] = (),
) -> tuple[list[Row], dict[str, str]]:
    """A row per method and class and one for their mean, `macro`; and the classes that cannot be scored, with why.

    With classes that are `unseen` there is a row for their mean, too, `macro unseen`.

    Args:
      scores: by method; one with several columns of scores per class, [draws, n, c], is scored by their mean AUROC.
    """
    labels, rows, left_out = days.labels(classes), [], {}
    persons, everyone = days.person, len({*days.participants})
    for method, values in {**scores, "class_prior": np.zeros_like(labels)}.items():
        kept: dict[str, np.ndarray] = {}
        for column, name in enumerate(classes):
            known = ~np.isnan(labels[:, column])
            positive, person = labels[known, column] > 0, persons[known]
            if positive.all() or not positive.any():
                left_out[name] = f"no day of the split {'without' if positive.all() else 'shows'} it"
                continue
            drawn = (values[None] if values.ndim == 2 else values)[:, known, column]
            replicates = replicated(functools.partial(_mean_auroc, drawn, positive), person, seed, everyone)
            kept[name] = replicates
            counts = {"windows": int(known.sum()), "positives": int(positive.sum())}
            people = len({*person[positive].tolist()})
            rows.append(_row(method, name, replicates, people) | counts | {"people": people})
        for mean, members in (("macro", kept.keys()), ("macro unseen", kept.keys() & {*unseen})):
            if members:
                together = _mean(np.stack([kept[name] for name in members]))
                counts = {"windows": len(labels), "people": everyone, "classes": len(members)}
                rows.append(_row(method, mean, together, everyone) | counts)
    return rows, left_out


def window_scores(dataset: str, days: Days, classes: Sequence[str], likeness: Float[np.ndarray, "n c"]) -> list[Row]:
    """Every day's likeness to every class."""
    people = zip(days.examples.tolist(), days.participants, days.starts, days.spoken, likeness, strict=True)
    return [
        {
            "dataset": dataset,
            "example": example,
            "participant": participant,
            "start": start,
            "holds": sorted(spoken & {*classes}),
            "scores": {name: round(float(score), 5) for name, score in zip(classes, scores, strict=True)},
        }
        for example, participant, start, spoken, scores in people
    ]


def _row(method: str, name: str, replicates: Float[np.ndarray, " r"], people: int) -> Row:
    score, interval = score_and_interval(replicates, people)
    return {"method": method, "task": "auroc", "class": name, "score": score, "ci95": interval}


def _mean_auroc(
    draws: Float[np.ndarray, "d n"], positive: Bool[np.ndarray, " n"], weights: Float[np.ndarray, "*r n"]
) -> Float[np.ndarray, "*r"]:
    return np.mean([auroc(scores, positive, weights) for scores in draws], axis=0)


def _mean(replicates: Float[np.ndarray, "c r"]) -> Float[np.ndarray, " r"]:
    """The mean over the classes that a draw of people has days of; NaN for a draw that has days of none."""
    known = ~np.isnan(replicates)
    total, count = np.where(known, replicates, 0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
