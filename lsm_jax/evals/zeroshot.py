"""The zero-shot suite: which activities a day shows, found with sentences alone.

The score of a class is the AUROC, over the days of a split, of each day's similarity to the class's sentences minus
its similarity to what all classes share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from lsm_jax.data.store import Dataset
from lsm_jax.evals.classification import auroc_rows, logged_classes, read_labelled_days, reference_probes
from lsm_jax.evals.days import Days, embed_texts, read_days
from lsm_jax.evals.prompts import Prompts, read_prompts, shipped_prompts
from lsm_jax.evals.result import Row
from lsm_jax.evals.suite import DatasetSuite
from lsm_jax.objectives import sensor_language
from lsm_jax.train.run import Run


@dataclasses.dataclass(frozen=True)
class ZeroShot(DatasetSuite):
    """Classifies held-out days by prompts.

    Attributes:
      prompts: a prompt file; classes that the data's log does not name have similarities and no score. None: the
        shipped file that fits the data, without such classes.
      probes: adds probes that learn from the labels of all training days (`reference_probes`).
    """

    name: ClassVar[str] = "zeroshot"
    objectives: ClassVar[tuple[str, ...]] = ("clip", "siglip", "coca")

    prompts: Path | None = None
    probes: bool = True

    def score(self, run: Run, dataset: Dataset) -> tuple[list[Row], list[str], list[Row]]:
        """See `DatasetSuite.score`; the details are every day's similarity to every class."""
        sensor_language(run.objective)
        prompts, absent = self._prompts_for(dataset)
        classes = tuple(prompts.texts)
        days = read_days(run, dataset.nonempty_source(self.split), self, statistics=self.probes)
        similarity = days.embeddings @ class_directions(run, prompts).T
        scores = {"zeroshot": similarity}
        if self.probes:
            scores |= reference_probes(*read_labelled_days(run, dataset, self), days, classes)
        rows, notes = auroc_rows(scores, days, classes, self.seed, run.config.language.held_out_activities)
        notes.insert(0, f"prompts of {prompts.file.name}, {len(days.positions)} days.")
        if absent:
            logged = ", ".join(sorted(logged_classes(dataset)))
            notes.append(
                f"Not scored, because no log names them: {', '.join(absent)}. Logs name {logged or 'nothing'}."
            )
        return rows, notes, _day_rows(days, classes, similarity)

    def _prompts_for(self, dataset: Dataset) -> tuple[Prompts, list[str]]:
        """The prompts, and the classes of their file that the data lacks."""
        classes = logged_classes(dataset)
        if self.prompts is None:
            return shipped_prompts(classes)
        prompts = read_prompts(self.prompts)
        return prompts, [name for name in prompts.texts if name not in classes]


def class_directions(run: Run, prompts: Prompts) -> Float[np.ndarray, "c e"]:
    """The embedding of each class, the mean of its sentences scaled to length one, minus the mean of the prompts.

    What is subtracted is the mean of the contexts where there are any, and otherwise the mean of the classes, which
    makes the activities of one day compete. Without it, days are ranked by their similarity to any short text.
    """
    vectors = embed_texts(run, prompts.sentences(run.words, run.config.language.text_length))
    ends = np.cumsum([len(texts) for texts in prompts.texts.values()])
    classes = np.stack([_unit_mean(part) for part in np.split(vectors, ends[:-1])])
    if prompts.contexts:
        return classes - _unit_mean(embed_texts(run, prompts.contexts))
    return classes - classes.mean(axis=0) if len(classes) > 1 else classes


def _unit_mean(vectors: Float[np.ndarray, "n e"]) -> Float[np.ndarray, " e"]:
    mean = vectors.mean(axis=0)
    return mean / np.linalg.norm(mean)


def _day_rows(days: Days, classes: Sequence[str], similarity: Float[np.ndarray, "n c"]) -> list[Row]:
    rows = zip(days.positions.tolist(), days.participants, days.starts, days.captioned, similarity, strict=True)
    return [
        {
            "example": position,
            "participant": participant,
            "start": start,
            "holds": sorted(captioned & {*classes}),
            "scores": {name: round(float(score), 5) for name, score in zip(classes, scores, strict=True)},
        }
        for position, participant, start, captioned, scores in rows
    ]
