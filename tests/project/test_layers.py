"""Imports point down the layers of pyproject.toml; `launch/test` runs import-linter on the package itself."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LINTER = [
    sys.executable,
    "-c",
    "from importlinter.cli import lint_imports_command; lint_imports_command()",
    "--no-cache",
]


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(LINTER, capture_output=True, text=True, check=False, cwd=directory)


def test_a_layer_that_reaches_up_is_caught(tmp_path: Path) -> None:
    package = tmp_path / "lsm_jax"
    package.mkdir()
    settings = (REPOSITORY / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(settings)
    (contract,) = tomllib.loads(settings)["tool"]["importlinter"]["contracts"]
    required = [layer for layer in contract["layers"] if "(" not in layer]
    for module in ("__init__", *required):
        (package / f"{module}.py").touch()
    (package / "errors.py").write_text("import lsm_jax.windows\n")
    finished = lint(tmp_path)
    assert finished.returncode == 1
    assert "lsm_jax.errors is not allowed to import lsm_jax.windows" in finished.stdout
