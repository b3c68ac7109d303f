"""Options that only some modes of a verb read. They are None where they are not given, and refused in other modes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lsm_jax.errors import UserError


def flag(name: str) -> str:
    """The option of a name of the parsed arguments."""
    return f"--{name.replace('_', '-')}"


def whole_number(text: str) -> int:
    """Argument type: 0 or more, such as a seed."""
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{number}: give 0 or more.")
    return number


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """The values of those of these options that are given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def check_mode(args: argparse.Namespace, readers: Mapping[str, Sequence[str]], mode: str, command: str) -> None:
    """UserError for a given option that the chosen mode does not read.

    Args:
      readers: by option the modes that read it.
      command: what stands before the mode on the command line.
    """
    for name in given(args, readers):
        if mode not in readers[name]:
            raise UserError(f"{flag(name)} is for `{command} {' or '.join(readers[name])}`, not {mode}.")


def check_needed(args: argparse.Namespace, needed: str, names: Iterable[str]) -> None:
    """UserError for a given option that has no effect without the option `needed`."""
    for name in given(args, names):
        if not getattr(args, needed):
            raise UserError(f"{flag(name)} has no effect without {flag(needed)}: add that, or leave it out.")
