"""Configurations: every key with its default, and how files and the command line change them.

A configuration file is Python: `configs/X.py` has `get_config(variant="") -> ConfigDict`, which starts from
`defaults()`, and names its variants in `VARIANTS`. On the command line `--config.section.key=value` has the last word.
Nothing is taken on trust: an unknown key, variant or a value of another type is refused with the names that exist.

Durations are text: "20000 steps", "10 epochs", "500000 examples", or "5 percent" of the whole run.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from lsm_jax.errors import UserError, nearest
from lsm_jax.objectives.defaults import learning_defaults


def defaults() -> ConfigDict:
    """Every key there is. A configuration file changes values, never keys."""
    return ConfigDict(
        {
            "seed": 0,  # of parameters, masks and data order
            "data": {
                "paths": (),  # dataset folders
                "weights": (),  # of each dataset in the mixture; empty: by its number of windows
                "channels": (),  # canonical names; empty: all that the datasets have
                "window_minutes": 1440,
                "workers": 0,  # processes that read ahead; 0: threads of this one
                "threads": 2,  # of each process that reads
                "prefetch": 4,  # batches read ahead
            },
            **learning_defaults(),
            "optimizer": {
                "name": "adamw",  # or muon (matrices of blocks by Muon, the rest by AdamW)
                "learning_rate": 1e-3,  # at its peak
                "schedule": "cosine",  # constant, cosine, linear, rsqrt
                "warmup": "5 percent",  # from zero, linear
                "cooldown": "0 steps",  # to zero at the end, linear; for constant and rsqrt
                "final": 0.0,  # share of the peak where cosine and linear end
                "timescale": "10000 steps",  # of rsqrt
                "weight_decay": 0.05,  # of kernels; never of biases, norms, tables
                "betas": (0.9, 0.95),
                "epsilon": 1e-8,
                "clip": 1.0,  # global norm of the gradient; 0: off
            },
            "train": {
                "batch_size": 32,  # windows of the global batch
                "duration": "10 epochs",
                "accumulate": 1,  # micro-batches a step's gradient is gathered from
                "ema": 0.0,  # decay of the averaged parameters, which evaluation then uses; 0: off
                "most_skipped": 20,  # steps in a row with a gradient that is not finite, before the run fails
                "log_every": "50 steps",
                "profile": (),  # (first, last) step to trace for TensorBoard
                "peak_flops": 0.0,  # of one device, for MFU; 0: from a table, or measured
            },
            "checkpoint": {
                "every": "10 percent",
                "keep": 2,  # verified ones, at least 2
            },
            # Devices along each axis; one of data, fsdp, tensor may be -1: the rest. `slices` are joined by network.
            "mesh": {"slices": 1, "data": -1, "fsdp": 1, "tensor": 1},
            "evaluate": {
                "every": "5 percent",  # "0 steps": never
                "batches": 16,  # of the validation split, at most
            },
        }
    ).lock()


# Tuples that are empty by default say nothing of their elements' type.
_ELEMENTS: Mapping[str, type] = {"data.paths": str, "data.weights": float, "data.channels": str, "train.profile": int}


def load_config(location: str, overrides: Sequence[str] = ()) -> ConfigDict:
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
        raise UserError(f"{_place(error, path)}: {str(error).strip(chr(34))}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned {config!r} instead of a ConfigDict.")
    _check_keys(flatten(config), path)
    for override in overrides:
        _override(config, override)
    return config


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Values by dotted key: `{"train.batch_size": 32, ...}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= {f"{key}.{inner}": innermost for inner, innermost in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON, for people and for `from_json`."""
    return json.dumps(config.to_dict(), indent=1) + "\n"


def from_json(text: str, origin: str) -> ConfigDict:
    """Reads what `to_json` wrote; keys that did not exist then have their defaults.

    Raises:
      UserError: damaged, or of another version; `origin` is named.
    """
    config = defaults()
    try:
        flat = flatten(ConfigDict(json.loads(text)))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{origin}: not a configuration ({error}).") from None
    known = flatten(config)
    for key, value in flat.items():
        if key not in known:
            raise UserError(f"{origin}: unknown key {key!r}.{nearest(key, known)}")
        _assign(config, key, _tuples(value), origin)
    return config


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
        raise UserError(f"{_place(error, str(path))}: {error}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f'{path} has no function get_config(variant="").')
    return module


def _place(error: Exception, path: str) -> str:
    """`file:line` of the innermost line of the configuration file that led to the error."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path)]
    return f"{path}:{lines[-1]}" if lines else path


def _check_keys(flat: Mapping[str, Any], path: str) -> None:
    known = flatten(defaults())
    for key in flat:
        if key not in known:
            raise UserError(f"{path}: unknown key {key!r}.{nearest(key, known)}")
    if missing := [key for key in known if key not in flat]:
        raise UserError(f"{path}: key {missing[0]!r} is missing; start from lsm_jax.config.defaults().")


def _override(config: ConfigDict, argument: str) -> None:
    name, equals, text = argument.partition("=")
    key = name.removeprefix("--").removeprefix("config.")
    known = flatten(config)
    if not equals:
        raise UserError(f"{argument}: write --config.{key}=value.")
    if key not in known:
        raise UserError(f"{name}: there is no key {key!r}.{nearest(key, known)}")
    _assign(config, key, _parse(text, known[key], key, name), name)


def _assign(config: ConfigDict, key: str, value: Any, origin: str) -> None:
    section, _, last = key.rpartition(".")
    holder = config[section] if section else config
    try:
        # Without this ConfigDict takes True for 1, and a tuple for text.
        if type(value) is not type(holder[last]) and not (type(value) is int and type(holder[last]) is float):
            raise TypeError
        holder[last] = value
    except TypeError:
        kind = type(holder[last]).__name__
        raise UserError(f"{origin}: {key} must be {kind}, got {value!r}; its default is {holder[last]!r}.") from None


def _parse(text: str, current: Any, key: str, name: str) -> Any:
    """The value written as `text`, of the type of `current`."""
    kind = type(current)
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "a list such as a,b,c")
    try:
        if kind is str:
            return text
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            return int(text)
        if kind is float and math.isfinite(number := float(text)):
            return number
        if kind is tuple:
            return _parse_tuple(text, key, current)
    except (KeyError, ValueError, SyntaxError):
        pass
    raise UserError(f"{name}: {key} needs {wanted}, got {text!r}; its default is {current!r}.")


def _parse_tuple(text: str, key: str, current: tuple[Any, ...]) -> tuple[Any, ...]:
    """A Python literal, `('a', 'b')`, or plain `a,b`; elements of the type the key asks for."""
    element = _ELEMENTS.get(key) or (type(current[0]) if current else str)
    if text.lstrip()[:1] in {"(", "["}:
        literal = _tuples(ast.literal_eval(text))
        values = literal if isinstance(literal, tuple) else (literal,)
    else:
        values = tuple(part.strip() for part in text.split(",") if part.strip())
        values = values if element is tuple else tuple(element(value) for value in values)
    if any(not isinstance(value, element | int if element is float else element) for value in values):
        raise ValueError(f"elements must be {element.__name__}")
    return values


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list | tuple) else value
