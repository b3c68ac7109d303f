"""What the documents promise: their commands parse, their files exist, and they name no machine but the reader's."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lsm_jax.cli import main as command

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")])
SHELL_BLOCK = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MACHINE = re.compile(r"(?:^|[\s`\"'(=])(/(?:work|opt|root|home|tmp|Users|mnt)/\S*)|pypi\.org|pythonhosted|localhost")


def shell_lines(document: Path) -> Iterator[str]:
    """Commands of a document's shell blocks, continued lines joined, prompts and comments off."""
    for block in SHELL_BLOCK.findall(document.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield shlex.join(words)


def commands(program: str) -> list[tuple[str, list[str]]]:
    """(document, arguments) of every use of `program`, also behind a launcher such as `srun` or `VARIABLE=1`."""
    found = []
    for document in DOCUMENTS:
        for line in shell_lines(document):
            words = shlex.split(line)
            if program in words:
                found.append((document.name, words[words.index(program) + 1 :]))
    return found


@pytest.mark.parametrize(
    "arguments", [pytest.param(words, id=f"{name}: {' '.join(words)}") for name, words in commands("lsm")]
)
def test_every_lsm_command_in_the_documents_parses(arguments: list[str]) -> None:
    if arguments in (["--help"], ["--version"]):
        return
    assert arguments[0] in command.VERBS
    if "--help" not in arguments:
        command.parse(arguments[0], arguments[1:])


def test_the_readme_shows_every_verb() -> None:
    assert set(command.VERBS) <= {words[0] for _, words in commands("lsm") if words}


def test_scripts_and_configs_named_in_the_documents_exist() -> None:
    named = {
        path
        for document in DOCUMENTS
        for path in re.findall(r"\b((?:configs|launch|docs)/[\w./-]*\w)", document.read_text(encoding="utf-8"))
    } - {"configs/X.py"}
    assert "launch/quickstart" in named
    assert [path for path in sorted(named) if not (REPOSITORY / path).exists()] == []


def test_extras_in_the_documents_are_those_of_the_package() -> None:
    known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    images = [word for _, words in commands("docker") for word in words if word.startswith("EXTRAS=")]
    installs = [words[0] for _, words in commands("launch/install") if words]
    assert images and installs
    named = {extra for word in images + installs for extra in word.removeprefix("EXTRAS=").split(",")}
    assert named <= {*known["optional-dependencies"]}


def test_documents_named_in_the_code_exist() -> None:
    files = [
        path for folder in ("lsm_jax", "configs", "launch", "tests") for path in (REPOSITORY / folder).rglob("*.*")
    ]
    texts = [
        path.read_text(encoding="utf-8", errors="ignore") for path in files if path.suffix in {".py", ".toml", ".html"}
    ]
    named = {name for text in texts for name in re.findall(r"\bdocs/[\w/-]+\.md", text)}
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_no_machine(document: Path) -> None:
    lines = document.read_text(encoding="utf-8").splitlines()
    found = [f"{document.name}:{number}: {line}" for number, line in enumerate(lines, 1) if MACHINE.search(line)]
    assert found == []


def test_the_index_links_to_every_document() -> None:
    folder = REPOSITORY / "docs"
    linked = set(re.findall(r"\]\(([\w/-]+\.md)\)", (folder / "index.md").read_text(encoding="utf-8")))
    assert linked == {str(path.relative_to(folder)) for path in folder.rglob("*.md")} - {"index.md"}
