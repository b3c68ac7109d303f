"""Reads the text of a compiled XLA program (`compiled.as_text()`).

XLA's own `cost_analysis` counts the body of a loop once; `executed` counts every iteration.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.* -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.+?) ([\w-]+)\((.*?)\)(?:, (.*))?$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"[\w.-]+")
_TRIP_COUNT = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')
# Attributes that name the computations which an instruction runs; those of reductions and sorts are too small to count.
_CALLED = {
    "call": ("to_apply",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
    "custom-call": ("called_computations",),
    "fusion": ("calls",),
    "async-start": ("calls",),
    "while": ("body",),
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array in the program.

    Attributes:
      bits: of one element.
      on_chip: whether it lies in memory on the chip (VMEM of a TPU) instead of in HBM.
    """

    dimensions: tuple[int, ...]
    bits: int
    on_chip: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> int:
        return -(-self.size * self.bits // 8)


@dataclasses.dataclass(eq=False)
class Instruction:
    """One line of a computation.

    Attributes:
      shapes: the array that it computes, or the arrays of its tuple.
      arguments: the text in parentheses.
      operands: instructions of the same computation.
      attributes: the text after the parentheses.
      calls: (times, computation) for every computation that it runs.
      known_trip_count: false for a loop whose number of iterations the text does not have; it then counts as one.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    arguments: str
    operands: tuple[Instruction, ...]
    attributes: str
    is_root: bool
    calls: tuple[tuple[float, Computation], ...] = ()
    known_trip_count: bool = True

    def attribute(self, name: str) -> str:
        """The value of an attribute such as `lhs_contracting_dims={1}`, without braces; empty if there is none."""
        matched = re.search(rf"\b{name}=(\{{[^{{}}]*\}}|[^\s,]+)", self.attributes)
        return matched[1].strip("{}") if matched else ""

    @property
    def constant(self) -> int | None:
        """The value of a scalar integer constant that is not negative."""
        is_scalar = self.opcode == "constant" and not self.shapes[0].dimensions
        return int(self.arguments) if is_scalar and self.arguments.isdigit() else None


Computation = Sequence[Instruction]
"""Instructions in the order in which they are scheduled."""


def root(computation: Computation) -> Instruction:
    """The instruction whose result a computation returns."""
    return next((each for each in computation if each.is_root), computation[-1])


def executed(computation: Computation, inside_fusions: bool, times: float = 1.0) -> Iterator[tuple[float, Computation]]:
    """(times, computation) for every computation that a run of this one executes, beginning with itself."""
    yield times, computation
    for each in computation:
        if inside_fusions or each.opcode != "fusion":
            for inner_times, inner in each.calls:
                yield from executed(inner, inside_fusions, times * inner_times)


def read_program(text: str) -> Computation:
    """The entry computation of a program; ValueError if the text has none.

    Relies on XLA's order: computations stand before those that call them, instructions before those that use them.
    """
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    by_name: dict[str, Instruction] = {}
    instructions: list[Instruction] = []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            by_name, instructions = {}, []
            computations[header[2]] = instructions
            entry = instructions if header[1] else entry
        elif matched := _INSTRUCTION.match(line):
            is_root, name, result, opcode, arguments, attributes = (part or "" for part in matched.groups())
            operands = tuple(by_name[each] for each in re.findall(r"%([\w.-]+)", arguments) if each in by_name)
            each = Instruction(name, opcode, _shapes(result), arguments, operands, attributes, bool(is_root))
            called = [
                computations[name] for key in _CALLED.get(opcode, ()) for name in _NAME.findall(each.attribute(key))
            ]
            times = 1 / len(called) if opcode == "conditional" else 1.0  # which branch is taken is not known
            if opcode == "while":
                trips = _trip_count(each, computations[each.attribute("condition").lstrip("%")])
                each.known_trip_count = trips is not None
                times = 1.0 if trips is None else trips
            each.calls = tuple((times, inner) for inner in called)
            by_name[name] = each
            instructions.append(each)
    if entry is None:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    return entry


def _shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type such as `(f32[8,128]{1,0:T(8,128)S(1)}, s32[])`; memory spaces 1 and 3 are on the chip."""
    return tuple(
        Shape(
            dimensions=tuple(map(int, filter(None, dimensions.split(",")))),
            bits=8 if element == "pred" else int(re.findall(r"\d+", element)[0]),
            on_chip=bool(re.search(r"S\([13]\)", layout)),
        )
        for element, dimensions, layout in _ARRAY.findall(text)
    )


def _trip_count(loop: Instruction, condition: Computation) -> int | None:
    """Iterations of a loop, from the compiler's note or from `counter < bound` in its condition; None if unknown."""
    if noted := _TRIP_COUNT.search(loop.attributes):
        return int(noted[1])
    compare = root(condition)
    if compare.opcode == "fusion":
        compare = root(compare.calls[0][1])
    bounds = [each.constant for each in condition if each.constant is not None]
    if compare.opcode != "compare" or compare.attribute("direction") != "LT" or len(bounds) != 1:
        return None
    # The counter begins at 1 if the compiler peeled off the first iteration.
    counters = [each for each in condition if each.opcode == "get-tuple-element"]
    start = None
    if len(counters) == 1 and loop.operands and loop.operands[0].opcode == "tuple":
        start = loop.operands[0].operands[int(counters[0].attribute("index"))]
        while start.opcode == "copy" and start.operands:
            start = start.operands[0]
    return bounds[0] - ((start and start.constant) or 0)
