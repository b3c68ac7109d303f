"""The command `lsm`: finds the verb, reads its arguments, and turns errors into sentences and exit codes.

A verb is a module of this package with

- `HELP`: what it does, in one line; `EXAMPLE`: a command that works;
- `add_arguments(parser)`: its arguments; `run(args) -> int`: does it and returns the exit code;
- optionally `ACCEPTS_OVERRIDES = True`: arguments it does not know (`--config.key=value`) reach it as `args.overrides`.

Verb modules import nothing heavy at their top, so that help and refusals come at once, without JAX.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from collections.abc import Sequence
from typing import Protocol, cast

import lsm_jax
from lsm_jax.errors import RunError, UserError, nearest

VERBS = {
    "synth": "lsm_jax.cli.synth",
    "ingest": "lsm_jax.cli.ingest",
    "inspect": "lsm_jax.cli.inspect",
    "plan": "lsm_jax.cli.plan",
    "train": "lsm_jax.cli.train",
    "evaluate": "lsm_jax.cli.evaluate",
    "embed": "lsm_jax.cli.embed",
    "caption": "lsm_jax.cli.caption",
    "zeroshot": "lsm_jax.cli.zeroshot",
    "retrieve": "lsm_jax.cli.retrieve",
    "export": "lsm_jax.cli.export",
    "report": "lsm_jax.cli.report",
    "bench": "lsm_jax.cli.bench",
}

# Verbs that run the model, and so fill and free large arrays at every step.
COMPUTING = {"train", "evaluate", "embed", "caption", "zeroshot", "retrieve", "bench"}

INTERRUPTED = 130  # 128 + SIGINT, what shells expect


class Verb(Protocol):
    """What a verb's module offers."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, args: argparse.Namespace, /) -> int: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lsm ARGUMENTS` (the process's own by default) and returns the exit code: 0, 1 failed run, 2 bad input."""
    if arguments is None:
        arguments = sys.argv[1:]
        if arguments and arguments[0] in COMPUTING:
            use_huge_pages()
    arguments = list(arguments)
    match arguments:
        case []:
            print(overview(), file=sys.stderr)
            return 2
        case ["-h" | "--help" | "help", *_]:
            print(overview())
            return 0
        case ["--version", *_]:
            print(f"lsm_jax {lsm_jax.__version__}")
            return 0
        case [verb, *rest] if verb in VERBS:
            return run_verb(verb, rest)
    unknown = arguments[0]
    print(
        f"lsm: error: there is no verb {unknown!r}.{nearest(unknown, VERBS)} `lsm --help` lists them.", file=sys.stderr
    )
    return 2


def use_huge_pages() -> None:
    """Starts this process anew with huge pages for the C library's large allocations, where it can give them.

    XLA's CPU step asks for its temporaries anew each time; with pages of 4 KiB a quarter of a step goes into page
    faults. The C library reads the setting only at its start.
    """
    library, version = platform.libc_ver()
    known = library == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
    if sys.platform == "linux" and known and "GLIBC_TUNABLES" not in os.environ:
        environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def overview() -> str:
    """What `lsm --help` prints: every verb in the order a newcomer meets them."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {load_verb(name).HELP}" for name in VERBS]
    return "\n".join(
        [
            "usage: lsm VERB [arguments]",
            "",
            lsm_jax.__doc__ or "",
            "",
            *lines,
            "",
            "`lsm VERB --help` shows a verb's arguments and an example; `lsm --version` the version.",
        ]
    )


def load_verb(name: str) -> Verb:
    """The module behind a verb of `VERBS`."""
    return cast(Verb, importlib.import_module(VERBS[name]))


def verb_parser(name: str) -> argparse.ArgumentParser:
    """The argument parser of a verb of `VERBS`."""
    verb = load_verb(name)
    parser = argparse.ArgumentParser(
        prog=f"lsm {name}",
        description=verb.HELP,
        epilog=f"example:\n  {verb.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # An abbreviation that works today breaks scripts the day a second option begins like it.
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    return parser


def parse(name: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Reads a verb's arguments; exits with code 2 and the nearest names where one is unknown."""
    parser = verb_parser(name)
    accepts_overrides = getattr(load_verb(name), "ACCEPTS_OVERRIDES", False)
    refuse_unknown_options(parser, arguments, accepts_overrides)
    args, unknown = parser.parse_known_args(arguments)
    stray = [argument for argument in unknown if not argument.startswith("--")]
    if stray:
        hint = " A configuration key is set as --config.key=value, with no space." if accepts_overrides else ""
        parser.error(f"unexpected argument {stray[0]!r}.{hint}")
    args.overrides = unknown
    return args


def refuse_unknown_options(parser: argparse.ArgumentParser, arguments: Sequence[str], accepts_overrides: bool) -> None:
    """Ahead of argparse, whose own complaint about a misspelt required option is that it is missing."""
    known = parser._option_string_actions  # argparse offers no public list of its options
    for argument in arguments:
        option = argument.partition("=")[0]
        is_override = accepts_overrides and option.startswith("--config.")
        if option.startswith("--") and option != "--" and option not in known and not is_override:
            parser.error(f"there is no option {option}.{nearest(option, known)}")


def run_verb(name: str, arguments: Sequence[str]) -> int:
    """Runs one verb. Errors that people can act on end as a sentence; anything else keeps its traceback."""
    args = parse(name, arguments)
    try:
        return load_verb(name).run(args)
    except UserError as error:
        print(f"lsm {name}: error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"lsm {name}: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lsm {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
