"""Days for the suites about words and classes: what was logged, their captions, their embeddings."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.semantic import captioned_events
from lsm_jax.data.loader import Batch
from lsm_jax.data.store import WindowSource
from lsm_jax.data.text import activity_names
from lsm_jax.errors import RunError, UserError
from lsm_jax.evals.statistics import index_of
from lsm_jax.evals.suite import Suite
from lsm_jax.objectives import sensor_language
from lsm_jax.train.run import Run

QUANTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclasses.dataclass(frozen=True)
class Days:
    """The windows of a split with at least one recorded value, in the order of the split.

    Attributes:
      positions: in the split.
      participants, starts: hashed ids, and starts in UTC (ISO 8601).
      dates: of the starts in local time (ISO 8601).
      captioned: activities and sessions that a caption may mention: long enough, and covered by the sensors.
      logged: all that the log names.
      captions: at the run's levels, worded as in epoch 0; empty where there is nothing to say.
      statistics: mean, sd, `QUANTILES` and observed share of every channel, z-scored.
      embeddings: of a sensor-text run in the space shared with texts, of length one; of LSM-2 its own.
    """

    positions: Int[np.ndarray, " n"]
    participants: tuple[str, ...]
    starts: tuple[str, ...]
    dates: tuple[str, ...]
    captioned: tuple[set[str], ...]
    logged: tuple[set[str], ...]
    captions: tuple[str, ...]
    statistics: Float[np.ndarray, "n f"]
    embeddings: Float[np.ndarray, "n e"]

    @property
    def person(self) -> Int[np.ndarray, " n"]:
        """The person of each day, an index from 0."""
        return index_of(self.participants)

    def only(self, chosen: Bool[np.ndarray, " n"]) -> Days:
        """Some of the days."""
        kept: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            part = getattr(self, field.name)
            kept[field.name] = part[chosen] if isinstance(part, np.ndarray) else tuple(itertools.compress(part, chosen))
        return Days(**kept)

    def labels(self, classes: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """1 where a day shows the class, 0 where its log does not name it.

        NaN where the log names it and the day does not show it (under 20 minutes, or not recorded): such a day is
        neither right nor wrong for that class.
        """
        captioned, logged = (
            np.array([[name in day for name in classes] for day in days]) for days in (self.captioned, self.logged)
        )
        return np.where(captioned, 1, np.where(logged, np.nan, 0)).astype(np.float32)


def read_days(run: Run, source: WindowSource, suite: Suite, *, embed: bool = True, statistics: bool = False) -> Days:
    """Reads a split once, with the limit and batch size of a suite.

    Args:
      embed, statistics: whether to compute them; empty otherwise.

    Raises:
      UserError: no window with a recorded channel of the run, or the run cannot embed.
      RunError: embeddings are not finite.
    """
    write = captioner(run)
    rows, embeddings, measured = [], [], []
    for batch, infos in suite.batches(run.spec, source):
        recorded = np.any(batch["observed"][: len(infos)], axis=(1, 2))
        for info in itertools.compress(infos, recorded):
            window = info.window
            logged = activity_names(window)
            captioned = {event.name for event in captioned_events(window)} & logged
            text = write(window).text if write else ""
            date = (window.start + dt.timedelta(minutes=window.utc_offset_minutes)).date().isoformat()
            rows.append((info.index, info.participant, window.start.isoformat(), date, captioned, logged, text))
        if embed:
            embeddings.append(embed_windows(run, batch)[: len(infos)][recorded])
        if statistics:
            measured.append(day_statistics(batch["values"], batch["observed"])[: len(infos)][recorded])
    if not rows:
        raise UserError(
            f"{source.path}: none of these {len(source)} windows has a recorded value of a channel of the run "
            f"({', '.join(run.spec.channels)})."
        )
    positions, participants, starts, dates, captioned_names, logged_names, captions = zip(*rows, strict=True)
    features, vectors = (np.concatenate(part) if part else np.zeros((len(rows), 0)) for part in (measured, embeddings))
    return Days(
        np.array(positions), participants, starts, dates, captioned_names, logged_names, captions, features, vectors
    )


def captioner(run: Run) -> Captioner | None:
    """Writes captions as in the run's training; None for a run without text."""
    return Captioner.from_config(run.config.language) if run.config.language.levels else None


def embed_windows(run: Run, batch: Batch) -> Float[np.ndarray, "b e"]:
    """The embeddings of a batch; RunError where they are not finite."""
    vectors = np.asarray(run.objective.embed(run.params, batch), np.float32)
    if not np.isfinite(vectors).all():
        raise RunError(f"the model of step {run.step} gives embeddings that are not finite.")
    return vectors


def embed_texts(run: Run, texts: Sequence[str], batch_size: int = 64) -> Float[np.ndarray, "t e"]:
    """The embeddings of texts, of length one; texts longer than `language.text_length` are cut."""
    objective = sensor_language(run.objective)
    ids = run.words.encode(texts, run.config.language.text_length).ids
    filled = np.pad(ids, ((0, -len(ids) % batch_size), (0, 0)))  # one shape, compiled once
    parts = [jnp.asarray(filled[first : first + batch_size]) for first in range(0, len(filled), batch_size)]
    vectors = [np.asarray(objective.embed_text(run.params, part), np.float32) for part in parts]
    return np.concatenate(vectors)[: len(ids)]


def day_statistics(values: Float[np.ndarray, "b t c"], observed: Bool[np.ndarray, "b t c"]) -> Float[np.ndarray, "b f"]:
    """Mean, sd, `QUANTILES` and observed share of each channel; NaN where a channel has no value."""
    recorded = np.where(observed, values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy warns about a channel without values
        mean, sd = np.nanmean(recorded, axis=1), np.nanstd(recorded, axis=1)
        quantiles = np.nanpercentile(recorded, QUANTILES, axis=1)
    parts = np.concatenate([mean[None], sd[None], quantiles, observed.mean(axis=1)[None]])
    return parts.transpose(1, 0, 2).reshape(len(values), -1)
