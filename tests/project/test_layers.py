"""Imports point down the layers of pyproject.toml; `launch/test` runs import-linter on the package itself."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LINTER = [
    sys.executable,
    "-c",
    "from importlinter.cli import lint_imports_command; lint_imports_command()",
    "--no-cache",
]


def lint(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(LINTER, capture_output=True, text=True, check=False, cwd=directory)


@pytest.mark.parametrize(("low", "high"), [("errors", "windows"), ("ingest.report", "ingest.reader")])
def test_a_layer_that_reaches_up_is_caught(tmp_path: Path, low: str, high: str) -> None:
    settings = (REPOSITORY / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(settings)
    for contract in tomllib.loads(settings)["tool"]["importlinter"]["contracts"]:
        (container,) = contract["containers"]
        package = tmp_path / container.replace(".", "/")
        package.mkdir()
        package.with_suffix(".py").unlink(missing_ok=True)
        required = [layer for layer in contract["layers"] if "(" not in layer]
        for module in ("__init__", *(name for layer in required for name in layer.split(" | "))):
            (package / f"{module}.py").touch()
    (tmp_path / "lsm_jax" / f"{low.replace('.', '/')}.py").write_text(f"import lsm_jax.{high}\n")
    finished = lint(tmp_path)
    assert finished.returncode == 1
    assert f"lsm_jax.{low} is not allowed to import lsm_jax.{high}" in finished.stdout
