"""The command `lsm`: finds the verb, reads its arguments, and turns errors into sentences and exit codes.

A verb is a module of this package with

- `HELP`: what it does, in one line; `EXAMPLE`: a command that works;
- `add_arguments(parser)`: its arguments; `run(args) -> int`: does it and returns the exit code;
- optionally `ACCEPTS_OVERRIDES = True`: it also takes `--config.KEY=VALUE`, collected in `args.overrides`.

Verb modules import nothing heavy at their top, so that help and refusals appear at once, without JAX.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import os
import platform
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import lsm_jax
from lsm_jax.cli.config import add_key_arguments
from lsm_jax.cli.places import local_copies
from lsm_jax.errors import RunError, UserError, nearest

VERBS = {
    "synth": "lsm_jax.cli.synth",
    "ingest": "lsm_jax.cli.ingest",
    "inspect": "lsm_jax.cli.inspect",
    "config": "lsm_jax.cli.config",
    "plan": "lsm_jax.cli.plan",
    "train": "lsm_jax.cli.train",
    "evaluate": "lsm_jax.cli.evaluate",
    "compare": "lsm_jax.cli.compare",
    "scaling": "lsm_jax.cli.scaling",
    "embed": "lsm_jax.cli.embed",
    "caption": "lsm_jax.cli.caption",
    "zeroshot": "lsm_jax.cli.zeroshot",
    "retrieve": "lsm_jax.cli.retrieve",
    "export": "lsm_jax.cli.export",
    "report": "lsm_jax.cli.report",
    "bench": "lsm_jax.cli.bench",
}

# Verbs that run a model: they allocate and free large arrays at every step.
MODEL_VERBS = {"train", "evaluate", "embed", "caption", "zeroshot", "retrieve", "report", "bench"}

EXIT_SECONDS = 10.0  # that libraries may take to end, after all work of a verb

INTERRUPTED = 130  # the shells' convention: 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE: whoever read standard output has stopped


class Verb(Protocol):
    """What a verb's module offers."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, args: argparse.Namespace, /) -> int: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `lsm ARGUMENTS` (the process's own by default) and returns the exit code: 0, 1 failed run, 2 bad input."""
    codes: list[int] = []
    exits = False
    if arguments is None:
        arguments = sys.argv[1:]
        exits = bool(arguments) and arguments[0] in MODEL_VERBS
        if exits:
            use_huge_pages()
            atexit.register(leave, codes)  # registered first, it runs last, after what libraries do at exit
    try:
        code = dispatch(list(arguments))
    except BrokenPipeError:  # of standard output: `lsm config ... | head`
        code = BROKEN_PIPE
    except SystemExit:  # of argparse
        close_output()
        raise
    codes.append(code if close_output() else code or BROKEN_PIPE)
    if exits and not has_other_processes():
        # A tracker without a network would wait for it, and a scheduler would kill the process with another exit code.
        timer = threading.Timer(EXIT_SECONDS, leave, [codes])
        timer.daemon = True
        timer.start()
    return codes[0]


def leave(codes: Sequence[int]) -> None:
    """Ends this process with its exit code, if there is one: freeing all of JAX's objects would take a second."""
    if codes:
        close_output()
        os._exit(codes[0])


def has_other_processes() -> bool:
    """Whether this process trains with others, for which JAX waits at exit."""
    if "jax" not in sys.modules:
        return False
    from lsm_jax.train.processes import process_of

    return process_of()[1] > 1


def dispatch(arguments: list[str]) -> int:
    """Runs the verb that the arguments name, or shows what there is."""
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
    """Restarts this process with huge pages for the C library's large allocations, if glibc supports them.

    XLA allocates the temporaries of a CPU step at every call. With pages of 4 KiB a quarter of the step is page faults.
    glibc reads the setting only when a process starts.
    """
    library, version = platform.libc_ver()
    supported = library == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)
    if sys.platform == "linux" and supported and "GLIBC_TUNABLES" not in os.environ:
        environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def overview() -> str:
    """The text of `lsm --help`: every verb, in the order in which a newcomer needs them."""
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
    """The module of a verb."""
    return cast(Verb, importlib.import_module(VERBS[name]))


def verb_parser(name: str) -> argparse.ArgumentParser:
    """The argument parser of a verb."""
    verb = load_verb(name)
    overridable = getattr(verb, "ACCEPTS_OVERRIDES", False)
    parser = argparse.ArgumentParser(
        prog=f"lsm {name}",
        # argparse would list every configuration key here.
        usage=f"lsm {name} ARGUMENTS [--config.KEY=VALUE ...]" if overridable else None,
        description=verb.HELP,
        epilog=f"example:\n  {verb.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # An abbreviated option stops working when a second option begins with the same letters.
        allow_abbrev=False,
    )
    verb.add_arguments(parser)
    if overridable:
        add_key_arguments(parser)
    return parser


def parse(name: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Reads a verb's arguments; exits with code 2 and the nearest names if one is unknown."""
    parser = verb_parser(name)
    options = parser._option_string_actions  # argparse has no public list of its options
    for argument in arguments:
        # Before argparse, which would report a misspelt required option as missing.
        option = argument.partition("=")[0]
        if option.startswith("--") and option not in {"--", *options}:
            parser.error(f"there is no option {option}.{nearest(option, options)}")
    args, stray = parser.parse_known_args(arguments)
    if stray:
        parser.error(f"unexpected argument {stray[0]!r}.")
    return args


def run_verb(name: str, arguments: Sequence[str]) -> int:
    """Runs a verb. Errors that users can correct become a sentence; all others keep their traceback."""
    args = parse(name, arguments)

    def run() -> int:
        with local_copies(args) as local:
            return load_verb(name).run(local)

    return reported(name, run)


def reported(name: str, action: Callable[[], int | None]) -> int:
    """Runs an action; its exit code, or that of an error that is said on standard error."""
    try:
        return action() or 0
    except UserError as error:
        say(f"lsm {name}: error: {error}")
        return 2
    except RunError as error:
        say(f"lsm {name}: failed: {error}")
        return 1
    except KeyboardInterrupt:
        say(f"lsm {name}: interrupted")
        return INTERRUPTED


def say(text: str) -> None:
    """Prints to standard error, where somebody still reads it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def close_output() -> bool:
    """Writes out what is left of standard output and error; False if nobody reads standard output any more.

    A stream whose reader is gone is turned to nowhere: the interpreter would fail when it closes it.
    """
    lasts = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            lasts = lasts and stream is not sys.stdout
            from lsm_jax.train.terminal import to_nowhere

            to_nowhere(stream)
    return lasts
