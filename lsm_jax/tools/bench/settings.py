"""What `lsm bench` measures; the fields with a help text are options of the command."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

Share = Annotated[float, Interval(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16"]
Direction = Literal["forward", "forward_backward"]


def option(default: Any, meaning: str) -> Any:
    """A field that is an option. (`lsm_jax.config` has the same, but takes long to import.)"""
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    """What all benchmarks have."""

    repeats: Annotated[int, Ge(1)] = option(10, "times each contender is timed")
    budget: Annotated[float, Ge(0)] = option(300.0, "seconds; no round begins that would end later")
    seed: Annotated[int, Ge(0)] = option(0, "of data and masks")


@dataclasses.dataclass(frozen=True)
class AttentionBench(BenchSettings):
    """Attention alone."""

    tokens: tuple[Annotated[int, Ge(1)], ...] = option((3744,), "positions of a row; several are a sweep")
    visible: tuple[Share, ...] = option((1.0, 0.5, 0.2), "shares of them that were observed")
    heads: Annotated[int, Ge(1)] = option(6, "heads")
    head_size: Annotated[int, Ge(1)] = option(64, "width of a head")
    rows: Annotated[int, Ge(1)] = option(1, "rows of a batch")
    dtype: tuple[Dtype, ...] = option(("float32",), "float32, bfloat16 or both")
    only: tuple[str, ...] = option((), "contenders by name; all that run here if left out")
    directions: tuple[Direction, ...] = ("forward", "forward_backward")


@dataclasses.dataclass(frozen=True)
class InputBench(BenchSettings):
    """The loader."""

    budget: Annotated[float, Ge(0)] = option(120.0, "seconds; no round begins that would end later")
    workers: tuple[Annotated[int, Ge(0)], ...] = option((0, 1, 2), "processes that read ahead; 0: threads")
    batches: Annotated[int, Ge(1)] = option(32, "batches of a round")
    batch_size: Annotated[int, Ge(1)] = option(32, "windows of a batch")


@dataclasses.dataclass(frozen=True)
class StepBench(BenchSettings):
    """The training step."""

    budget: Annotated[float, Ge(0)] = option(600.0, "seconds; no round begins that would end later")
    missing: tuple[Share, ...] = option((0.0, 0.5), "shares of cells; baselines of step at the last")
    batch_size: Annotated[int, Ge(1)] = option(4, "windows of a batch")
    dtype: tuple[Dtype, ...] = option(("float32",), "float32, bfloat16 or both")
    only: tuple[str, ...] = option((), "contenders by name; all that run here if left out")
    batches: int = 4  # different ones, used in turn; no option


@dataclasses.dataclass(frozen=True)
class InferenceBench(BenchSettings):
    """Embedding."""

    missing: tuple[Share, ...] = option((0.5,), "shares of cells")
    windows: Annotated[int, Ge(1)] = option(64, "windows that are embedded in a round")
    batch_size: Annotated[int, Ge(1)] = option(32, "windows of a batch")


BENCHES: dict[str, type[BenchSettings]] = {
    "attention": AttentionBench,
    "input": InputBench,
    "step": StepBench,
    "inference": InferenceBench,
}


def options(kind: str) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a benchmark that are options, by name."""
    return {field.name: field for field in dataclasses.fields(BENCHES[kind]) if field.metadata}


def parse_option(kind: str, name: str, text: str) -> Any:
    """The value of an option, `a,b` for a tuple; ValueError with a sentence for any other text."""
    import pydantic

    hint = typing.get_type_hints(BENCHES[kind], include_extras=True)[name]
    is_tuple = typing.get_origin(hint) is tuple
    adapter = pydantic.TypeAdapter(typing.get_args(hint)[0] if is_tuple else hint)
    try:
        values = tuple(adapter.validate_strings(part.strip()) for part in (text.split(",") if is_tuple else [text]))
    except pydantic.ValidationError as error:
        raise ValueError(f"{text!r}: {error.errors()[0]['msg'].lower()}") from None
    return values if is_tuple else values[0]
