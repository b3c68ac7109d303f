"""`lsm config`: prints a configuration, and the options that set its keys on the command line of other verbs."""

from __future__ import annotations

import argparse
import json
from typing import Any

HELP = "print a configuration with all its values, and what differs from the defaults"
EXAMPLE = "lsm config configs/lsm2.py:base --config.train.batch_size=1024"
ACCEPTS_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `lsm config`."""
    parser.add_argument("config", metavar="FILE[:VARIANT]", help="configuration, as of `lsm train --config`")
    parser.add_argument("--json", action="store_true", help="print JSON: the configuration and the changed keys")


def run(args: argparse.Namespace) -> int:
    """Prints every key of the configuration by section, then those that differ from the defaults."""
    from lsm_jax.config import flatten, key_help, load_config, to_json

    config = load_config(args.config, args.overrides)
    values, defaults = flatten(config), {name: key.default for name, key in key_help().items()}
    changed = [name for name in values if values[name] != defaults[name]]
    if args.json:
        changes = {name: {"value": values[name], "default": defaults[name]} for name in changed}
        print(json.dumps({"config": json.loads(to_json(config)), "changed": changes}, indent=1))
        return 0
    width = max(map(len, values))
    for name, value in values.items():
        print(f"{name:<{width}}  {value!r}")
    print(f"\n{len(changed)} of {len(values)} keys differ from the defaults:")
    for name in changed:
        print(f"{name:<{width}}  {values[name]!r}  (default {defaults[name]!r})")
    return 0


def add_key_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--config.KEY=VALUE` for every configuration key; `args.overrides` lists those given, in order."""
    from lsm_jax.config import key_help

    parser.set_defaults(overrides=[])
    groups: dict[str, Any] = {}
    for name, key in key_help().items():
        if key.section not in groups:
            groups[key.section] = parser.add_argument_group(f"configuration: {key.section}", key.section_meaning)
        default = ",".join(map(str, key.default)) if isinstance(key.default, tuple) else key.default
        groups[key.section].add_argument(
            f"--config.{name}", action=_Override, metavar=key.type_name,
            help=f"{key.meaning} ({default})".replace("%", "%%").replace("()", "(empty)"),
        )  # fmt: skip


class _Override(argparse.Action):
    def __call__(self, _parser: Any, namespace: argparse.Namespace, value: Any, option: str | None = None) -> None:
        namespace.overrides = [*namespace.overrides, f"{option}={value}"]
