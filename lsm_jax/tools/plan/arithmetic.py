"""What one instruction of a compiled program costs: FLOPs of matrix products, and bytes to and from HBM."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable

from lsm_jax.tools.plan.hlo import Computation, Instruction, Program, Shape

# Names for what is there already, or callers of what is counted by itself.
_FREE = {
    "after-all", "bitcast", "call", "conditional", "constant", "get-tuple-element", "opt-barrier", "parameter",
    "partition-id", "replica-id", "tuple", "while",
}  # fmt: skip
_GEMMS = ("__cublas$gemm", "__cublas$lt$matmul")

KernelFlops = Callable[[Computation, Instruction], float]


def flops(program: Program, computation: Computation, kernel: KernelFlops) -> float:
    """FLOPs that running a computation executes, trip counts multiplied through.

    Args:
      kernel: FLOPs of a custom call that is a kernel of ours.
    """
    return sum(instruction_flops(program, computation, each, kernel) for each in computation.instructions)


def instruction_flops(program: Program, computation: Computation, each: Instruction, kernel: KernelFlops) -> float:
    """FLOPs of an instruction and all it calls."""
    own = product_flops(computation, each) or (kernel(computation, each) if each.opcode == "custom-call" else 0.0)
    return own + sum(times * flops(program, inner, kernel) for times, inner in program.called(each))


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """Two per multiply-add of a dot, a convolution or a library's matrix product; 0 for all else."""
    operands = [each.shapes[0] for each in computation.operands(instruction)[:2] if each.shapes]
    if len(operands) < 2 or not instruction.shapes:
        return 0.0
    match instruction.opcode:
        case "dot":
            contracted = _numbers(instruction.attribute("lhs_contracting_dims"))
            return 2.0 * instruction.shapes[0].size * _extent(operands[0], contracted)
        case "convolution":
            return _convolution_flops(instruction, operands[0], operands[1])
        case "custom-call" if instruction.attribute("custom_call_target").strip('"') in _GEMMS:
            named = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', instruction.attributes)
            contracted = _numbers(named[1]) if named else [len(operands[0].dimensions) - 1]
            return 2.0 * instruction.shapes[0].size * _extent(operands[0], contracted)
    return 0.0


def stated_flops(instruction: Instruction) -> float:
    """What a Pallas kernel says of itself in its cost estimate; 0 where it says nothing."""
    stated = re.search(r'\\?"flops\\?":\s*\\?"?(\d+)', instruction.attributes)
    return float(stated[1]) if stated else 0.0


def _convolution_flops(convolution: Instruction, left: Shape, right: Shape) -> float:
    """A convolution, which a batched product on a TPU is as well: taps that meet only padding or holes do no work."""
    inputs, kernel, output = re.split("_|->", convolution.attribute("dim_labels"))
    window = convolution.attribute("window")
    result = 2.0 * convolution.shapes[0].size * right.dimensions[kernel.index("i")]
    for number, place in enumerate(sorted(label for label in kernel if label.isdigit())):
        size, taps = left.dimensions[inputs.index(place)], right.dimensions[kernel.index(place)]
        positions = convolution.shapes[0].dimensions[output.index(place)]
        result *= _meetings(size, taps, positions, window, number) / positions
    return result


@functools.cache  # a program asks for the same few thousands of times
def _meetings(size: int, taps: int, positions: int, window: str, number: int) -> int:
    """Pairs of (output position, tap) along one dimension that meet an element of the input."""

    def setting(name: str, default: str) -> str:
        found = re.search(rf"\b{name}=(\S+)", window)
        return found[1].split("x")[number] if found else default

    stride, low = int(setting("stride", "1")), int(setting("pad", "0_0").split("_")[0])
    hole, spread = int(setting("lhs_dilate", "1")), int(setting("rhs_dilate", "1"))
    together = math.gcd(stride, hole)
    period = hole // together
    inverse = pow(stride // together, -1, period)
    met = 0
    for tap in range(taps):
        # Positions p whose place p * stride + offset lies within the input and on an element, not in a hole.
        offset = tap * spread - low
        first, last = max(0, -(offset // stride)), min(positions - 1, ((size - 1) * hole - offset) // stride)
        if offset % together == 0:
            start = first + (-offset // together * inverse - first) % period
            met += max(0, (last - start) // period + 1)
    return met


def moved_bytes(program: Program) -> float:
    """Bytes to and from HBM at the least: the arguments are read, and each result is written and read once.

    Results inside fusions exist nowhere, an update in place moves what it updates, and what lies in fast memory moves
    nothing. Caches may save a GPU some of it.
    """
    entry = program.computations[program.entry]
    arguments = sum(shape.bytes for each in entry.instructions if each.opcode == "parameter" for shape in each.shapes)
    return arguments + sum(
        2.0 * times * written_bytes(program, computation, each)
        for times, computation in program.scheduled()
        for each in computation.instructions
    )


def written_bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    """Bytes an instruction writes to HBM; what an asynchronous one writes is counted where it is done."""
    if instruction.opcode in _FREE or instruction.opcode.endswith(("-start", "-update")):
        return 0
    if instruction.attribute("custom_call_target").strip('"') == "AllocateBuffer":  # room, to be filled later
        return 0
    if instruction.opcode == "fusion":
        ((_, inner),) = program.called(instruction)
        results = inner.operands(inner.root) if inner.root.opcode == "tuple" else [inner.root]
        if len(results) == len(instruction.shapes):
            pairs = zip(results, instruction.shapes, strict=True)
            # Of a sum that runs beside other work, the fusion at its end is counted.
            beside = inner.root.opcode == "tuple"
            return sum(
                _kept_bytes(inner, result, shape)
                for result, shape in pairs
                if not (beside and result.opcode == "all-reduce")
            )
    if len(instruction.shapes) == 1:
        return _kept_bytes(computation, instruction, instruction.shapes[0])
    return sum(shape.bytes for shape in instruction.shapes if not shape.fast)


def _kept_bytes(computation: Computation, result: Instruction, shape: Shape) -> int:
    """Bytes of a result in HBM: of the slice only, where it updates one in place."""
    if result.opcode == "parameter":  # passed on as it came
        return 0
    while result.opcode in {"bitcast", "convert"} and computation.operands(result):
        result = computation.operands(result)[0]
    if result.opcode == "dynamic-update-slice" and len(computation.operands(result)) > 1:
        return computation.operands(result)[1].shapes[0].bytes
    return 0 if shape.fast else shape.bytes


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _extent(shape: Shape, dimensions: Iterable[int]) -> int:
    return math.prod(shape.dimensions[dimension] for dimension in dimensions)
