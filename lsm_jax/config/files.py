"""Configuration files, command-line overrides and JSON, all resolved to a typed `Config`.

A configuration file is Python: `configs/X.py` has `get_config(variant="") -> ConfigDict`, which starts from
`defaults()`, and names its variants in `VARIANTS`. `--config.section.key=value` on the command line overrides it.
Unknown keys, values of another type and unknown choices are refused, with the nearest names.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import json
import traceback
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic
from ml_collections import ConfigDict

from lsm_jax.config.schema import Config, key_help
from lsm_jax.errors import UserError, nearest

# Keys of earlier versions, as run folders still have them, and what they are called now.
_RENAMED = {
    "language.encoder_from": "model.encoder_from",
    "language.freeze_encoder": "model.freeze_encoder",
    "train.max_nonfinite_steps": "train.max_bad_steps",
}

# Keys that run folders of earlier versions lack, with the value that these runs had. It is not today's default.
_BEFORE = {"model": {"rotary": False}}


def defaults() -> ConfigDict:
    """All defaults, for a configuration file to change. Keys cannot be added."""
    return ConfigDict(dataclasses.asdict(Config())).lock()


def load_config(location: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of `FILE.py` or `FILE.py:variant`, changed by `--config.section.key=value` arguments.

    Raises:
      UserError: no such file, variant or key, or a value of the wrong type.
    """
    path, _, variant = location.partition(":")
    module = _import(Path(path))
    variants = tuple(getattr(module, "VARIANTS", ()))
    if variant and variant not in variants:
        listed = ", ".join(variants) or "none"
        raise UserError(f"{path} has no variant {variant!r}.{nearest(variant, variants)} Its variants: {listed}.")
    try:
        config = module.get_config(variant)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{_location(error, path)}: {str(error).strip(chr(34))}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned {config!r} instead of a ConfigDict.")
    values = _nested(config)
    if missing := [name for name in flatten(Config()) if name not in flatten(values)]:
        raise UserError(f"{path}: key {missing[0]!r} is missing; start from lsm_jax.config.defaults().")
    return with_overrides(resolve(config, path), overrides)


def resolve(values: ConfigDict | Mapping[str, Any], origin: str = "configuration") -> Config:
    """The typed configuration of nested values. Missing keys take their defaults.

    Raises:
      UserError: an unknown key, or a value of another type or choice. Names `origin` and the key.
    """
    nested = _nested(values)
    for name in flatten(nested):
        _check_known(name, origin)
    try:
        # Read as JSON, pydantic takes lists for tuples and mappings for sections, and nothing else for anything.
        return _adapter().validate_json(json.dumps(nested))
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(part for part in fault["loc"] if isinstance(part, str))
        raise UserError(f"{origin}: {_refusal(name, fault['input'])}") from None


def with_changes(config: Config, changes: Mapping[str, Any], origin: str = "configuration") -> Config:
    """The configuration with changes by dotted key, `{"train.batch_size": 8}`. Raises as `resolve` does."""
    nested = _nested(dataclasses.asdict(config))
    for name, value in changes.items():
        _check_known(name, origin)
        holder, _, last = name.rpartition(".")
        (nested[holder] if holder else nested)[last] = value
    return resolve(nested, origin)


def with_overrides(config: Config, arguments: Sequence[str]) -> Config:
    """The configuration changed by command-line arguments `--config.section.key=value`."""
    for argument in arguments:
        option, equals, text = argument.partition("=")
        name = option.removeprefix("--").removeprefix("config.")
        if not equals:
            raise UserError(f"{argument}: write --config.{name}=value.")
        if name not in flatten(config):
            raise UserError(f"{option}: there is no key {name!r}.{nearest(name, flatten(config))}")
        config = with_changes(config, {name: _parse(text, name, option)}, option)
    return config


