"""Retrieval of days by texts and of texts by days: the suite that measures it, and a search."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import hypergeom

from lsm_jax.data.store import Dataset, WindowSource
from lsm_jax.errors import UserError
from lsm_jax.evals.days import Days, embed_texts, read_days
from lsm_jax.evals.result import Row
from lsm_jax.evals.statistics import (
    Statistic,
    bootstrap,
    index_of,
    match_ranks,
    score_and_interval,
    weighted_median,
    weighted_ratio,
)
from lsm_jax.evals.suite import DatasetSuite
from lsm_jax.objectives import sensor_language
from lsm_jax.train.run import Run

POOL_SIZE = 256
_POOLS = 20  # drawn from the same days, to average over the choice of a pool
_RECALL_AT = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class Retrieval(DatasetSuite):
    """Ranks of the right caption for a day, and of the right day for a caption, in pools of 256 days.

    Captions are at the run's levels, worded as in epoch 0. Where two days have the same text, either is right.
    """

    name: ClassVar[str] = "retrieval"
    objectives: ClassVar[tuple[str, ...]] = ("clip", "siglip", "coca")

    def score(self, run: Run, dataset: Dataset) -> tuple[list[Row], list[str], list[Row]]:
        """See `DatasetSuite.score`."""
        sensor_language(run.objective)
        days = read_days(run, dataset.nonempty_source(self.split), self)
        has_caption = np.array([bool(text) for text in days.captions])
        count, texts = int(has_caption.sum()), [text for text in days.captions if text]
        if count < 2:
            raise UserError(f"{dataset.path}: only {count} days of its {self.split} split have a caption.")
        windows, person = days.embeddings[has_caption], days.person[has_caption]
        rows, pool = retrieval_rows(windows, embed_texts(run, texts), texts, person, self.seed)
        notes = [f"{_POOLS} pools of {pool} of {count} days, drawn with seed {self.seed}."]
        if count < len(days.captions):
            notes.append(f"{len(days.captions) - count} days with nothing to say are left out.")
        return rows, notes, []

    def search(
        self, run: Run, source: WindowSource, *, texts: Sequence[str] = (), windows: Sequence[int] = (), top: int = 5
    ) -> list[dict[str, Any]]:
        """The most similar days for each text, then the most similar captions for each window.

        Args:
          windows: positions in the split.

        Returns:
          A dict per query: `text` or `example` (a position), and `found`, best first: example, participant, start
          (UTC), date (local), similarity, caption.

        Raises:
          UserError: an empty text, one longer than the model reads, or no such window.
        """
        sensor_language(run.objective)
        _check_texts(run, texts)
        days = read_days(run, source, self)
        row_of = {position: row for row, position in enumerate(days.positions.tolist())}
        for window in windows:
            if window not in row_of:
                raise UserError(
                    f"--window {window}: the split has windows 0 to {len(source) - 1}, and this is none of them, or "
                    "nothing was recorded in it."
                )
        found: list[dict[str, Any]] = []
        if texts:
            rows = zip(texts, embed_texts(run, texts) @ days.embeddings.T, strict=True)
            found += [{"text": text, "found": _best(days, similarity, top)} for text, similarity in rows]
        if windows:
            captions = embed_texts(run, days.captions)
            no_caption = np.where([bool(text) for text in days.captions], 0, -np.inf)
            for window in windows:
                similarity = captions @ days.embeddings[row_of[window]] + no_caption
                found.append({"example": window, "found": _best(days, similarity, top)})
        return found


def retrieval_rows(
    days: Float[np.ndarray, "n e"],
    texts: Float[np.ndarray, "n e"],
    captions: Sequence[str],
    person: Int[np.ndarray, " n"],
    seed: int,
) -> tuple[list[Row], int]:
    """R@1, 5, 10 and median rank in both directions, and the size of a pool (all days if fewer than `POOL_SIZE`)."""
    pool, caption_index = min(POOL_SIZE, len(captions)), index_of(captions)
    ranks: dict[str, list[np.ndarray]] = {"text_for_day": [], "day_for_text": []}
    owners, matches = [], []
    rng = np.random.default_rng(seed)
    for _ in range(_POOLS):
        chosen = rng.permutation(len(captions))[:pool]
        similarity = days[chosen] @ texts[chosen].T
        same_text = caption_index[chosen, None] == caption_index[None, chosen]
        ranks["text_for_day"].append(match_ranks(similarity, same_text))
        ranks["day_for_text"].append(match_ranks(similarity.T, same_text))
        owners.append(person[chosen])
        matches.append(same_text.sum(axis=1))
    owner = np.unique(np.concatenate(owners), return_inverse=True)[1]
    people, rows = int(owner.max()) + 1, []
    size = {"windows": len(captions), "people": people, "pool": pool}
    at_random = chance_of_ranks(np.concatenate(matches), pool)
    for task, parts in ranks.items():
        rank = np.concatenate(parts)
        statistics: dict[str, tuple[Statistic, float]] = {
            f"R@{k}": (weighted_ratio((rank <= k).astype(float), np.ones(len(rank))), at_random[min(k, pool) - 1])
            for k in _RECALL_AT
        }
        middle = 1 + np.searchsorted(at_random, 0.5 - 1e-9), 1 + np.searchsorted(at_random, 0.5 + 1e-9)
        statistics["median rank"] = functools.partial(weighted_median, rank), float(np.mean(middle))
        for name, (statistic, chance) in statistics.items():
            score, interval = score_and_interval(bootstrap(statistic, owner, seed), people)
            shared = {"task": task, "class": name, **size}
            rows.append({"method": "model", "score": score, "ci95": interval, **shared})
            rows.append({"method": "chance", "score": float(chance), "ci95": None, **shared})
    return rows, pool


def chance_of_ranks(matches: Int[np.ndarray, " q"], pool: int) -> Float[np.ndarray, " p"]:
    """The share of queries whose best match has a rank of at most 1, 2, ... `pool` (`match_ranks`) in a random order.

    A query misses the first k if none of them matches: of its `matches` in the pool, days with the same text, all are
    right answers.
    """
    numbers, queries = np.unique(matches, return_counts=True)
    return np.average(hypergeom.sf(0, pool, numbers[:, None], np.arange(1, pool + 1)), axis=0, weights=queries)


def _check_texts(run: Run, texts: Sequence[str]) -> None:
    longest = run.config.language.text_length
    for text, length in zip(texts, run.words.encode(texts, longest).lengths, strict=True):
        if not text.strip():
            raise UserError("--text is empty: say what to look for.")
        if length > longest:
            raise UserError(f"--text {text[:40]!r}... has {length} tokens and the model reads {longest}: shorten it.")


def _best(days: Days, similarity: Float[np.ndarray, " n"], top: int) -> list[dict[str, Any]]:
    order = np.argsort(-similarity, kind="stable")[:top].tolist()
    return [
        {
            "example": int(days.positions[row]),
            "participant": days.participants[row],
            "start": days.starts[row],
            "date": days.dates[row],
            "similarity": round(float(similarity[row]), 5),
            "caption": days.captions[row],
        }
        for row in order
        if np.isfinite(similarity[row])
    ]
