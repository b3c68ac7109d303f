"""Embeddings of days and of people, streamed to Parquet.

A day's embedding is the mean of the encoder's output over observed tokens (LSM-2, SPEC section 3): nothing is
imputed, and whatever bytes stand in missing cells change nothing. A person's is the mean over their days.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import Float

from lsm_jax.data.loader import Batch, WindowInfo, evaluation_batches
from lsm_jax.data.store import SPLITS, Dataset
from lsm_jax.errors import RunError, UserError
from lsm_jax.objectives import masked
from lsm_jax.train.run import Run

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What was written.

    Attributes:
      days, people: rows of the two files.
      empty: days without a single observed token; their embedding is null.
      width: numbers of an embedding.
    """

    days_file: Path
    people_file: Path
    days: int
    people: int
    empty: int
    width: int


def write_embeddings(
    run: Run,
    dataset: Dataset,
    out: Path,
    *,
    splits: Sequence[str] = SPLITS,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Embedded:
    """Embeds every window of a dataset's `splits`; memory holds one batch, and a sum per person.

    Writes `out`, a row per window: `participant` (hashed), `split`, `start` (UTC), `utc_offset_minutes`,
    `observed_share` (of the run's channels), a column per label of the dataset, `embedding` (float32 list). And
    `OUT.people.parquet`, a row per person: `participant`, `split`, `days`, labels, `embedding`.

    Raises:
      UserError: the objective does not embed, or the dataset shares no channel with the run.
      RunError: an embedding is not finite.
    """
    masked(run.objective)
    if not {*dataset.channels} & {*run.spec.channels}:
        raise UserError(
            f"dataset {dataset.name} has none of the run's channels: it has {', '.join(dataset.channels)}, the run "
            f"knows {', '.join(run.spec.channels)}."
        )
    labels = label_types(dataset.card)
    people_file = out.with_name(f"{out.stem}.people.parquet")
    out.parent.mkdir(parents=True, exist_ok=True)
    people: dict[str, _Person] = {}
    days = empty = width = 0
    partial = out.with_name(out.name + ".partial")
    with pyarrow.parquet.ParquetWriter(partial, _day_schema(labels)) as writer:
        for rows in _day_rows(run, dataset, splits, batch_size, labels, progress):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=_day_schema(labels)))
            days += len(rows)
            for row in rows:
                known = row["embedding"] is not None
                empty, width = empty + (not known), len(row["embedding"]) if known else width
                people.setdefault(row["participant"], _Person(row["split"])).add(row, labels)
    partial.replace(out)
    table = pyarrow.Table.from_pylist([one.row(name) for name, one in people.items()], schema=_person_schema(labels))
    pyarrow.parquet.write_table(table, people_file)
    return Embedded(out, people_file, days, len(people), empty, width)


def label_types(card: Mapping[str, Any]) -> dict[str, pyarrow.DataType]:
    """The dataset's labels by its card: float64, or text where any value is text."""
    found = card.get("labels", {})
    return {
        f"label_{name}": pyarrow.string() if "distinct" in entry else pyarrow.float64() for name, entry in found.items()
    }


@dataclasses.dataclass
class _Person:
    """A person's running sum."""

    split: str
    days: int = 0
    total: Float[np.ndarray, " d"] | None = None
    labels: dict[str, Any] = dataclasses.field(default_factory=dict)

    def add(self, row: Mapping[str, Any], labels: Mapping[str, pyarrow.DataType]) -> None:
        self.labels |= {name: row[name] for name in labels if row[name] is not None}
        if row["embedding"] is not None:
            self.days += 1
            vector = row["embedding"].astype(np.float64)
            self.total = vector if self.total is None else self.total + vector

    def row(self, participant: str) -> dict[str, Any]:
        mean = None if self.total is None else (self.total / self.days).astype(np.float32)
        return {"participant": participant, "split": self.split, "days": self.days, **self.labels, "embedding": mean}


def _day_rows(
    run: Run,
    dataset: Dataset,
    splits: Sequence[str],
    batch_size: int,
    labels: Mapping[str, pyarrow.DataType],
    progress: Progress | None,
) -> Iterator[list[dict[str, Any]]]:
    total, done = sum(len(dataset.source(split)) for split in splits), 0
    for split in splits:
        source = dataset.source(split)
        for batch, infos in evaluation_batches(source, run.spec, batch_size):
            vectors = np.asarray(masked(run.objective).embed(run.params, jax.tree.map(jnp.asarray, batch)), np.float32)[
                : len(infos)
            ]
            if not np.isfinite(vectors).all():
                raise RunError(f"the model of step {run.step} gives embeddings that are not finite.")
            yield _rows(split, batch, infos, vectors, labels)
            done += len(infos)
            if progress:
                progress(done, max(total, done))


def _rows(
    split: str,
    batch: Batch,
    infos: Sequence[WindowInfo],
    vectors: Float[np.ndarray, "b d"],
    labels: Mapping[str, pyarrow.DataType],
) -> list[dict[str, Any]]:
    rows = []
    for observed, info, vector in zip(batch["observed"], infos, vectors, strict=False):
        window = info.window
        rows.append(
            {
                "participant": info.participant,
                "split": split,
                "start": window.start,
                "utc_offset_minutes": window.utc_offset_minutes,
                "observed_share": float(observed.mean()),
                **{name: _label(window.labels.get(name.removeprefix("label_")), kind) for name, kind in labels.items()},
                "embedding": vector if vector.any() else None,  # zeros say that no token was observed
            }
        )
    return rows


def _label(value: float | str | None, kind: pyarrow.DataType) -> float | str | None:
    if value is None:
        return None
    return str(value) if pyarrow.types.is_string(kind) else float(value)


def _day_schema(labels: Mapping[str, pyarrow.DataType]) -> pyarrow.Schema:
    return pyarrow.schema(
        [
            ("participant", pyarrow.string()),
            ("split", pyarrow.string()),
            ("start", pyarrow.timestamp("s", tz="UTC")),
            ("utc_offset_minutes", pyarrow.int32()),
            ("observed_share", pyarrow.float32()),
            *labels.items(),
            ("embedding", pyarrow.list_(pyarrow.float32())),
        ]
    )


def _person_schema(labels: Mapping[str, pyarrow.DataType]) -> pyarrow.Schema:
    return pyarrow.schema(
        [
            ("participant", pyarrow.string()),
            ("split", pyarrow.string()),
            ("days", pyarrow.int32()),
            *labels.items(),
            ("embedding", pyarrow.list_(pyarrow.float32())),
        ]
    )
