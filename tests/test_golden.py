"""Short runs of LSM-2 and SensorLM, and captions, against what they gave when `golden.json` was recorded.

A refactoring must not change what is learnt. Counts and captions must be equal; losses may differ by what another CPU's
instructions round differently. After a change that is meant: `python tests/test_golden.py` records again.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from language_run import language_dataset, logged_windows
from tiny_run import MINUTES, tiny_dataset

from lsm_jax.captions.caption import Captioner
from lsm_jax.captions.tokenizer import Tokenizer
from lsm_jax.config import Config, with_changes
from lsm_jax.train.loop import train
from lsm_jax.train.metrics import read_metrics

GOLDEN = Path(__file__).with_name("golden.json")
LEVELS = ("semantic", "structural", "statistical")
# Speed and time are the machine's.
UNSTEADY = {"time", "windows_per_second", "mfu", "input_wait", "goodput"}


def short_run(folder: Path, data: Path, **changes: object) -> list[dict[str, float]]:
    """The metrics of six steps on this dataset."""
    config = with_changes(
        Config(),
        {
            "data.paths": (str(data),), "data.window_minutes": MINUTES, "train.batch_size": 8,
            "train.duration": "6 steps", "train.log_every": "1 steps", "train.ema_decay": 0.9, "train.peak_flops": 1e9,
            "checkpoint.every": "3 steps", "evaluate.every": "3 steps", "evaluate.batches": 1, **changes,
        },
    )  # fmt: skip
    train(config, folder)
    return [{name: value for name, value in record.items() if name not in UNSTEADY} for record in read_metrics(folder)]


def lsm2(folder: Path) -> list[dict[str, float]]:
    """LSM-2 with two windows to a row, micro-batches and half of the hidden tokens decoded."""
    tiny_dataset(folder / "data")
    changes = {"rows.windows_per_row": 2, "rows.decoded_share": 0.5, "train.grad_accum_steps": 2}
    return short_run(folder / "lsm2", folder / "data", **changes)


def sensorlm(folder: Path) -> list[dict[str, float]]:
    """CoCa on semantic captions, stretches of days among them."""
    language_dataset(folder / "data")
    texts = [Captioner(("semantic",))(window).text for window in logged_windows()]
    Tokenizer.train(texts, 400).save(folder / "tokenizer.json")
    changes = {
        "objective.name": "coca", "language.levels": "semantic", "language.tokenizer": str(folder / "tokenizer.json"),
        "language.vocab_size": 400, "language.text_length": 64, "language.caption_queries": 0,
        "language.event_crop_prob": 0.5, "tokens.patch_channels": 3, "optimizer.name": "muon",
    }  # fmt: skip
    return short_run(folder / "sensorlm", folder / "data", **changes)


def captions(_: Path) -> list[str]:
    """Captions of a few days at all levels, in two wordings."""
    caption = Captioner(LEVELS)
    return [caption(window, epoch).text for window in list(logged_windows(people=3))[::2] for epoch in (0, 1)]


RECORDED = {"lsm2": lsm2, "sensorlm": sensorlm, "captions": captions}


@pytest.mark.parametrize("name", ["lsm2", "sensorlm"])
def test_a_short_run_is_as_recorded(name: str, tmp_path: Path) -> None:
    records, golden = RECORDED[name](tmp_path), json.loads(GOLDEN.read_text())[name]
    assert [sorted(record) for record in records] == [sorted(record) for record in golden]
    for record, expected in zip(records, golden, strict=True):
        for metric, value in expected.items():
            np.testing.assert_allclose(record[metric], value, rtol=2e-4, err_msg=f"{metric} at {expected['step']}")


def test_captions_are_as_recorded(tmp_path: Path) -> None:
    assert captions(tmp_path) == json.loads(GOLDEN.read_text())["captions"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        recorded = {name: make(Path(folder, name)) for name, make in RECORDED.items()}
    GOLDEN.write_text(json.dumps(recorded, indent=0, ensure_ascii=False) + "\n")