def flatten(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key: `{"train.batch_size": 32, ...}`."""
    nested = dataclasses.asdict(config) if isinstance(config, Config) else config
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": innermost for inner, innermost in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def to_json(config: Config) -> str:
    """The configuration as JSON, which `from_json` reads."""
    return json.dumps(dataclasses.asdict(config), indent=1) + "\n"


def from_json(text: str, origin: str) -> Config:
    """Reads what `to_json` wrote. Missing keys take the values that they had before they were keys.

    Raises:
      UserError: damaged, or with unknown keys. Names `origin`.
    """
    try:
        nested = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin}: not a configuration ({error}).") from None
    if not isinstance(nested, dict):
        raise UserError(f"{origin}: not a configuration, but a JSON {type(nested).__name__}.")
    nested = _with_present_names(nested)
    for section, values in _BEFORE.items():
        if isinstance(nested.get(section, {}), dict):
            nested[section] = values | nested.get(section, {})
    return resolve(nested, origin)


@functools.cache
def _adapter() -> pydantic.TypeAdapter[Config]:
    return pydantic.TypeAdapter(Config)


def _nested(values: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    plain = values.to_dict() if isinstance(values, ConfigDict) else values
    return {name: dict(part) if isinstance(part, Mapping) else part for name, part in plain.items()}


def _with_present_names(nested: dict[str, Any]) -> dict[str, Any]:
    """Nested values of an earlier version, with the names that their keys have now."""
    for before, now in _RENAMED.items():
        (old, old_key), (new, new_key) = before.split("."), now.split(".")
        if isinstance(nested.get(old), dict) and old_key in nested[old]:
            nested.setdefault(new, {})[new_key] = nested[old].pop(old_key)
    return nested


def _check_known(name: str, origin: str) -> None:
    if name not in key_help():
        raise UserError(f"{origin}: unknown key {name!r}.{nearest(name, key_help())}")


def _refusal(name: str, value: Any) -> str:
    key = key_help().get(name)
    if key is None:  # the name of a section
        return f"{name} needs keys and values, got {value!r}."
    choices = typing.get_args(key.kind) if typing.get_origin(key.kind) is typing.Literal else ()
    expected = {"list": "a list such as a,b,c", "integer": "a whole number", "number": "a number"}.get(key.type_name)
    expected = f"one of {', '.join(choices)}" if choices else expected or key.type_name
    return f"{name} needs {expected}, got {value!r}.{nearest(str(value), choices)} Its default is {key.default!r}."


def _parse(text: str, name: str, option: str) -> Any:
    """The value written as `text`: a list is a Python literal, `('a', 'b')`, or plain `a,b`."""
    kind = key_help()[name].kind
    try:
        if typing.get_origin(kind) is not tuple:
            return pydantic.TypeAdapter(kind, config=pydantic.ConfigDict(allow_inf_nan=False)).validate_strings(text)
        element = typing.get_args(kind)[0]
        if text.lstrip()[:1] in {"(", "["}:
            literal = ast.literal_eval(text)
            return literal if isinstance(literal, list | tuple) else (literal,)
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return [pydantic.TypeAdapter(element).validate_strings(part) for part in parts]
    except (pydantic.ValidationError, ValueError, SyntaxError, RecursionError, MemoryError):
        raise UserError(f"{option}: {_refusal(name, text)}") from None


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        others = [str(other) for other in sorted(path.parent.glob("*.py"))] if path.parent.is_dir() else []
        raise UserError(f"there is no configuration file {path}.{nearest(str(path), others)}")
    specification = importlib.util.spec_from_file_location(f"lsm_config_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise UserError(f"{path} is not a Python file; a configuration file is FILE.py or FILE.py:variant.")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise UserError(f"{_location(error, str(path))}: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f'{path} has no function get_config(variant="").')
    return module


def _location(error: Exception, path: str) -> str:
    """`file:line` where the configuration file raised the error."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
    return f"{path}:{lines[-1]}" if lines else path
