"""The data card of a dataset as one self-contained HTML page, and the days it shows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

import jinja2
import numpy as np

from lsm_jax.captions.caption import Captioner
from lsm_jax.data.store import SPLITS, Dataset, Moments
from lsm_jax.errors import UserError
from lsm_jax.report.days import caption_marks, draw_day
from lsm_jax.report.render import percent, render
from lsm_jax.windows import MINUTES_PER_DAY, Window

_TIMED_LEVELS = ("structural", "semantic")  # of captions: their sentences say when


def data_card_page(dataset: Dataset, days: int) -> str:
    """The page of a dataset, with pictures of this many of its days.

    Raises:
      UserError: the data card lacks a part, or a record is damaged.
    """
    pictures = [_day(window, dataset.normalisation) for window in median_windows(dataset, days)]
    card: dict[str, Any] = {"captions": {}, **dataset.card}
    try:
        return render(
            "data_card.html",
            title=card["name"],
            card=card,
            tokens=card["tokens_per_window"]["quantiles"],
            gaps=_gap_shares(card["gaps"]),
            days=pictures,
        )
    except (KeyError, TypeError, ValueError, AttributeError, jinja2.TemplateError) as error:
        raise UserError(
            f"{dataset.path / 'data_card.json'}: the card lacks or garbles a part ({type(error).__name__}: {error})."
        ) from None


def median_windows(dataset: Dataset, count: int) -> list[Window]:
    """Windows of `count` people, spread over all splits: the person's median by observed cells.

    Of fewer people there are several windows each, from little to much observed, in order of time.
    """
    sources = {split: dataset.source(split) for split in SPLITS}
    windows: dict[tuple[str, str], list[tuple[int, int]]] = {}  # of a person: (observed cells, index)
    for split, source in sources.items():
        for index, (participant, observed) in enumerate(zip(source.participants, source.observed, strict=True)):
            windows.setdefault((split, participant), []).append((int(observed), index))
    people = sorted(windows)
    if len(people) > count:
        people = [people[i * len(people) // count] for i in range(count)]
    each = max(count // max(len(people), 1), 1)
    chosen = []
    for split, person in people:
        of_person, quantiles = sorted(windows[split, person]), min(each, len(windows[split, person]))
        places = [(2 * i + 1) * len(of_person) // (2 * quantiles) for i in range(quantiles)]
        chosen += [(split, index) for index in sorted(of_person[place][1] for place in places)]
    return [window for split, index in chosen for _, window in sources[split].readable([index])]


def _day(window: Window, moments: Mapping[str, Moments]) -> dict[str, Any]:
    local = window.start + dt.timedelta(minutes=window.utc_offset_minutes)
    observed = percent(float(window.observed.mean()), 0)
    title = f"{window.participant[:8]} · {local:%Y-%m-%d} · {observed} recorded"
    if len(window.observed) * window.minutes_per_step > MINUTES_PER_DAY:  # captions speak of at most a day
        return {"picture": draw_day(window, moments, title), "title": title, "sentences": ()}
    caption = Captioner(_TIMED_LEVELS)(window)
    marks = caption_marks(window, [statement.facts for statement in caption.statements])
    picture = draw_day(window, moments, title, marks)
    return {"picture": picture, "title": title, "sentences": [(sentence, "") for sentence in caption.sentences]}


def _gap_shares(gaps: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The share of missing time in gaps of each length, over all channels, with the length in words."""
    bounds = gaps["minutes_at_least"]
    minutes = np.array(list(gaps["minutes"].values()), np.float64).reshape(-1, len(bounds)).sum(axis=0)
    shares = minutes / max(minutes.sum(), 1)
    return [
        (_gap_length(low, high), float(share))
        for low, high, share in zip(bounds, [*bounds[1:], None], shares, strict=True)
    ]


def _gap_length(low: int, high: int | None) -> str:
    """Gaps of at least `low` and less than `high` minutes: in minutes below an hour, else in hours."""

    def text(minutes: int) -> str:
        return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h"

    if high is None:
        return f"{text(low)} or more"
    if high == low + 1:
        return text(low)
    return f"{low}–{high} min" if high <= 60 else f"{low // 60}–{high // 60} h"
