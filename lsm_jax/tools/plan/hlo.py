"""Reading the text of a compiled program: computations, instructions, shapes, and how often each computation runs.

XLA's own cost analysis counts the body of a loop once. Trip counts are known to the compiler and written into its text;
here they are multiplied through.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

# Bits of an element, by what the text calls it; token and opaque types take none.
_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f4e2m1fn": 4, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%?([\w.-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|called_computations|branch_computations|true_computation|"
                     r"false_computation)=(\{[^{}]*\}|%?[\w.-]+)")  # fmt: skip
_TRIPS = re.compile(r'"?known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)"?\s*\}')


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array of the program.

    Attributes:
      fast: whether it lies in memory on the chip (VMEM of a TPU) rather than in HBM.
    """

    element: str
    dimensions: tuple[int, ...]
    fast: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.dimensions)

    @property
    def bytes(self) -> int:
        return -(-self.size * _BITS.get(self.element, 0) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes:
      shapes: the array it yields, or those of the tuple.
      operands: names of instructions of the same computation.
      attributes: the rest of the line, as text.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    def attribute(self, name: str) -> str:
        """The text of an attribute such as `lhs_contracting_dims={1}`, without its braces; empty where it has none."""
        matched = re.search(rf"\b{name}=(\{{[^{{}}]*\}}|[^\s,]+)", self.attributes)
        return matched[1].strip("{}") if matched else ""

    def called(self, *kinds: str) -> list[str]:
        """Names of computations it calls, of these attributes."""
        found = [text for kind, text in _CALLED.findall(self.attributes) if kind in kinds]
        return [name for text in found for name in _NAME.findall(text)]


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation: its instructions in the order they are scheduled."""

    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        return next((each for each in self.instructions if each.is_root), self.instructions[-1])

    def operands(self, instruction: Instruction) -> list[Instruction]:
        return [self.by_name[name] for name in instruction.operands if name in self.by_name]


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled module.

    Attributes:
      entry: the computation that is run.
      trips: iterations of each loop, by the name of its instruction.
      guessed: loops whose count the text does not tell; they are taken to run once.
    """

    computations: Mapping[str, Computation]
    entry: str
    trips: Mapping[str, int]
    guessed: frozenset[str]

    def called(self, instruction: Instruction) -> list[tuple[float, Computation]]:
        """(times, computation) of what an instruction runs; a loop's condition is left out."""
        match instruction.opcode:
            case "while":
                found, times = instruction.called("body"), float(self.trips[instruction.name])
            case "conditional":
                found = instruction.called("branch_computations", "true_computation", "false_computation")
                # Which branch is taken is not known: each counts in equal part.
                times = 1 / len(found)
            case "fusion" | "call" | "async-start" | "custom-call":
                found, times = instruction.called("calls", "called_computations", "to_apply"), 1.0
            case _:
                return []
        return [(times, self.computations[name]) for name in found]

    def scheduled(self) -> Iterator[tuple[float, Computation]]:
        """(times, computation) of all that is scheduled: the entry and what it runs, but not the insides of fusions."""

        def visit(computation: Computation, times: float) -> Iterator[tuple[float, Computation]]:
            yield times, computation
            for instruction in computation.instructions:
                if instruction.opcode != "fusion":
                    for often, inner in self.called(instruction):
                        yield from visit(inner, times * often)

        return visit(self.computations[self.entry], 1.0)


def read(text: str) -> Program:
    """Reads `compiled.as_text()`; ValueError where that is something else."""
    computations, entry = _computations(text)
    counted = {
        loop.name: _trip_count(loop, inside, computations)
        for inside in computations.values()
        for loop in inside.instructions
        if loop.opcode == "while"
    }
    guessed = frozenset(name for name, trips in counted.items() if trips is None)
    trips = {name: 1 if count is None else count for name, count in counted.items()}
    return Program(computations, entry, trips, guessed)


def _trip_count(loop: Instruction, inside: Computation, computations: Mapping[str, Computation]) -> int | None:
    """Iterations of a loop: as the compiler wrote them down, or from its counter's first value to its bound."""
    if known := _TRIPS.search(loop.attributes):
        return int(known[1])
    tests = computations[loop.called("condition")[0]]
    compare = tests.root
    if compare.opcode == "fusion":
        compare = computations[compare.called("calls")[0]].root
    constants = [each for each in tests.instructions if each.opcode == "constant" and not each.shapes[0].dimensions]
    if compare.opcode != "compare" or compare.attribute("direction") != "LT" or len(constants) != 1:
        return None
    bound = _constant(constants[0])
    return None if bound is None else bound - _first(loop, inside, tests)


def _first(loop: Instruction, inside: Computation, tests: Computation) -> int:
    """What a loop's counter begins at: 1 where an iteration was peeled off; 0 where the text does not tell."""
    counters = [each for each in tests.instructions if each.opcode == "get-tuple-element"]
    carried = inside.operands(loop)
    if len(counters) != 1 or not carried or carried[0].opcode != "tuple":
        return 0
    counter = inside.by_name.get(carried[0].operands[int(counters[0].attribute("index"))])
    while counter is not None and counter.opcode == "copy":
        counter = next(iter(inside.operands(counter)), None)
    return (counter and _constant(counter)) or 0


def _constant(instruction: Instruction) -> int | None:
    value = re.match(r"constant\((\d+)\)", instruction.attributes)
    return int(value[1]) if value else None


def _computations(text: str) -> tuple[dict[str, Computation], str]:
    """All computations by name, and the name of the one that is run."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    lines: list[Instruction] = []
    for line in text.splitlines():
        if name and line.startswith("}"):
            computations[name], name, lines = Computation(tuple(lines)), "", []
        elif name and " = " in line:
            lines.append(_instruction(line.strip()))
        elif line.rstrip().endswith("{") and " -> " in line:
            is_entry = line.startswith("ENTRY ")
            name = _NAME.match(line.removeprefix("ENTRY "))[1]  # type: ignore[index]  # a header begins with a name
            entry = name if is_entry else entry
    if entry not in computations:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    return computations, entry


def _instruction(line: str) -> Instruction:
    """`ROOT %name = type opcode(%operand, ...), attributes` in its parts."""
    is_root = line.startswith("ROOT ")
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    opcode, inside = rest[:opening], rest[opening + 1 : closing]
    # A constant's value and a parameter's number stand where others have operands.
    literal = opcode in {"constant", "parameter", "iota"}
    attributes = f"{opcode}({inside})" if literal else rest[closing + 1 :]
    operands = () if literal else tuple(re.findall(r"%([\w.-]+)", inside))
    return Instruction(name.lstrip("%"), opcode, shapes_in(kind), operands, attributes, is_root)


def shapes_in(text: str) -> tuple[Shape, ...]:
    """The arrays of a type: `(f32[8,128]{1,0:T(8,128)S(1)}, s32[])`."""
    return tuple(
        Shape(element, tuple(map(int, filter(None, dimensions.split(",")))), bool(re.search(r"S\([13]\)", layout)))
        for element, dimensions, layout in _ARRAY.findall(text)
        if element in _BITS
    )


def _closing(text: str, opening: int) -> int:
    """The place of the bracket that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    raise ValueError(f"unbalanced brackets: {text[:120]}")
