"""The few-shot suite: classification of days from a few labelled days per class, on a run's embeddings."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from lsm_jax.data.store import Dataset
from lsm_jax.errors import UserError
from lsm_jax.evals.classification import (
    auroc_rows,
    fit_probes,
    logged_classes,
    read_labelled_days,
    reference_probes,
    standardised,
)
from lsm_jax.evals.days import read_days
from lsm_jax.evals.result import Row
from lsm_jax.evals.suite import DatasetSuite
from lsm_jax.train.run import Run

SHOTS = (1, 5, 10, 20)
_DRAWS = 5
_INVERSE_REGULARISATION = 0.01  # scikit-learn's C: few days and many features


@dataclasses.dataclass(frozen=True)
class FewShot(DatasetSuite):
    """Probes of k days per class, the mean of five draws, next to probes of all training days."""

    name: ClassVar[str] = "fewshot"
    objectives: ClassVar[tuple[str, ...]] = (
        "masked_reconstruction", "imputed_reconstruction", "simclr", "clip", "siglip", "coca",
    )  # fmt: skip

    def score(self, run: Run, dataset: Dataset) -> tuple[list[Row], list[str], list[Row]]:
        """See `DatasetSuite.score`. A k is left out where some class has fewer training days."""
        train, tuning = read_labelled_days(run, dataset, self)
        test = read_days(run, dataset.nonempty_source(self.split), self, statistics=True)
        in_training = set().union(*train.captioned)
        classes = [each for each in logged_classes(dataset) if each in in_training]
        if not classes:
            raise UserError(f"{dataset.path}: no day of its training split shows an activity or session.")
        labels = train.labels(classes)
        scores, too_few = {}, []
        for shots in SHOTS:
            if (np.nansum(labels, axis=0) >= shots).all():
                scores[f"{shots}-shot"] = few_shot_scores(train.embeddings, labels, test.embeddings, shots, self.seed)
            else:
                too_few.append(f"no {shots}-shot: some class has fewer training days.")
        rows, notes = auroc_rows(scores | reference_probes(train, tuning, test, classes), test, classes, self.seed)
        return rows, [f"probes of all {len(labels)} training days; {_DRAWS} draws of few.", *notes, *too_few], []


def few_shot_scores(
    train: Float[np.ndarray, "n f"],
    labels: Float[np.ndarray, "n c"],
    test: Float[np.ndarray, "m f"],
    shots: int,
    seed: int,
) -> Float[np.ndarray, "d m c"]:
    """Scores of the test days by a probe of each draw of labelled days."""
    train, test = standardised(train, test)
    draws = [draw_days(labels, shots, np.random.default_rng((seed, shots, draw))) for draw in range(_DRAWS)]
    return np.stack([fit_probes(train[days], labels[days], test, _INVERSE_REGULARISATION) for days in draws])


def draw_days(labels: Float[np.ndarray, "n c"], shots: int, rng: np.random.Generator) -> Int[np.ndarray, " d"]:
    """Days with at least `shots` of each class, and `shots` of no class where there are any."""
    chosen: set[int] = set()
    for members in [*(labels == 1).T, (labels == 0).all(axis=1)]:
        chosen.update(rng.permutation(np.flatnonzero(members))[:shots].tolist())
    return np.array(sorted(chosen))
