"""Real windows on which every export is compared with its run before anyone gets it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Float

from lsm_jax import objectives
from lsm_jax.config import with_changes
from lsm_jax.data.loader import Batch, WindowInfo, empty_batch, evaluation_batches
from lsm_jax.data.spec import open_datasets
from lsm_jax.data.store import Dataset, open_dataset
from lsm_jax.errors import RunError, UserError
from lsm_jax.export.function import OBSERVED, TOKENS, EmbeddingFunction
from lsm_jax.objectives.base import NetworkObjective
from lsm_jax.objectives.pooling import POOLINGS, pool
from lsm_jax.train.run import Run

TOLERANCE = 1e-5
_WINDOWS = 6
_CANDIDATES = 16  # of a dataset, among which those with gaps are taken
_SPLITS = ("validation", "test", "train")  # the first that has windows


@dataclasses.dataclass(frozen=True, eq=False)
class CheckWindows:
    """Windows of the run's validation data, and a last one without a recording.

    Attributes:
      batch: z-scored, as the run reads them.
      values: the same in the registry's units, NaN where nothing was recorded.
      summary: how many, of which datasets, how much is missing.
    """

    batch: Batch
    values: Float[np.ndarray, "b t c"]
    summary: str


def check_windows(run: Run, data: Sequence[Path] = ()) -> CheckWindows:
    """Windows of each dataset of the run, those with gaps first.

    Args:
      data: datasets to take instead, where the run's are not at hand.

    Raises:
      UserError: a dataset cannot be opened, or none has a recording of the run's channels.
    """
    try:
        datasets = [open_dataset(path) for path in data] or open_datasets(run.config.data)
    except UserError as error:
        raise UserError(
            f"An export is compared with its run on real windows, which could not be opened: {error} Name a dataset "
            "with --data."
        ) from None
    each = -(-_WINDOWS // len(datasets))
    found = [window for dataset in datasets for window in _windows_of(dataset, run, each)]
    if not found:
        names = ", ".join(dataset.name for dataset in datasets)
        raise UserError(f"{names}: no window has a recording of the run's channels. Name another dataset with --data.")
    batch = empty_batch(len(found) + 1, run.spec, np.arange(len(found) + 1))
    values = np.full(batch["values"].shape, np.nan, np.float32)
    for row, (one, info) in enumerate(found):
        batch |= {name: _with_row(batch[name], row, one[name][0]) for name in batch if name != "window_id"}
        columns = [run.spec.channels.index(name) for name in info.window.channels]
        recorded = np.where(info.window.observed, info.window.values, np.nan)
        values[row, : len(recorded)][:, columns] = recorded  # the rest of a shorter window is missing
    observed = batch["observed"][:-1]
    names = ", ".join(dict.fromkeys(dataset.name for dataset in datasets))
    summary = (
        f"{len(found)} windows of {names}, {_has_gaps(observed).sum()} of them with gaps, {observed.mean():.1%} of "
        "cells recorded; and one without a recording"
    )
    return CheckWindows(batch, values, summary)


def _with_row(array: np.ndarray, row: int, content: np.ndarray) -> np.ndarray:
    array[row] = content
    return array


def _windows_of(dataset: Dataset, run: Run, count: int) -> list[tuple[Batch, WindowInfo]]:
    """The first `count` candidates with a recording, those with gaps before those without."""
    sources = [source for split in _SPLITS if len(source := dataset.source(split))]
    recorded = [
        (batch, infos[0])
        for source in sources[:1]
        for batch, infos in evaluation_batches(source, run.spec, 1, limit=_CANDIDATES)
        if batch["observed"].any()
    ]
    return sorted(recorded, key=lambda window: not _has_gaps(window[0]["observed"])[0])[:count]


def _has_gaps(observed: Bool[np.ndarray, "b t c"]) -> Bool[np.ndarray, " b"]:
    """Whether a channel of the window is recorded in part."""
    share = observed.mean(axis=1)
    return ((share > 0) & (share < 1)).any(axis=1)


def check_embeddings(
    run: Run, windows: CheckWindows, function: EmbeddingFunction, outputs: Mapping[str, np.ndarray]
) -> list[str]:
    """Compares what an exported file gives for the windows with what the run gives in float32.

    Args:
      outputs: by name, as `EmbeddingFunction` has them.

    Returns:
      For each output by how much it differs.

    Raises:
      RunError: one differs by more than `TOLERANCE`, relative to its largest value where that is above 1.
    """
    checked = []
    for name, ours in _expected(run, windows, function):
        theirs = np.asarray(outputs[name])
        if ours.shape != theirs.shape or not np.isfinite(ours).all():
            raise RunError(
                f"`{name}` is {list(theirs.shape)} in the export and {list(ours.shape)} in the run, or not finite at "
                f"step {run.step}; nothing is exported."
            )
        difference = float(np.abs(ours - theirs).max()) if ours.dtype != bool else float((ours != theirs).sum())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(ours).max())):
            raise RunError(
                f"the export's `{name}` differs from the run's by up to {difference:.3g} on {windows.summary}; nothing "
                "is exported."
            )
        checked.append(f"{name}: differs from the run by at most {difference:.1e}")
    return checked


def _expected(run: Run, windows: CheckWindows, function: EmbeddingFunction) -> Iterator[tuple[str, np.ndarray]]:
    """The run's own outputs, computed in float32 by its own rows and attention."""
    objective = objectives.build(with_changes(run.config, {"model.dtype": "float32"}), run.spec)
    assert isinstance(objective, NetworkObjective)
    with jax.default_matmul_precision("highest"):
        tokens = jax.tree.map(np.asarray, objective.embed_tokens(run.params, windows.batch))
        for name in function.outputs:
            if name not in {*POOLINGS, TOKENS, OBSERVED}:
                yield name, np.asarray(objective.embed(run.params, windows.batch, name))
    yield from ((name, pool(tokens, objective.tokens, name)) for name in POOLINGS)
    shape = len(tokens.real), objective.tokens.size
    observed, vectors = np.zeros(shape, bool), np.zeros((*shape, tokens.vectors.shape[2]), np.float32)
    window, slot = np.nonzero(tokens.real)
    observed[window, tokens.token[window, slot]] = True
    vectors[window, tokens.token[window, slot]] = tokens.vectors[window, slot]
    yield from ((OBSERVED, observed), (TOKENS, vectors))
