"""The evaluator protocol, which `lsm_jax.evals` implements and the training loop and `lsm evaluate` call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lsm_jax.data.store import Dataset
from lsm_jax.train.run import Run


class EvaluatorResult(Protocol):
    """The result of evaluating a run."""

    def scalars(self) -> Mapping[str, float]:
        """The headline numbers by name. The loop writes each to `metrics.jsonl` as `EVALUATOR/NAME`."""
        ...

    def write(self, folder: Path) -> Path:
        """Writes everything (JSON, Markdown) into `folder`, `WORKDIR/eval/step-N` during training; returns the JSON."""
        ...


class Evaluator(Protocol):
    """One evaluation suite, set up once and run many times."""

    @property
    def name(self) -> str:
        """The suite's name, as in `evaluate.suites`."""
        ...

    def run(self, run: Run, datasets: Sequence[Dataset]) -> EvaluatorResult:
        """Evaluates a run as it is now.

        Args:
          run: with the parameters that would leave the run at `run.step` (averaged ones where it keeps them), on this
            process's first device. The same objective object at every call of one training run.
          datasets: opened datasets to evaluate on, in the order of `data.paths` during training.
        """
        ...


def run_evaluators(
    evaluators: Sequence[Evaluator], run: Run, datasets: Sequence[Dataset], folder: Path | None
) -> dict[str, float]:
    """Runs evaluators one after the other, writes their results into `folder` unless it is None.

    Returns:
      Their scalars, as `EVALUATOR/NAME`.
    """
    scalars: dict[str, float] = {}
    for evaluator in evaluators:
        result = evaluator.run(run, datasets)
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            result.write(folder)
        scalars |= {f"{evaluator.name}/{name}": float(value) for name, value in result.scalars().items()}
    return scalars
