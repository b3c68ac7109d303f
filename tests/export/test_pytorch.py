"""The PyTorch reader of docs/tutorials/pytorch.md, as it stands on the page."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import perturbed, tiny_dataset, tiny_run

from lsm_jax.export.check import check_windows
from lsm_jax.export.folder import export_run

torch = pytest.importorskip("torch")
PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "pytorch.md"


def test_the_reader_gives_the_runs_tokens_and_days(tmp_path):
    run = perturbed(tiny_run(tiny_dataset(tmp_path / "data").path))
    export_run(run, tmp_path, tmp_path / "export", "safetensors", lambda card: "card")
    page: dict = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0], page)
    encoder, windows = page["Encoder"](tmp_path / "export").eval(), check_windows(run)
    assert encoder.channels == [*run.spec.channels]
    ours = np.asarray(run.objective.embed(run.params, jax.tree.map(np.asarray, windows.batch)))
    for values, expected in zip(windows.values[:-1], ours, strict=False):
        with torch.no_grad():
            tokens, _, _ = encoder(torch.tensor(values))
        np.testing.assert_allclose(tokens.mean(dim=0).numpy(), expected, atol=1e-5)
