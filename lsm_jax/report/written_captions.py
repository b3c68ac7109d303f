"""Days of held-out people with the captions that a run writes, each sentence checked against the day's record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lsm_jax.captions.fact_check import Verdict, check_sentences
from lsm_jax.data.store import Dataset, Moments
from lsm_jax.evals.captioning import Captioning
from lsm_jax.evals.suite import unique_names
from lsm_jax.report.days import caption_marks, draw_day
from lsm_jax.report.embedding_map import SPLIT
from lsm_jax.report.render import percent
from lsm_jax.train.run import Run
from lsm_jax.windows import Window

_WORDS = {
    Verdict.TRUE: "true", Verdict.FALSE: "false", Verdict.UNRECORDED: "not recorded", None: "other wording",
}  # fmt: skip


def written_captions(run: Run, datasets: Sequence[Dataset], days: int) -> list[dict[str, Any]]:
    """Days of each dataset's test split, spread evenly over it, as the template takes them; without ids and dates.

    Args:
      days: of each dataset.

    Raises:
      UserError: the run does not generate captions.
    """
    suite = Captioning(split=SPLIT, max_windows=days, batch_size=days)
    return [
        _day(name, info.window, text, dataset.normalisation)
        for name, dataset in unique_names(datasets).items()
        for _, generated in suite.generate(run, dataset.source(SPLIT))
        for info, text in generated
    ]


def _day(dataset: str, window: Window, text: str, moments: Mapping[str, Moments]) -> dict[str, Any]:
    checked, title = check_sentences(text, window), f"{dataset} · {percent(float(window.observed.mean()), 0)} recorded"
    marks = caption_marks(window, [[fact for fact, _ in sentence.facts] for sentence in checked])
    sentences = [(sentence.text, _WORDS[sentence.verdict]) for sentence in checked]
    return {"picture": draw_day(window, moments, title, marks), "title": title, "sentences": sentences}
