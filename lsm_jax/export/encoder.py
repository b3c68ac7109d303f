"""A trained encoder for notebooks: arrays or data frames in, embeddings with their times out.

encoder = lsm_jax.load("runs/open")  # a run, or an export
embeddings = encoder.embed(frame)  # NaN is missing
embeddings.vectors, embeddings.index
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax.numpy as jnp
import numpy as np
import polars as pl
from jaxtyping import Float

from lsm_jax.errors import UserError
from lsm_jax.export.levels import LevelEmbeddings, check_level, embed_level
from lsm_jax.export.recordings import Recordings, Start, recordings
from lsm_jax.export.safetensors import load_exported
from lsm_jax.objectives import sensor_language
from lsm_jax.train.run import Run, load_run

if TYPE_CHECKING:
    from lsm_jax.export.transformer import EncoderTransformer

_BATCH = 256  # windows that are packed together
_TEXTS = 16  # that are embedded together


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """Vectors and what they are of.

    Attributes:
      vectors: NaN for a day without a recorded value.
      index: a row per vector: `start` (local time, or the time since the array's first midnight), `minutes`, and where
        they apply `participant` or `window`, `channels` (of a token), `days` (of a person).
    """

    vectors: Float[np.ndarray, "n d"]
    index: pl.DataFrame

    def __len__(self) -> int:
        return len(self.vectors)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.vectors, dtype) if copy or dtype else self.vectors

    def to_frame(self) -> pl.DataFrame:
        """The index with the vectors as the column `embedding`."""
        return self.index.with_columns(pl.Series("embedding", list(self.vectors), pl.List(pl.Float32)))


class Encoder:
    """The encoder of a run, ready to embed.

    Attributes:
      run: see `train.run.Run`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @property
    def channels(self) -> tuple[str, ...]:
        """Canonical names of the channels that it reads; docs/reference/signals.md has their units."""
        return self.run.spec.channels

    @property
    def window_minutes(self) -> int:
        """Minutes of a window, 1440 for a day."""
        return self.run.spec.window_minutes

    def __repr__(self) -> str:
        return (
            f"Encoder({self.run.config.objective.name}, {self.run.config.model.size}, step {self.run.step}, "
            f"{len(self.channels)} channels)"
        )

    def __sklearn_clone__(self) -> Self:
        """Itself: a copy, as scikit-learn makes one for each fold, would be compiled again."""
        return self

    def embed(
        self,
        data: Any,
        *,
        channels: Sequence[str] | None = None,
        level: str = "day",
        pooling: str = "",
        start: Start = None,
        time: str | None = None,
        participant: str = "participant",
    ) -> Embeddings:
        """Embeddings of a recording, in the registry's units and with NaN where nothing was recorded.

        Windows begin at local midnight. What is shorter is unobserved around, what is longer is cut into days.

        Args:
          data: a pandas or polars frame with an index or a column of times and a column per channel, or an array
            [time, channels] or [windows, time, channels] of minutes, NaN or masked where nothing was recorded.
          channels: canonical names, any part of the encoder's; default: all columns of a frame but those of time and
            person, or all channels of the encoder for an array.
          level: `day`, `person` (the mean over a person's days), `hour` or `token`.
          pooling: of days and persons, see `objectives.pooling.POOLINGS`, or `text` for a run that compares windows
            with texts; the objective's own if left out.
          start: local time of an array's first minute; midnight if left out. A zone is not looked at.
          time, participant: columns of a frame; the only column of times if left out.

        Raises:
          UserError: an unknown channel, level or pooling, a shape that does not fit, or a frame without times.
          RunError: an embedding is not finite.
        """
        check_level(level, pooling)
        given = recordings(data, self.run.spec, channels, start, time, participant)
        batch, starts, owners = given.windows(self.run.spec)
        vectors, frames = [], []
        for first in range(0, len(starts), _BATCH):
            rows = slice(first, min(first + _BATCH, len(starts)))
            part = {name: array[rows] for name, array in batch.items()}
            found = embed_level(self.run, part, len(part["values"]), level, pooling)
            vectors.append(found.vectors)
            frames.append(_index(given, found, starts[rows], owners[rows]))
        embeddings = Embeddings(np.concatenate(vectors), pl.concat(frames))
        return _by_person(embeddings, given.owner) if level == "person" else embeddings

    def embed_text(self, texts: Sequence[str]) -> Float[np.ndarray, "t e"]:
        """Embeddings of texts in the space shared with days, of length one.

        Raises:
          UserError: the run compares no windows with texts, or a text is empty or longer than it reads.
        """
        objective, length = sensor_language(self.run.objective), self.run.config.language.text_length
        texts = [texts] if isinstance(texts, str) else list(texts)
        encoded = self.run.words.encode(texts, length)
        for text, tokens in zip(texts, encoded.lengths, strict=True):
            if not text.strip() or tokens > length:
                problem = "is empty" if not text.strip() else f"has {tokens} tokens and the model reads {length}"
                raise UserError(f"the text {text[:40]!r} {problem}.")
        ids = np.pad(encoded.ids, ((0, -len(texts) % _TEXTS), (0, 0)))  # few shapes, each of which is compiled
        return np.asarray(objective.embed_text(self.run.params, jnp.asarray(ids)), np.float32)[: len(texts)]

    def transformer(self, *, pooling: str = "", channels: Sequence[str] | None = None) -> EncoderTransformer:
        """A scikit-learn transformer of windows to day embeddings, for pipelines and cross-validation."""
        from lsm_jax.export.transformer import EncoderTransformer  # scikit-learn takes a second to import

        return EncoderTransformer(self, pooling=pooling, channels=channels)


def load(path: Path | str, step: int | None = None) -> Encoder:
    """The encoder of a run's folder (or its URL in an object store), or of a folder that `lsm export` has written.

    Args:
      step: the checkpoint of a run; the newest if left out.

    Raises:
      UserError: no run and no export, or a damaged one.
    """
    if (Path(path) / "model.safetensors").is_file():
        if step is not None:
            raise UserError(f"{path} is an export, which has one step only: leave out step={step}.")
        return Encoder(load_exported(path))
    return Encoder(load_run(path, step))


def _index(given: Recordings, found: LevelEmbeddings, starts: np.ndarray, owners: list[str | int]) -> pl.DataFrame:
    minute = starts[found.window] + found.minute
    since = minute.astype("datetime64[m]" if given.dated else "timedelta64[m]")
    times = since.astype("datetime64[ms]" if given.dated else "timedelta64[ms]")
    columns: dict[str, Any] = {given.owner: [owners[window] for window in found.window]} if given.owner else {}
    columns |= {"start": times, "minutes": np.full(len(minute), found.minutes)}
    if found.channels:
        columns["channels"] = found.channels
    return pl.DataFrame(columns)


def _by_person(days: Embeddings, owner: str) -> Embeddings:
    """The mean over the days of each person that have an embedding; all days are one person's without `owner`."""
    people = days.index[owner].to_numpy() if owner else np.zeros(len(days))
    names, person = np.unique(people, return_inverse=True)
    known = np.isfinite(days.vectors).all(axis=1)
    count = np.bincount(person, known, len(names)).astype(int)
    sums = np.zeros((len(names), days.vectors.shape[1]))
    np.add.at(sums, person[known], days.vectors[known])
    means = np.divide(sums, count[:, None], out=np.full(sums.shape, np.nan), where=count[:, None] > 0)
    index = pl.DataFrame({owner: names, "days": count} if owner else {"days": count})
    return Embeddings(means.astype(np.float32), index)
