"""Metrics and evaluations as a run leaves them, for tests of pages."""

import base64
import json

import numpy as np

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TASK = {"task": "random_imputation", "setting": "80%", "channel": "all"}
CONFIG = {"objective": {"name": "masked_reconstruction"}, "model": {"size": "tiny"}, "train": {"batch_size": 32}}


def evaluation(errors, cells=100):
    """The generative suite of people with these mean squared errors."""
    errors = np.asarray(errors, np.float64)
    model = TASK | {"method": "model", "mse": errors.mean(), "ci95": None, "people": len(errors)}
    return {
        "suite": "generative",
        "results": [model, TASK | {"method": "linear", "mse": 0.1, "ci95": None, "people": len(errors)}],
        "provenance": {"step": 10, "minutes": 2.5, "config": CONFIG, "split": "test", "seed": 0, "max_windows": None},
        "by_person": [
            {"dataset": "a", "participant": f"p{number}", "scores": {"random_imputation 80%": [error * cells, cells]}}
            for number, error in enumerate(errors)
        ],
    }


def write(folder, **suites):
    (folder / "eval").mkdir(parents=True)
    for suite, content in suites.items():
        (folder / "eval" / f"{suite}.json").write_text(json.dumps(content))
    return str(folder)


def evaluated(workdir, dataset_name="tiny", improvement=0.42):
    compared = {
        "task": "random_imputation", "setting": "80%", "channel": "all", "baseline": "linear",
        "model_mse": 1 - improvement, "baseline_mse": 1.0, "improvement": improvement,
        "ci95": [improvement - 0.1, improvement + 0.1], "windows": 40, "people": 9,
    }  # fmt: skip
    scored = {"task": "random_imputation", "setting": "80%", "mae": 0.4, "mae_natural": 3.25, "unit": "bpm"}
    results = [
        scored | {"channel": channel, "method": method, "mse": mse}
        for channel in ("heart_rate", "all")
        for method, mse in zip(
            ("model", "model_swapped_encoder", "context_only", "linear"), (1 - improvement, 1.0, 1.1, 1.0), strict=True
        )
    ]
    content = {
        "results": results,
        "comparisons": [compared, compared | {"channel": "heart_rate"}],
        "encoder": [compared | {"baseline": "model_swapped_encoder"}],
        "by_dataset": [compared | {"dataset": dataset_name}],
        "provenance": {"split": "test", "step": 20, "datasets": {dataset_name: {"windows": 40, "people": 9}}},
    }
    (workdir / "eval" / "figures").mkdir(parents=True, exist_ok=True)
    (workdir / "eval" / "generative.json").write_text(json.dumps(content))
    (workdir / "eval" / "figures" / "reconstruction-tiny.png").write_bytes(PIXEL)


def trained(workdir):
    seconds = {"compile": 3.0, "step": 80.0, "input": 5.0, "other": 2.0}
    lines = [
        {"step": step, "loss": 1 / (1 + step), "windows_per_second": 90.0, "time": seconds} for step in range(1, 21)
    ]
    lines += [{"step": step, "validation_loss": 0.5 - step / 100} for step in (0, 10, 20)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 21, "lo'
    (workdir / "metrics.jsonl").write_text(text)
