"""Days as the suites about words and classes see them: what was logged, what is said of them, how they embed."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.semantic import captioned_events
from lsm_jax.data.loader import Batch, WindowInfo, evaluation_batches
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import WindowSource
from lsm_jax.data.text import activity_names
from lsm_jax.errors import RunError, UserError
from lsm_jax.evals.findings import Settings
from lsm_jax.evals.ranking import numbered
from lsm_jax.objectives import masked, sensor_language
from lsm_jax.objectives.sensor_language import SensorLanguage
from lsm_jax.train.run import Run
from lsm_jax.windows import Window

QUANTILES = (1, 5, 25, 50, 75, 95, 99)


@dataclasses.dataclass(frozen=True)
class Days:
    """The windows of a split that hold anything at all, in its order.

    Attributes:
      examples: places in the split.
      participants, starts: whose, and from when on (UTC, ISO 8601).
      spoken: activities and sessions that a caption can speak of: long enough, and seen by the sensors.
      logged: all that the log names.
      texts: captions at the run's levels in the wording of epoch 0.
      statistics: of every channel: mean, sd, `QUANTILES` of the z-scored values, and the observed share.
      embeddings: in the space of texts, of length one, by a run that has one; LSM-2's otherwise.
    """

    examples: Int[np.ndarray, " n"]
    participants: tuple[str, ...]
    starts: tuple[str, ...]
    spoken: tuple[set[str], ...]
    logged: tuple[set[str], ...]
    texts: tuple[str, ...]
    statistics: Float[np.ndarray, "n f"]
    embeddings: Float[np.ndarray, "n e"]

    @property
    def person(self) -> Int[np.ndarray, " n"]:
        """The person of each day, numbered from 0."""
        return numbered(self.participants)

    def labels(self, names: Sequence[str]) -> Float[np.ndarray, "n c"]:
        """1 where a day has the class, 0 where its log does not name it.

        NaN where the log names it and the day does not show it: under 20 minutes, or not recorded. Such a day is
        neither right nor wrong for that class.
        """
        rows = zip(self.spoken, self.logged, strict=True)
        return np.array([[_label(name, spoken, logged) for name in names] for spoken, logged in rows], np.float32)


def read_days(
    run: Run, source: WindowSource, settings: Settings, *, embed: bool = True, statistics: bool = False
) -> Days:
    """Reads a split once.

    Args:
      embed, statistics: what is wanted beyond logs and captions; left empty otherwise.

    Raises:
      UserError: no window with a channel of the run, or a run that does not embed.
      RunError: embeddings are not finite.
    """
    say = captioner(run)
    rows, embeddings, measured = [], [np.zeros((0, 0))], [np.zeros((0, 0))]
    for batch, infos, windows in batches(run.spec, source, settings):
        seen = batch["observed"][: len(infos)].any(axis=(1, 2))
        for info, window in zip(np.array(infos, object)[seen], np.array(windows, object)[seen], strict=True):
            names = {event.name for event in captioned_events(window)} & activity_names(window)
            text = say(window).text if say else ""
            rows.append((info.index, info.participant, window.start.isoformat(), names, activity_names(window), text))
        if embed:
            embeddings.append(embedded(run, batch)[: len(infos)][seen])
        if statistics:
            measured.append(day_statistics(batch["values"], batch["observed"])[: len(infos)][seen])
    if not rows:
        raise UserError(
            f"{source.path}: none of these {len(source)} windows has a recorded value of a channel of the run "
            f"({', '.join(run.spec.channels)})."
        )
    examples, participants, starts, spoken, logged, texts = zip(*rows, strict=True)
    stack = lambda parts: np.concatenate(parts[1:]) if len(parts) > 1 else np.zeros((len(rows), 0))  # noqa: E731
    return Days(np.array(examples), participants, starts, spoken, logged, texts, stack(measured), stack(embeddings))


def batches(
    spec: DataSpec, source: WindowSource, settings: Settings
) -> Iterator[tuple[Batch, list[WindowInfo], list[Window]]]:
    """Batches with the windows they show, on the channels of the run."""
    total, done = min(settings.max_windows or len(source), len(source)), 0
    for batch, infos in evaluation_batches(source, spec, settings.batch_size, settings.max_windows):
        yield batch, infos, [info.window for info in infos]
        done += len(infos)
        if settings.progress:
            settings.progress(done, max(total, done))


def captioner(run: Run) -> Captioner | None:
    """What words days as the run's training did; None for a run without words."""
    return Captioner.from_config(run.config.language) if run.config.language.levels else None


def embedded(run: Run, batch: Batch) -> Float[np.ndarray, "b e"]:
    """The embeddings of a batch; RunError where they are not finite."""
    objective = sensor_language(run.objective) if isinstance(run.objective, SensorLanguage) else masked(run.objective)
    vectors = np.asarray(objective.embed(run.params, jax.tree.map(jnp.asarray, batch)), np.float32)
    if not np.isfinite(vectors).all():
        raise RunError(f"the model of step {run.step} gives embeddings that are not finite.")
    return vectors


def embedded_texts(run: Run, texts: Sequence[str], batch_size: int = 64) -> Float[np.ndarray, "t e"]:
    """The embeddings of texts, of length one; those longer than `language.text_length` are cut."""
    objective = sensor_language(run.objective)
    ids = run.words.encode(texts, run.config.language.text_length).ids
    filled = np.pad(ids, ((0, -len(ids) % batch_size), (0, 0)))  # one shape, compiled once
    parts = [jnp.asarray(filled[first : first + batch_size]) for first in range(0, len(filled), batch_size)]
    vectors = [np.asarray(objective.embed_text(run.params, part), np.float32) for part in parts]
    return np.concatenate(vectors)[: len(ids)]


def day_statistics(values: Float[np.ndarray, "b t c"], observed: Bool[np.ndarray, "b t c"]) -> Float[np.ndarray, "b f"]:
    """Mean, sd, `QUANTILES` and observed share of each channel; NaN where a channel has no value."""
    known = np.where(observed, values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # an empty channel is no fault
        parts = [np.nanmean(known, axis=1)[None], np.nanstd(known, axis=1)[None], np.nanpercentile(known, QUANTILES, 1)]
    return np.concatenate([*parts, observed.mean(axis=1)[None]]).transpose(1, 0, 2).reshape(len(values), -1)


def _label(name: str, spoken: set[str], logged: set[str]) -> float:
    return 1.0 if name in spoken else np.nan if name in logged else 0.0
