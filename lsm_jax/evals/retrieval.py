"""Days for words and words for days: a search, and the suite that measures it among pools of 256 days."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lsm_jax.data.store import Dataset, WindowSource
from lsm_jax.errors import UserError
from lsm_jax.evals.days import Days, embedded_texts, read_days
from lsm_jax.evals.findings import Findings, Row, Settings
from lsm_jax.evals.ranking import (
    Statistic,
    numbered,
    partner_ranks,
    replicated,
    score_and_interval,
    weighted_median,
    weighted_ratio,
)
from lsm_jax.evals.results import provenance
from lsm_jax.objectives import sensor_language
from lsm_jax.train.run import Run

POOL = 256
_POOLS = 20  # drawn anew from the same days, so that no one pool decides
_WITHIN = (1, 5, 10)


def evaluate_retrieval(run: Run, datasets: Mapping[str, Dataset], settings: Settings) -> Findings:
    """Ranks of the right caption for a day and of the right day for a caption, of people held out.

    Captions are at the run's levels, in the wording of epoch 0. Where two days have the same text, either is right.

    Raises:
      UserError: fewer than two days with something to say, or a run that knows no text.
    """
    sensor_language(run.objective)
    results: list[Row] = []
    notes = []
    for name, dataset in datasets.items():
        days = read_days(run, dataset.held_out(settings.split), settings)
        said = np.array([bool(text) for text in days.texts])
        if said.sum() < 2:
            raise UserError(f"{dataset.path}: only {said.sum()} days of its {settings.split} split have a caption.")
        texts = [text for text in days.texts if text]
        vectors = embedded_texts(run, texts)
        rows, pool = retrieval_rows(days.embeddings[said], vectors, texts, days.person[said], settings.seed)
        results += [{"dataset": name, **row} for row in rows]
        notes.append(f"{name}: {_POOLS} pools of {pool} of {len(texts)} days, drawn with seed {settings.seed}.")
        if silent := int((~said).sum()):
            notes.append(f"{name}: {silent} days with nothing to say are left out.")
    told = {"split": settings.split, "seed": settings.seed, "max_windows": settings.max_windows}
    return Findings("retrieval", results, notes, {**provenance(run), **told})


def retrieval_rows(
    days: Float[np.ndarray, "n e"],
    texts: Float[np.ndarray, "n e"],
    words: Sequence[str],
    person: Int[np.ndarray, " n"],
    seed: int,
) -> tuple[list[Row], int]:
    """R@1, 5, 10 and the median rank, both ways, and the pool's size: `POOL` days, or all where there are fewer."""
    pool = min(POOL, len(words))
    text_number = numbered(words)
    ranks: dict[str, list[np.ndarray]] = {"text_for_day": [], "day_for_text": []}
    whose = []
    random = np.random.default_rng(seed)
    for _ in range(_POOLS):
        chosen = random.permutation(len(words))[:pool]
        likeness = days[chosen] @ texts[chosen].T
        same = text_number[chosen, None] == text_number[None, chosen]
        ranks["text_for_day"].append(partner_ranks(likeness, same))
        ranks["day_for_text"].append(partner_ranks(likeness.T, same))
        whose.append(person[chosen])
    owner = np.concatenate(whose)
    owner = np.unique(owner, return_inverse=True)[1]
    people, rows = int(owner.max()) + 1, []
    counts = {"windows": len(words), "people": people, "pool": pool}
    for task, parts in ranks.items():
        rank = np.concatenate(parts)
        statistics: dict[str, Statistic] = {
            f"R@{k}": weighted_ratio((rank <= k).astype(float), np.ones(len(rank))) for k in _WITHIN
        }
        statistics["median rank"] = functools.partial(weighted_median, rank)
        chance = {f"R@{k}": min(k / pool, 1.0) for k in _WITHIN} | {"median rank": (pool + 1) / 2}
        for name, statistic in statistics.items():
            score, interval = score_and_interval(replicated(statistic, owner, seed), people)
            row = {"task": task, "class": name}
            rows.append({"method": "model", **row, "score": score, "ci95": interval, **counts})
            rows.append({"method": "chance", **row, "score": chance[name], "ci95": None, **counts})
    return rows, pool


def search(
    run: Run,
    source: WindowSource,
    settings: Settings,
    *,
    texts: Sequence[str] = (),
    examples: Sequence[int] = (),
    top: int = 5,
) -> list[dict[str, Any]]:
    """The likeliest days for each text, then the likeliest captions for each day.

    Args:
      examples: places in the split.

    Returns:
      A dict per query: `text` or `example`, and `found`, best first: example, participant, start, likeness, caption.

    Raises:
      UserError: an empty text, one longer than the model reads, or no such window.
    """
    sensor_language(run.objective)
    _check_texts(run, texts)
    days = read_days(run, source, settings)
    place = {int(example): row for row, example in enumerate(days.examples)}
    for example in examples:
        if example not in place:
            raise UserError(
                f"--window {example}: the split has windows 0 to {len(source) - 1}, and this is none of them, or "
                "nothing was recorded in it."
            )
    found: list[dict[str, Any]] = []
    if texts:
        likeness = embedded_texts(run, texts) @ days.embeddings.T
        found += [{"text": text, "found": _best(days, row, top)} for text, row in zip(texts, likeness, strict=True)]
    if examples:
        captions = embedded_texts(run, days.texts)
        # A day that nothing is said of has no words to be found by.
        silent = np.where([bool(text) for text in days.texts], 0, -np.inf)
        for example in examples:
            likeness = captions @ days.embeddings[place[example]] + silent
            found.append({"example": example, "found": _best(days, likeness, top)})
    return found


def _check_texts(run: Run, texts: Sequence[str]) -> None:
    most = run.config.language.text_length
    for text, length in zip(texts, run.words.encode(texts, most).lengths, strict=True):
        if not text.strip():
            raise UserError("--text is empty: say what to look for.")
        if length > most:
            raise UserError(f"--text {text[:40]!r}... has {length} tokens and the model reads {most}: shorten it.")


def _best(days: Days, likeness: Float[np.ndarray, " n"], top: int) -> list[dict[str, Any]]:
    order = [row for row in np.argsort(-likeness, kind="stable")[:top].tolist() if np.isfinite(likeness[row])]
    return [
        {
            "example": int(days.examples[row]),
            "participant": days.participants[row],
            "start": days.starts[row],
            "likeness": round(float(likeness[row]), 5),
            "caption": days.texts[row],
        }
        for row in order
    ]
