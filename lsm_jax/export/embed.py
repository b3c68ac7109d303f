"""Embeddings of days and of people, streamed to Parquet.

The embedding of a day is the encoder's output pooled over observed tokens; LSM-2 takes the mean (arXiv 2506.05321). A
contrastive sensor-text model embeds days in the space that they share with texts (arXiv 2506.09108).
Nothing is imputed, and the values of missing cells change nothing. The embedding of a person is the mean over their
days.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pyarrow.parquet
from jaxtyping import Float

from lsm_jax.data.loader import WindowInfo, evaluation_batches
from lsm_jax.data.store import SPLITS, Dataset
from lsm_jax.errors import RunError, UserError
from lsm_jax.objectives.pooling import check_pooling
from lsm_jax.objectives.sensor_language import TEXT_SPACE
from lsm_jax.train.run import Run


@dataclasses.dataclass(frozen=True)
class EmbeddingFiles:
    """The two files and what they hold.

    Attributes:
      days, people: rows of the files.
      empty_days: days without an observed token; their embedding is null.
      width: numbers in an embedding.
    """

    days_file: Path
    people_file: Path
    days: int
    people: int
    empty_days: int
    width: int


def write_embeddings(
    run: Run,
    dataset: Dataset,
    out: Path,
    *,
    splits: Sequence[str] = SPLITS,
    batch_size: int = 32,
    pooling: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> EmbeddingFiles:
    """Embeds every window of a dataset's `splits`. Memory holds one batch, and a sum per person.

    Writes `out`, a row per window: `participant` (hashed), `split`, `start` (UTC), `utc_offset_minutes`,
    `observed_share` (of the run's channels), a column per label of the dataset, `embedding` (list of float32). Writes
    `OUT.people.parquet`, a row per person: `participant`, `split`, `days` with an embedding, labels, `embedding`.

    Args:
      pooling: how tokens become a day (`objectives.pooling.POOLINGS`, or `text` for a sensor-text run); empty: the
        objective's default.

    Raises:
      UserError: the dataset shares no channel with the run, or the objective has no such pooling.
      RunError: an embedding is not finite.
    """
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
        "utc_offset_minutes": pl.Int32, "observed_share": pl.Float32, **labels, "embedding": pl.List(pl.Float32),
    }  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    sums: dict[str, Float[np.ndarray, " d"]] = {}
    width = 0
    with pyarrow.parquet.ParquetWriter(partial, pl.DataFrame(schema=schema).to_arrow().schema) as writer:
        for rows in _embed_days(run, dataset, splits, batch_size, pooling, labels, progress):
            writer.write_table(pl.DataFrame(rows, schema).to_arrow())
            for row in rows:
                if row["embedding"] is not None:
                    width = len(row["embedding"])
                    sums[row["participant"]] = sums.get(row["participant"], 0) + row["embedding"].astype(np.float64)
    people = _people(pl.scan_parquet(partial), [*labels], sums)
    partial.replace(out)
    people_file = out.with_name(f"{out.stem}.people.parquet")
    people.write_parquet(people_file)
    days = pl.scan_parquet(out).select(pl.len(), empty=pl.col("embedding").null_count()).collect()
    return EmbeddingFiles(out, people_file, days["len"].item(), len(people), days["empty"].item(), width)


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


def _embed_days(
    run: Run,
    dataset: Dataset,
    splits: Sequence[str],
    batch_size: int,
    pooling: str,
    labels: Mapping[str, type[pl.DataType]],
    progress: Callable[[int, int], None] | None,
) -> Iterator[list[dict[str, Any]]]:
    """The rows of one batch after the other."""
    total, done = sum(len(dataset.source(split)) for split in splits), 0
    for split in splits:
        for batch, infos in evaluation_batches(dataset.source(split), run.spec, batch_size):
            output = run.objective.embed(run.params, jax.tree.map(jnp.asarray, batch), pooling)
            embeddings = np.asarray(output, np.float32)[: len(infos)]
            if not np.isfinite(embeddings).all():
                raise RunError(f"the model of step {run.step} gives embeddings that are not finite.")
            yield [_row(split, *each, labels) for each in zip(infos, batch["observed"], embeddings, strict=False)]
            done += len(infos)
            if progress:
                progress(done, max(total, done))


def _row(
    split: str,
    info: WindowInfo,
    observed: np.ndarray,
    embedding: Float[np.ndarray, " d"],
    labels: Mapping[str, type[pl.DataType]],
) -> dict[str, Any]:
    window = info.window
    values = {name: window.labels.get(name.removeprefix("label_")) for name in labels}
    return {
        "participant": info.participant,
        "split": split,
        "start": window.start,
        "utc_offset_minutes": window.utc_offset_minutes,
        "observed_share": float(observed.mean()),
        **{name: str(v) if v is not None and labels[name] == pl.String else v for name, v in values.items()},
        "embedding": embedding if embedding.any() else None,  # all zero: no token was observed
    }
