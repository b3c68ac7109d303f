"""The Python blocks of a tutorial run in order, and print what the page says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import CHANNELS, save_run, tiny_config

from lsm_jax import objectives
from lsm_jax.config import with_changes
from lsm_jax.data.spec import DataSpec
from lsm_jax.train.run import Run

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
BLOCK = re.compile(r"^```python\n(.*?)^```(?:\n+```text\n(.*?)^```)?", re.MULTILINE | re.DOTALL)


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that has an untrained run of size `tiny` on days as `runs/open`."""
    spec = DataSpec(CHANNELS, np.array([70, 12, 33], np.float32), np.full(3, 10, np.float32), 1440, np.full(3, 0.5))
    config = with_changes(tiny_config("data"), {"data.window_minutes": spec.window_minutes})
    objective = objectives.build(config, spec)
    run = Run(config, spec, objective, jax.jit(objective.init)(jax.random.key(0)), 7)
    folder = tmp_path / "runs" / "open"
    folder.mkdir(parents=True)
    save_run(run, folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.usefixtures("run_folder")
@pytest.mark.parametrize("page", ["embed-in-a-notebook.md"])
def test_the_code_of_a_tutorial_prints_what_the_page_says(page: str) -> None:
    names: dict[str, object] = {}
    blocks = BLOCK.findall((TUTORIALS / page).read_text(encoding="utf-8"))
    assert blocks
    for code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
        assert printed.getvalue() == expected
