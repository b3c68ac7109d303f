"""The few-shot suite: what a few labelled days per class are worth, on a run's embeddings of days."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from lsm_jax.data.store import Dataset
from lsm_jax.errors import UserError
from lsm_jax.evals.days import read_days
from lsm_jax.evals.findings import Findings, Row, Settings
from lsm_jax.evals.probes import fit_scores, probe_scores, standardised
from lsm_jax.evals.results import provenance
from lsm_jax.evals.zeroshot import auroc_rows, logged_classes
from lsm_jax.train.run import Run

SHOTS = (1, 5, 10, 20)
_DRAWS = 5
_STRENGTH = 0.01  # of scikit-learn's C: few days and many features


def evaluate_fewshot(run: Run, datasets: Mapping[str, Dataset], settings: Settings) -> Findings:
    """Probes of k days per class, five draws each, beside probes of all training days and the prior.

    A draw takes k training days of every class and k that hold none; a class is one against the rest of them. LSM-2's
    runs are scored alike, on their own embeddings.

    Raises:
      UserError: no class with a day in the training split, or a run that does not embed.
    """
    results: list[Row] = []
    notes = []
    for name, dataset in datasets.items():
        train, validation = (
            read_days(run, dataset.held_out(split), settings.learning, statistics=True)
            for split in ("train", "validation")
        )
        test = read_days(run, dataset.held_out(settings.split), settings, statistics=True)
        known = {each for spoken in train.spoken for each in spoken}
        classes = [each for each in logged_classes(dataset) if each in known]
        if not classes:
            raise UserError(f"{dataset.path}: no day of its training split shows an activity or session.")
        labels, validated = train.labels(classes), validation.labels(classes)
        scores = {
            f"{shots}-shot": few_shot_scores(train.embeddings, labels, test.embeddings, shots, settings.seed)
            for shots in SHOTS
            if (np.nansum(labels, axis=0) >= shots).all()
        }
        scores["linear_probe"] = probe_scores(
            train.embeddings, validation.embeddings, test.embeddings, labels, validated
        )
        scores["statistics_probe"] = probe_scores(
            train.statistics, validation.statistics, test.statistics, labels, validated
        )
        rows, left_out = auroc_rows(scores, test, classes, settings.seed)
        results += [{"dataset": name, **row} for row in rows]
        notes.append(f"{name}: probes of all {len(labels)} training days; {_DRAWS} draws of few.")
        notes += [f"{name}: {each} is left out: {why}." for each, why in left_out.items()]
        notes += [
            f"{name}: no {shots}-shot: some class has fewer training days."
            for shots in SHOTS
            if f"{shots}-shot" not in scores
        ]
    told = {"split": settings.split, "seed": settings.seed, "max_windows": settings.max_windows}
    return Findings("fewshot", results, notes, {**provenance(run), **told})


def few_shot_scores(
    train: Float[np.ndarray, "n f"],
    labels: Float[np.ndarray, "n c"],
    test: Float[np.ndarray, "m f"],
    shots: int,
    seed: int,
) -> Float[np.ndarray, "d m c"]:
    """Scores of the test days by probes of `shots` days of each class and as many of none, for each draw."""
    train, test = standardised(train, test)
    draws = [few_days(labels, shots, np.random.default_rng((seed, shots, draw))) for draw in range(_DRAWS)]
    return np.stack([fit_scores(train[days], labels[days], test, _STRENGTH) for days in draws])


def few_days(labels: Float[np.ndarray, "n c"], shots: int, random: np.random.Generator) -> Int[np.ndarray, " d"]:
    """Days of which each class has `shots` at least, and `shots` that hold no class where there are any."""
    chosen: set[int] = set()
    groups: Sequence[np.ndarray] = [*(labels == 1).T, (labels == 0).all(axis=1)]
    for group in groups:
        days = np.flatnonzero(group)
        chosen.update(random.permutation(days)[:shots].tolist())
    return np.array(sorted(chosen))
