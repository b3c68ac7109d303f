"""Embeddings of days, people, hours and tokens, streamed to Parquet.

The embedding of a day is the encoder's output pooled over observed tokens; LSM-2 takes the mean (arXiv 2506.05321). A
contrastive sensor-text model embeds days in the space that they share with texts (arXiv 2506.09108).
Nothing is imputed, and the values of missing cells change nothing. The embedding of a person is the mean over their
days.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet
from jaxtyping import Float

from lsm_jax.data.loader import Batch, WindowInfo, evaluation_batches
from lsm_jax.data.store import SPLITS, Dataset
from lsm_jax.errors import UserError
from lsm_jax.export.levels import LevelEmbeddings, check_level, embed_level
from lsm_jax.objectives.pooling import check_pooling
from lsm_jax.objectives.sensor_language import TEXT_SPACE
from lsm_jax.train.run import Run

# Columns of parts of a window, which have no observed share.
_PARTS: Mapping[str, Mapping[str, Any]] = {
    "hour": {"minutes": pl.Int32},
    "token": {"minutes": pl.Int32, "channels": pl.List(pl.String)},
}


@dataclasses.dataclass(frozen=True)
class EmbeddingFiles:
    """The files that were written.

    Attributes:
      rows: of `file`.
      empty: rows without an observed token; their embedding is null.
      width: numbers in an embedding.
      people_file: beside days, with `people` rows.
    """

    file: Path
    rows: int
    empty: int
    width: int
    people_file: Path | None = None
    people: int = 0


def write_embeddings(
    run: Run,
    dataset: Dataset,
    out: Path,
    *,
    splits: Sequence[str] = SPLITS,
    batch_size: int = 256,
    pooling: str = "",
    level: str = "day",
    progress: Callable[[int, int], None] | None = None,
) -> EmbeddingFiles:
    """Embeds every window of a dataset's `splits`. Memory holds one batch, and a sum per person.

    Writes `out`, a row per window: `participant` (hashed), `split`, `start` (UTC), `utc_offset_minutes`,
    `observed_share` (of the run's channels), a column per label of the dataset, `embedding` (list of float32). Writes
    `OUT.people.parquet`, a row per person: `participant`, `split`, `days` with an embedding, labels, `embedding`.
    An error leaves neither.

    Args:
      batch_size: windows that are read and packed into rows together.
      level: `day`; `person`: `out` has a row per person; `hour` or `token`: a row for each that was recorded, with its
        own `start`, its `minutes` and, of a token, its `channels`.
      pooling: how tokens become a day (`objectives.pooling.POOLINGS`, or `text` for a sensor-text run); empty: the
        objective's default.

    Raises:
      UserError: the dataset shares no channel with the run, or the objective has no such pooling.
      RunError: an embedding is not finite.
    """
    check_level(level, pooling)
    if pooling and not (pooling == TEXT_SPACE and run.objective.compares_windows and run.tokenizer):
        check_pooling(pooling)
    if not {*dataset.channels} & {*run.spec.channels}:
        raise UserError(
            f"dataset {dataset.name} has none of the run's channels: it has {', '.join(dataset.channels)}, the run "
            f"knows {', '.join(run.spec.channels)}."
        )
    labels = _label_types(dataset.card)
    schema: dict[str, Any] = {
        "participant": pl.String, "split": pl.String, "start": pl.Datetime("ms", "UTC"),
        "utc_offset_minutes": pl.Int32, **_PARTS.get(level, {"observed_share": pl.Float32}), **labels,
        "embedding": pl.List(pl.Float32),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    sums: dict[str, Float[np.ndarray, " d"]] = {}
    width = 0
    people_file = None
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.partial-", dir=out.parent) as staging:
        partial = Path(staging) / "rows.parquet"
        with pyarrow.parquet.ParquetWriter(partial, pl.DataFrame(schema=schema).to_arrow().schema) as writer:
            for rows in _embed_batches(run, dataset, splits, batch_size, pooling, level, labels, progress):
                writer.write_table(pl.DataFrame(rows, schema).to_arrow())
                for row in rows:
                    if row["embedding"] is not None:
                        width = len(row["embedding"])
                        if level in ("day", "person"):
                            person = row["participant"]
                            sums[person] = sums.get(person, 0) + row["embedding"].astype(np.float64)
        if level in ("day", "person"):
            people = _people(pl.scan_parquet(partial), [*labels], sums)
            of_people = partial.with_name("people.parquet") if level == "day" else partial
            people.write_parquet(of_people)
            if level == "day":
                people_file = of_people.replace(out.with_name(f"{out.stem}.people.parquet"))
        partial.replace(out)
    written = pl.scan_parquet(out).select(pl.len(), empty=pl.col("embedding").null_count()).collect()
    rows, empty = written.row(0)
    if level != "day":
        return EmbeddingFiles(out, rows, empty, width)
    return EmbeddingFiles(out, rows, empty, width, people_file, len(people))


def _people(days: pl.LazyFrame, labels: Sequence[str], sums: Mapping[str, Float[np.ndarray, " d"]]) -> pl.DataFrame:
    """A row per person, in the order of their first days; a label is the last that one of their days has."""
    people = (
        days.group_by("participant", maintain_order=True)
        .agg(
            pl.col("split").first(),
            pl.col("embedding").count().cast(pl.Int32).alias("days"),
            pl.col(labels).drop_nulls().last(),
        )
        .collect()
    )
    means = [
        sums[participant] / days if days else None for participant, days in people.select("participant", "days").rows()
    ]
    return people.with_columns(pl.Series("embedding", means, pl.List(pl.Float32)))


def _label_types(card: Mapping[str, Any]) -> dict[str, type[pl.DataType]]:
    """A column per label of the data card: float64, or text where a value is text."""
    return {
        f"label_{name}": pl.String if "distinct" in entry else pl.Float64
        for name, entry in card.get("labels", {}).items()
    }


def _embed_batches(
    run: Run,
    dataset: Dataset,
    splits: Sequence[str],
    batch_size: int,
    pooling: str,
    level: str,
    labels: Mapping[str, type[pl.DataType]],
    progress: Callable[[int, int], None] | None,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one batch after the other."""
    total, done = sum(len(dataset.source(split)) for split in splits), 0
    for split in splits:
        for batch, infos in evaluation_batches(dataset.source(split), run.spec, batch_size):
            found = embed_level(run, batch, len(infos), level, pooling)
            yield [_row(split, infos, batch, found, row, labels) for row in range(len(found.window))]
            done += len(infos)
            if progress:
                progress(done, max(total, done))


def _row(
    split: str,
    infos: Sequence[WindowInfo],
    batch: Batch,
    found: LevelEmbeddings,
    row: int,
    labels: Mapping[str, type[pl.DataType]],
) -> dict[str, Any]:
    info, window = infos[found.window[row]], infos[found.window[row]].window
    part = {"minutes": found.minutes, "channels": found.channels[row]} if found.channels else {"minutes": found.minutes}
    values = {name: window.labels.get(name.removeprefix("label_")) for name in labels}
    return {
        "participant": info.participant,
        "split": split,
        "start": window.start + dt.timedelta(minutes=int(found.minute[row])),
        "utc_offset_minutes": window.utc_offset_minutes,
        **({"observed_share": float(batch["observed"][found.window[row]].mean())} if found.whole else part),
        **{name: str(v) if v is not None and labels[name] == pl.String else v for name, v in values.items()},
        "embedding": None if np.isnan(found.vectors[row]).any() else found.vectors[row],
    }
