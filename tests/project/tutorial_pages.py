"""Runs the commands and the code of a page of the documents, in their order, and compares what they print.

- A `bash` block runs line by line. `lsm` runs in this process, which saves it the seconds of its imports; all else runs
  in bash. A line that ends with `# not tested: REASON` is left out.
- `python` blocks of a page share their names.
- A `text` block directly after a block is what it prints, seconds and the folder apart. `...` stands for anything.
- A table of the page headed `| on this page | in the test |` gives texts that are replaced before anything runs: pages
  show what is useful, and the test does less of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import doctest
import io
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsm_jax.cli import main as command

BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>bash|python)\n(?P<code>.*?)^(?P=indent)```\n"
    r"(?:\n*(?P=indent)```text\n(?P<expected>.*?)^(?P=indent)```)?",
    re.MULTILINE | re.DOTALL,
)
CHANGE = re.compile(r"^\| `([^`|]+)` \| `([^`|]+)` \|$", re.MULTILINE)
CHANGES_HEADING = "| on this page | in the test |"
NOT_TESTED = "# not tested: "
PROGRESS_BAR = re.compile(r"^.*: .* ━+ .*\n", re.MULTILINE)
SECONDS = re.compile(r"\b\d[\d,.]* (s|a second)\b")


@dataclasses.dataclass(frozen=True)
class Block:
    """Code of a page, from this line on, and what it prints, if the page says so."""

    line: int
    language: str
    code: str
    expected: str | None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, its changes made.

    Raises:
      AssertionError: a change of the page changes nothing.
    """
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            text.count("\n", 0, match.start()) + 1,
            match["language"],
            textwrap.dedent(match["code"]),
            match["expected"] and textwrap.dedent(match["expected"]),
        )
        for match in BLOCK.finditer(text)
    ]
    for shown, tested in CHANGE.findall(text.partition(CHANGES_HEADING)[2]):
        assert any(shown in block.code for block in found), f"{page.name}: no block has {shown!r}, which a test changes"
        found = [dataclasses.replace(block, code=block.code.replace(shown, tested)) for block in found]
    return found


def run_page(page: Path) -> None:
    """Runs the blocks of a page in the working directory.

    Raises:
      AssertionError: a command ended with another exit code than 0, or printed something else than the page says.
    """
    names: dict[str, Any] = {}
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if block.language == "python":
                exec(compile(block.code, where, "exec"), names)
            else:
                for line in shell_lines(block.code):
                    run_line(line, where)
        if block.expected is not None:
            assert_alike(block.expected, printed.getvalue(), where)


def shell_lines(code: str) -> Iterator[str]:
    """The commands of a block: continued lines joined, without comments, and without those that are not tested."""
    for line in code.replace("\\\n", " ").splitlines():
        if NOT_TESTED not in line and shlex.split(line, comments=True):
            yield line


def run_line(line: str, where: str) -> None:
    """Runs a command, and prints what it prints."""
    words = shlex.split(line, comments=True)
    if words[0] == "lsm":
        problems = io.StringIO()
        with contextlib.redirect_stderr(problems):
            code = command.main(words[1:])
        assert code == 0, f"{where}: {line} ended with exit code {code}\n{problems.getvalue()[-3000:]}"
        return
    finished = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    print(finished.stdout, end="")
    assert finished.returncode == 0, f"{where}: {line} ended with {finished.returncode}\n{finished.stderr[-3000:]}"


def assert_alike(expected: str, printed: str, where: str) -> None:
    """Compares what a page says with what was printed; how long things took and spaces do not count."""
    printed = PROGRESS_BAR.sub("", printed).replace(f"{Path.cwd()}/", "")
    want, got = (SECONDS.sub(r"N \1", text) for text in (expected, printed))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(want, got, flags), f"{where}: the page says\n{want}\nprinted was\n{got}"
