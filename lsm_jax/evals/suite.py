"""What all evaluation suites share: settings, batches, and the refusal to score people that a run was trained on.

Splits keep people apart within one dataset as it was written. A dataset written again with more people, or another
dataset of some of the same people, may have someone in its test split whom a run was trained on.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from lsm_jax.data.loader import Batch, WindowInfo, evaluation_batches
from lsm_jax.data.spec import DataSpec
from lsm_jax.data.store import Dataset, WindowSource
from lsm_jax.errors import UserError
from lsm_jax.evals.result import EvalResult, Row, provenance
from lsm_jax.train.run import Run
from lsm_jax.train.workdir import TRAINED_ON, read_trained_on

Progress = Callable[[int, int, str], None]
_MAX_LIST_BYTES = 256 * 2**20  # of TRAINED_ON: millions of people


@dataclasses.dataclass(frozen=True)
class Suite(abc.ABC):
    """An evaluation with its settings. The training loop and `lsm evaluate` run the same object.

    Attributes:
      name: as in `lsm evaluate --suite` and `evaluate.suites`.
      objectives: names of the objectives whose runs it can score.
      split: the split to score.
      max_windows: at most this many windows of each dataset, spread evenly over the split; None: all. `generative` and
        `openmhc` take whole people instead, `probe` and `robustness` so many windows of each split.
      batch_size: windows per model call.
      seed: of masks, pools, few-shot draws, decoding and bootstrap.
      progress: called with what is done, how much of it there is, and a line about it: windows (""), from 0 again for
        each pass over a split, or fits of one kind.
    """

    name: ClassVar[str]
    objectives: ClassVar[tuple[str, ...]]

    split: str = "test"
    max_windows: int | None = None
    batch_size: int = 32
    seed: int = 0
    progress: Progress | None = dataclasses.field(default=None, repr=False, compare=False)

    @abc.abstractmethod
    def run(self, run: Run, datasets: Sequence[Dataset]) -> EvalResult:
        """Scores a run on the split of these datasets.

        Raises:
          UserError: the run, the data or a setting does not suit the suite.
          RunError: the model's outputs are not finite.
        """

    def check_objective(self, name: str) -> None:
        """UserError for a run of an objective that the suite cannot score."""
        if name not in self.objectives:
            raise UserError(f"the suite {self.name} scores runs of {', '.join(self.objectives)}, and not of {name}.")

    @property
    def without_limit(self) -> Self:
        """The same settings for splits that baselines learn from, which are read whole."""
        return dataclasses.replace(self, max_windows=None)

    def batches(self, spec: DataSpec, source: WindowSource) -> Iterator[tuple[Batch, list[WindowInfo]]]:
        """The batches of a source, at most `max_windows` windows spread evenly over it."""
        total, done = min(self.max_windows or len(source), len(source)), 0
        for batch, infos in evaluation_batches(source, spec, self.batch_size, self.max_windows):
            yield batch, infos
            done += len(infos)
            self.report(done, total)

    def report(self, done: int, total: int, what: str = "") -> None:
        """Calls `progress`. A stored window may be cut into several, so `done` can exceed `total`."""
        if self.progress:
            self.progress(done, max(total, done), what)

    def provenance(self, run: Run, **more: Any) -> dict[str, Any]:
        """What the numbers were made with: run, versions, settings."""
        return {
            **provenance(run), "split": self.split, "seed": self.seed, "max_windows": self.max_windows, **more,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DatasetSuite(Suite):
    """A suite that scores every dataset by itself."""

    @abc.abstractmethod
    def score(self, run: Run, dataset: Dataset) -> tuple[list[Row], list[str], list[Row]]:
        """The result rows, notes and details of one dataset."""

    def run(self, run: Run, datasets: Sequence[Dataset]) -> EvalResult:
        """See `Suite.run`."""
        results: list[Row] = []
        notes, details = [], []
        for name, dataset in unique_names(datasets).items():
            rows, sentences, windows = self.score(run, dataset)
            results += [{"dataset": name, **row} for row in rows]
            notes += [f"{name}: {sentence}" for sentence in sentences]
            details += [{"dataset": name, **row} for row in windows]
        notes += corrupt_records(datasets)
        return EvalResult(self.name, results, self.provenance(run), notes, details=details)


def unique_names(datasets: Iterable[Dataset]) -> dict[str, Dataset]:
    """Datasets by name; of several with the same name the later ones are numbered."""
    by_name: dict[str, Dataset] = {}
    for dataset in datasets:
        same = sum(other.name == dataset.name for other in by_name.values())
        by_name[f"{dataset.name}-{same + 1}" if same else dataset.name] = dataset
    return by_name


def corrupt_records(datasets: Iterable[Dataset]) -> list[str]:
    """A sentence for each corrupt record that was set aside, so that a result tells what it is without."""
    return [
        f"{name}: set aside {record}."
        for name, dataset in unique_names(datasets).items()
        for record in dataset.faults.records(dataset.fingerprint)
    ]


def check_never_trained_on(workdir: Path, datasets: Iterable[Dataset], split: str) -> bool:
    """Refuses datasets in whose split is a person that a run was trained on. Ids agree where the salt is the same.

    Args:
      workdir: of the run, which lists its people there.

    Returns:
      False where there is no such list, so that nothing could be checked.

    Raises:
      UserError: there is such a person, or the list is damaged or too large.
    """
    file = workdir / TRAINED_ON
    if file.is_file() and file.stat().st_size > _MAX_LIST_BYTES:
        raise UserError(f"{file}: {file.stat().st_size} bytes is more than a list of people can have; restore it.")
    trained = {person for people in read_trained_on(workdir).values() for person in people}
    for dataset in datasets:
        people = {*dataset.nonempty_source(split).participants}
        if overlap := len(people & trained):
            raise UserError(
                f"{dataset.path}: the run was trained on {overlap} of the {len(people)} people of the {split} split, "
                "so this would not be a score on people held out. Splits change when a dataset is written anew: score "
                "on the dataset as it was when training began (--data), on one of other people, or train a new run on "
                "this one."
            )
    return bool(trained)
