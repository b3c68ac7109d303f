"""What the training loop and `lsm evaluate` ask of an evaluator. Room `evals` implements it; the loop only calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lsm_jax.data.store import Dataset
from lsm_jax.train.run import Run


class EvaluatorResult(Protocol):
    """What one evaluation of a run found."""

    def scalars(self) -> Mapping[str, float]:
        """The headline numbers by name. The loop writes each to `metrics.jsonl` as `EVALUATOR/NAME`."""
        ...

    def write(self, folder: Path) -> None:
        """Writes everything (JSON, Markdown) into `folder`, which exists: `WORKDIR/eval/step-N` during training."""
        ...


class Evaluator(Protocol):
    """One evaluation suite, set up once and run many times; compiled functions are worth keeping in it.

    Attributes:
      name: of the suite, as in `evaluate.suites`.
    """

    name: str

    def run(self, run: Run, datasets: Sequence[Dataset]) -> EvaluatorResult:
        """Evaluates a run as it is now.

        Args:
          run: with the parameters that would leave the run at `run.step` (averaged ones where it keeps them), on this
            process's first device. The same objective object at every call of one training run.
          datasets: opened datasets to evaluate on, in the order of `data.paths` during training.
        """
        ...
