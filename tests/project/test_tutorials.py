"""Every tutorial works: its commands and code run in order, in the folder that the pages before it left.

So does the code of the how-to guides about adding something.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from made_exports import write_exports
from tutorial_pages import blocks, run_page

from lsm_jax.nn.attention import IMPLEMENTATIONS
from lsm_jax.train.metrics import read_metrics

REPOSITORY = Path(__file__).resolve().parents[2]
TUTORIALS = REPOSITORY / "docs" / "tutorials"
ADDITIONS = sorted((REPOSITORY / "docs" / "how-to").glob("add-*.md"))
# The page before which others must run, because they make what it uses.
AFTER = {
    "first-run": (),
    "your-own-day": ("first-run",),
    "your-own-recordings": (),
    "embed-in-a-notebook": ("your-own-recordings",),
    "words-for-days": ("your-own-day",),
    "pytorch": ("your-own-recordings",),
}


def checkout(folder: Path) -> None:
    """Makes the folder look like a checkout in which the package is installed, with exports to read."""
    (folder / "launch").mkdir()
    shutil.copy(REPOSITORY / "launch" / "quickstart", folder / "launch")
    install = folder / "launch" / "install"
    install.write_text("#!/usr/bin/env bash\n")  # the package that is being tested is installed already
    install.chmod(0o755)
    (folder / ".venv").symlink_to(sys.prefix)
    for name in ("configs", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    write_exports(folder / "exports")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs a tutorial after those that it needs, each once, and gives the folder in which they all run."""
    folder = tmp_path_factory.mktemp("tutorials")
    checkout(folder)
    ended: dict[str, Exception | None] = {}

    def run(name: str) -> Path:
        for earlier in AFTER[name]:
            run(earlier)
        if name not in ended:
            ended[name] = None
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                patch.setenv("COLUMNS", "120")
                try:
                    run_page(TUTORIALS / f"{name}.md")
                except Exception as error:
                    ended[name] = error
        if (error := ended[name]) is not None:
            raise error
        return folder

    return run


@pytest.mark.parametrize("name", AFTER)
def test_a_tutorial_works(name: str, finished: Callable[[str], Path]) -> None:
    if name == "pytorch" and not importlib.util.find_spec("torch"):
        pytest.skip("PyTorch is not installed")
    finished(name)


def test_the_quickstart_leaves_what_the_first_run_says(finished: Callable[[str], Path]) -> None:
    run = finished("first-run") / "runs" / "quickstart"
    assert json.loads((run / "cohort" / "data_card.json").read_text())["people"] == 12
    assert [record["step"] for record in read_metrics(run) if "loss" in record] == [2, 4, 6]
    assert "| random_imputation" in (run / "eval" / "generative.md").read_text()
    assert len(pl.read_parquet(run / "embeddings.parquet")) > 0
    report = (run / "report.html").read_text()
    assert "<html" in report and "random imputation" in report


def test_ones_own_days_are_drawn_and_described(finished: Callable[[str], Path]) -> None:
    page = (finished("your-own-day") / "data" / "me" / "data_card.html").read_text()
    assert page.count('<figure class="day">') == 6 and "tennis, from 11:01 to 12:20" in page


@pytest.mark.parametrize("page", ADDITIONS, ids=lambda page: page.stem)
def test_what_a_guide_adds_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = {*IMPLEMENTATIONS}
    run_page(page)
    for name in {*IMPLEMENTATIONS} - before:
        del IMPLEMENTATIONS[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("language", "line", "fault"),
    [
        ("python", "print(1)", "the page says"),
        ("python", "1 / 0", "division by zero"),
        ("bash", "echo 2; false", "ended with 1"),
        ("bash", "false | echo 2", "ended with 1"),
        ("bash", "lsm inspect nowhere", "ended with exit code 2"),
    ],
)
def test_a_page_that_is_wrong_fails(language: str, line: str, fault: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```{language}\n{line}\n```\n\n```text\n2\n```\n")
    with pytest.raises(Exception, match=fault):
        run_page(page)


def test_every_tutorial_is_tested() -> None:
    assert {path.stem for path in TUTORIALS.glob("*.md")} == AFTER.keys()
    assert all(blocks(path) for path in TUTORIALS.glob("*.md"))
