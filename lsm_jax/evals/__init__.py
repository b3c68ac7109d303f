"""Evaluation suites by name. Their modules are imported when asked for, because scikit-learn and the like are slow.

To add a suite, derive from `suite.Suite` and add it to `SUITES`; `lsm evaluate` and the training loop then know it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lsm_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from lsm_jax.config import Config
    from lsm_jax.evals.suite import Suite

SUITES = {
    "generative": "generative.Generative",
    "openmhc": "openmhc.OpenMHC",
    "zeroshot": "zeroshot.ZeroShot",
    "fewshot": "fewshot.FewShot",
    "retrieval": "retrieval.Retrieval",
    "probe": "probe.Probe",
    "robustness": "robustness.Robustness",
    "captioning": "captioning.Captioning",
}


def make_suite(name: str, **settings: Any) -> Suite:
    """The suite of a name of `SUITES`."""
    module, _, kind = SUITES[name].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), kind)(**settings)


def evaluators(config: Config) -> list[Suite]:
    """The suites that a training run evaluates, on at most `evaluate.suite_windows` windows of the validation split.

    `zeroshot` runs without its probes, which would embed the whole training split each time.

    Raises:
      UserError: an unknown suite, or one that cannot score runs of this objective.
    """
    built = []
    for name in config.evaluate.suites:
        if name not in SUITES:
            raise UserError(f"evaluate.suites: there is no suite {name!r}.{nearest(name, SUITES)} {', '.join(SUITES)}.")
        own = {"probes": False} if name == "zeroshot" else {}
        built.append(make_suite(name, split="validation", max_windows=config.evaluate.suite_windows, **own))
        built[-1].check_objective(config.objective.name)
    return built
