"""The command `lsm`: help, refusals and exit codes of every verb."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import lsm_jax
from lsm_jax.cli import embed, evaluate, export
from lsm_jax.cli import main as command
from lsm_jax.cli.progress import progress_bar
from lsm_jax.config import key_help
from lsm_jax.errors import RunError, UserError
from lsm_jax.evals.probe import METHODS
from lsm_jax.export.folder import FORMATS
from lsm_jax.export.levels import LEVELS
from lsm_jax.objectives.pooling import POOLINGS

REPOSITORY = Path(__file__).resolve().parents[2]
VERBS = sorted(command.VERBS)


def verb_that(run, **attributes) -> types.SimpleNamespace:
    """A verb with one option, `--people`, that does what `run` does."""
    return types.SimpleNamespace(
        HELP="does it", EXAMPLE="lsm probe --people 3", run=run, **attributes,
        add_arguments=lambda parser: parser.add_argument("--people", type=int, required=True),
    )  # fmt: skip


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch):
    """Puts a verb named `probe` into the table."""

    def install(run, **attributes) -> None:
        monkeypatch.setitem(command.VERBS, "probe", "probe_module")
        monkeypatch.setitem(sys.modules, "probe_module", verb_that(run, **attributes))

    return install


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_with_an_example_that_parses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        command.main([name, "--help"])
    assert end.value.code == 0
    example = command.load_verb(name).EXAMPLE
    assert example in capsys.readouterr().out
    words = example.split()
    assert words[:2] == ["lsm", name]
    command.parse(name, words[2:])


def test_help_names_every_verb_and_starts_without_jax() -> None:
    code = (
        "import sys; from lsm_jax.cli.main import main; main(['--help']); print({'jax', 'polars'} & set(sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    *overview, loaded = finished.stdout.strip().splitlines()
    assert loaded == "set()", "verb modules import heavy libraries inside run()"
    for name in VERBS:
        assert any(line.split()[:1] == [name] for line in overview)


def test_options_that_are_written_again_for_fast_help_are_all_there_are() -> None:
    assert (*POOLINGS,) == embed.POOLINGS
    assert embed.LEVELS == LEVELS
    assert (*FORMATS,) == export.FORMATS
    assert evaluate.PROBE_METHODS == METHODS


def test_python_m_lsm_jax_is_the_same_command() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "lsm_jax", "--version"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert finished.stdout == f"lsm_jax {lsm_jax.__version__}\n"


def test_unknown_verb_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["trian"]) == 2
    assert "'train'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--poeple", "3"], "--people"),
        (["--people", "many"], "invalid int value: 'many'"),
        (["--people", "3", "stray"], "unexpected argument 'stray'"),
        (["--people", "3", "--config.seed=1"], "there is no option --config.seed"),
        (["--people", "3", "--config.sede=1"], "there is no option --config.sede"),
        ([], "required: --people"),
    ],
)
def test_bad_arguments_exit_2_and_say_why(probe, capsys: pytest.CaptureFixture[str], arguments, sentence) -> None:
    probe(lambda args: 0)
    with pytest.raises(SystemExit) as end:
        command.main(["probe", *arguments])
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["caption", "compare", "evaluate", "ingest", "synth", "zeroshot"])
def test_a_seed_below_0_is_refused_at_once(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main([verb, "--seed", "-1"])
    assert "argument --seed: -1: give 0 or more." in capsys.readouterr().err


def test_overrides_reach_a_verb_that_takes_them(probe, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[argparse.Namespace] = []
    probe(lambda args: seen.append(args) or 0, ACCEPTS_OVERRIDES=True)
    assert command.main(["probe", "--config.train.log_every=5 steps", "--people", "3", "--config.seed", "1"]) == 0
    assert seen[0].overrides == ["--config.train.log_every=5 steps", "--config.seed=1"]
    assert seen[0].people == 3
    with pytest.raises(SystemExit) as end:
        command.main(["probe", "--people", "3", "--config.train.batchsize=1"])
    assert end.value.code == 2
    assert "'--config.train.batch_size'" in capsys.readouterr().err


def test_train_help_lists_every_key_with_its_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, key in key_help().items():
        default = ",".join(map(str, key.default)) if isinstance(key.default, tuple) else str(key.default)
        assert f"--config.{name} " in text
        assert " ".join(key.meaning.split()) in text
        assert f"({default or 'empty'})" in text


def test_config_prints_the_resolved_values_and_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["config", f"{REPOSITORY / 'configs' / 'lsm2.py'}:base", "--config.train.batch_size=1024"]
    assert command.main(arguments) == 0
    values, _, differs = capsys.readouterr().out.partition("differ from the defaults:")
    assert "train.batch_size              1024  (default 32)" in differs
    assert all(name in values for name in key_help())
    assert "optimizer.epsilon" not in differs
    assert command.main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["config"]["train"]["batch_size"] == 1024
    assert printed["changed"]["train.batch_size"] == {"value": 1024, "default": 32}
    assert "optimizer.epsilon" not in printed["changed"]
    assert command.main([*arguments, "--config.optimizer.name=adam"]) == 2
    assert "Did you mean 'adamw'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("a.csv:3: no column 'HR'"), 2, "lsm probe: error: a.csv:3: no column 'HR'"),
        (RunError("the loss is not finite"), 1, "lsm probe: failed: the loss is not finite"),
        (KeyboardInterrupt(), 130, "lsm probe: interrupted"),
    ],
)
def test_errors_become_a_sentence_and_an_exit_code(
    probe, capsys: pytest.CaptureFixture[str], error, code, sentence
) -> None:
    def fail(args):
        raise error

    probe(fail)
    assert command.main(["probe", "--people", "1"]) == code
    printed = capsys.readouterr()
    assert printed.err.strip() == sentence
    assert not printed.out


def test_what_is_refused_before_it_starts_shows_no_progress(probe, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(args):
        with progress_bar("windows") as update:
            if args.people > 1:
                update(1, args.people)
            raise UserError("the suite does not score such runs.")

    probe(refuse)
    assert command.main(["probe", "--people", "1"]) == 2
    printed = capsys.readouterr()
    assert (printed.out.strip(), printed.err) == ("", "lsm probe: error: the suite does not score such runs.\n")
    assert command.main(["probe", "--people", "2"]) == 2
    assert "1/2" in capsys.readouterr().out


def test_an_unexpected_error_keeps_its_traceback(probe) -> None:
    def fail(args):
        raise ZeroDivisionError

    probe(fail)
    with pytest.raises(ZeroDivisionError):
        command.main(["probe", "--people", "1"])


def test_a_library_that_waits_at_exit_does_not_hold_up_a_verb_for_ever() -> None:
    code = (
        "import atexit, sys, time; from lsm_jax.cli import main; main.EXIT_SECONDS = 0.1; sys.argv = ['lsm', 'embed'];"
        "main.dispatch = lambda _: atexit.register(time.sleep, 1000) and 7; sys.exit(main.main())"
    )
    environment = {**os.environ, "GLIBC_TUNABLES": ""}  # no new start
    finished = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, timeout=120, check=False)
    assert finished.returncode == 7


def test_computing_starts_anew_with_huge_pages_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda *call: started.append(call))
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    command.use_huge_pages()
    [(program, arguments, environment)] = started
    assert program == sys.executable and arguments == [sys.executable, *sys.orig_argv[1:]]
    assert environment == {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    monkeypatch.setenv("GLIBC_TUNABLES", environment["GLIBC_TUNABLES"])
    command.use_huge_pages()  # what runs after the start
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.31"))
    command.use_huge_pages()  # a library that does not know the setting
    assert len(started) == 1
