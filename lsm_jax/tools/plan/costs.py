"""What a compiled program executes, moves to and from memory, and exchanges between devices."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lsm_jax.nn.attention import BlockSparsity
from lsm_jax.nn.attention.api import KEY_MAJOR_KERNELS
from lsm_jax.tools.plan.hlo import Computation, Instruction, Shape, executed, root
from lsm_jax.train.hardware import Chip

Sparsities = Sequence[BlockSparsity]
"""The blocks that attention computes, one element for every pair of row lengths."""

_GEMMS = ("__cublas$gemm", "__cublas$lt$matmul")
_ATTENTION = "segment_attention_"
# Opcodes that write nothing to memory themselves.
_NOT_WRITING = {
    "after-all", "bitcast", "call", "conditional", "constant", "get-tuple-element", "opt-barrier", "parameter",
    "partition-id", "replica-id", "tuple", "while",
}  # fmt: skip
# What each of n devices sends at least, as a share of the whole array that the group begins or ends with.
_SENT: Mapping[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda _: 1.0,
}


@dataclasses.dataclass
class ProgramFlops:
    """FLOPs of one run of a program on one device.

    Attributes:
      products: of the matrix products that XLA compiled.
      kernels: of Pallas kernels.
      repeated_scores: the part of `kernels` in which flash attention computes its scores a second time.
      kernel_runs: how often each Pallas kernel runs.
    """

    products: float = 0.0
    kernels: float = 0.0
    repeated_scores: float = 0.0
    kernel_runs: Counter[str] = dataclasses.field(default_factory=Counter)


def program_flops(entry: Computation, sparsity: Sparsities) -> ProgramFlops:
    """FLOPs of one run of a program; `kernel_flops` says what `sparsity` changes."""
    total = ProgramFlops()
    for times, computation in executed(entry, inside_fusions=True):
        for each in computation:
            of_kernel, of_scores = kernel_flops(each, sparsity)
            total.products += times * product_flops(each)
            total.kernels += times * of_kernel
            total.repeated_scores += times * of_scores
            if name := kernel_name(each):
                total.kernel_runs[name] += int(times)
    return total


def product_flops(product: Instruction) -> float:
    """Two per multiply-add of a dot, a convolution or a library's matrix product; 0 for everything else."""
    operands = [each.shapes[0] for each in product.operands[:2] if each.shapes]
    if len(operands) < 2 or not product.shapes:
        return 0.0
    left = operands[0].dimensions
    match product.opcode:
        case "dot":
            contracted = re.findall(r"\d+", product.attribute("lhs_contracting_dims"))
        case "custom-call" if product.attribute("custom_call_target").strip('"') in _GEMMS:
            found = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', product.attributes)
            contracted = re.findall(r"\d+", found[1]) if found else [str(len(left) - 1)]
        case "convolution":
            return _convolution_flops(product)
        case _:
            return 0.0
    return 2.0 * product.shapes[0].size * math.prod(left[int(dimension)] for dimension in contracted)


def _convolution_flops(convolution: Instruction) -> float:
    """FLOPs of a convolution without those on padding. TPUs write batched matrix products as convolutions too."""
    inputs, kernel, outputs = re.split("_|->", convolution.attribute("dim_labels"))
    left, right = (each.shapes[0].dimensions for each in convolution.operands[:2])
    out = convolution.shapes[0]
    result = 2.0 * out.size * right[kernel.index("i")]
    for number, label in enumerate(sorted(filter(str.isdigit, kernel))):
        size, taps = left[inputs.index(label)], right[kernel.index(label)]
        positions = out.dimensions[outputs.index(label)]
        result *= _taps_on_input(size, taps, positions, convolution.attribute("window"), number) / positions
    return result


@functools.cache  # a program has the same few convolutions thousands of times
def _taps_on_input(size: int, taps: int, positions: int, window: str, number: int) -> int:
    """Pairs (output position, tap) on an element of the input, in one dimension; the others are on padding or holes."""
    parts = (part.split("=") for part in window.split())
    settings = {name: values.split("x")[number] for name, values in parts}
    stride, low = int(settings.get("stride", 1)), int(settings.get("pad", "0_0").split("_")[0])
    input_dilation, kernel_dilation = int(settings.get("lhs_dilate", 1)), int(settings.get("rhs_dilate", 1))
    index = np.add.outer(np.arange(positions) * stride - low, np.arange(taps) * kernel_dilation)
    inside = (index >= 0) & (index <= (size - 1) * input_dilation)
    return int(np.count_nonzero(inside & (index % input_dilation == 0)))


def kernel_flops(call: Instruction, sparsity: Sparsities) -> tuple[float, float]:
    """FLOPs of a Pallas kernel, and the part of them that computes attention scores a second time.

    Attention kernels state the FLOPs of all pairs of blocks. Where `sparsity` has rows of their lengths, only the pairs
    that the segments allow are counted.
    """
    if call.opcode != "custom-call":
        return 0.0, 0.0
    part = kernel_name(call).removeprefix(_ATTENTION)
    # [R, H, D, S] and [R, H, D, T] on TPUs, [R, S, H, D] and [R, T, H, D] on GPUs.
    heads = [each.shapes[0] for each in call.operands if len(each.shapes) == 1 and len(each.shapes[0].dimensions) == 4]
    fitting = {
        each.slots: each
        for each in sparsity
        if len(heads) > 1
        and each.slots[0] in heads[0].dimensions[1:]
        and each.slots[1] in heads[1].dimensions[1:]
        and part in each.products
    }
    if len(fitting) != 1:
        return _stated_flops(call), 0.0
    [found] = fitting.values()
    one_product = 2.0 * heads[0].size * found.slots[1] * (found.by_key if part in KEY_MAJOR_KERNELS else found.by_query)
    return found.products[part] * one_product, one_product if part in KEY_MAJOR_KERNELS else 0.0


def kernel_name(call: Instruction) -> str:
    """The name of a Pallas kernel: of our attention, or one that states its FLOPs; empty for other instructions."""
    if call.opcode != "custom-call":
        return ""
    if ours := re.search(rf"{_ATTENTION}[a-z_]+", f"{call.name} {call.attributes}"):
        return ours[0]
    return re.sub(r"\.\d+$", "", call.name) if _stated_flops(call) else ""


def _stated_flops(call: Instruction) -> float:
    stated = re.search(r'\\?"flops\\?":\s*\\?"?(\d+)', call.attributes)
    return float(stated[1]) if stated else 0.0


def moved_bytes(entry: Computation) -> float:
    """Bytes to and from HBM at least: arguments are read, every other array is written once and read once.

    Arrays inside a fusion and arrays in memory on the chip move nothing; an update in place moves the updated part. The
    caches of a GPU may save some of it.
    """
    arguments = sum(shape.bytes for each in entry if each.opcode == "parameter" for shape in each.shapes)
    return arguments + sum(
        2.0 * times * written_bytes(each)
        for times, computation in executed(entry, inside_fusions=False)
        for each in computation
    )


def written_bytes(instruction: Instruction) -> int:
    """Bytes that an instruction writes to HBM; those of an asynchronous one are counted at its end."""
    if instruction.opcode in _NOT_WRITING or instruction.opcode.endswith(("-start", "-update")):
        return 0
    if instruction.attribute("custom_call_target").strip('"') == "AllocateBuffer":
        return 0
    results: tuple[Instruction, ...] = (instruction,)
    in_tuple = False
    if instruction.opcode == "fusion":
        inner = root(instruction.calls[0][1])
        in_tuple = inner.opcode == "tuple"
        results = inner.operands if in_tuple else (inner,)
    if len(results) != len(instruction.shapes):
        return sum(shape.bytes for shape in instruction.shapes if not shape.on_chip)
    # An all-reduce beside other results is a step of an asynchronous one, which is counted at its last fusion.
    return sum(
        0 if in_tuple and result.opcode == "all-reduce" else _result_bytes(result, shape)
        for result, shape in zip(results, instruction.shapes, strict=True)
    )


def _result_bytes(result: Instruction, shape: Shape) -> int:
    """Bytes written for one result: none for an argument passed on, the slice only for an update in place."""
    if result.opcode == "parameter":
        return 0
    while result.opcode in {"bitcast", "convert"} and result.operands:
        result = result.operands[0]
    if result.opcode == "dynamic-update-slice" and len(result.operands) > 1:
        return result.operands[1].shapes[0].bytes
    return 0 if shape.on_chip else shape.bytes


@dataclasses.dataclass
class Collective:
    """Collectives of one kind in a program.

    Attributes:
      group: devices that exchange with each other.
      hosts: hosts that a group spans, if fast links end at the host.
      overlapped: whether they are asynchronous, and until they are waited for a matrix product is computed, or other
        work that takes at least as long.
      count, bytes, seconds_at_least: runs, payload, and time on the links, of one run of the program.
    """

    kind: str
    group: int
    hosts: int
    overlapped: bool
    count: float = 0.0
    bytes: float = 0.0
    seconds_at_least: float = 0.0


def collectives(entry: Computation, hosts: Sequence[int], chip: Chip, sparsity: Sparsities) -> list[Collective]:
    """The collectives of a program.

    Args:
      hosts: the host of each device, in the order of the mesh.
      chip: the share of one device.
    """
    merged: dict[tuple[str, int, int, bool], Collective] = {}
    for times, computation in executed(entry, inside_fusions=False):
        for each, meanwhile, fused in _exchanges(computation):
            kind, group = _kind(each), _first_group(each.attributes, len(hosts))
            span = len({hosts[member] for member in group})
            payload = sum(shape.bytes for operand in each.operands for shape in operand.shapes)
            payload *= len(group) if kind == "all-gather" else 1
            seconds = _link_seconds(kind, payload, len(group), span, chip)
            overlapped = any(_multiplies(other, sparsity) for other in meanwhile)
            if fused:
                overlapped |= sum(2 * written_bytes(other) / chip.memory_bandwidth for other in meanwhile) >= seconds
            key = kind, len(group), span, overlapped
            total = merged.setdefault(key, Collective(*key))
            total.count += times
            total.bytes += times * payload
            total.seconds_at_least += times * seconds
    return list(merged.values())


def _kind(instruction: Instruction) -> str:
    """The kind of a collective; empty for other instructions, and for the end of an asynchronous one."""
    kind = instruction.opcode.removesuffix("-start")
    return kind if kind in _SENT else ""


def _exchanges(computation: Computation) -> Iterator[tuple[Instruction, Sequence[Instruction], bool]]:
    """(collective, instructions scheduled while it runs, whether it is fused with them).

    A TPU's compiler splits an asynchronous collective: the first fusion starts it, the last one waits for it, both
    of the kind kCustom, and each fusion between takes a piece of it further. All have the same channel.
    """
    channels: dict[str, list[tuple[Instruction, Instruction]]] = {}
    for index, each in enumerate(computation):
        if _kind(each):
            later = computation[index + 1 :]
            end = next((number for number, other in enumerate(later) if each in other.operands), len(later))
            yield each, later[:end] if each.opcode.endswith("-start") else (), False
        for inner in (part for _, called in each.calls if each.opcode == "fusion" for part in called if _kind(part)):
            channels.setdefault(inner.attribute("channel_id"), []).append((each, inner))
    for parts in channels.values():
        yield parts[0][1], [fusion for fusion, _ in parts if fusion.attribute("kind") != "kCustom"], True


def _multiplies(instruction: Instruction, sparsity: Sparsities) -> bool:
    """Whether an instruction, or a computation that it calls, has a matrix product or a kernel."""
    if product_flops(instruction) or kernel_flops(instruction, sparsity)[0]:
        return True
    return any(_multiplies(each, sparsity) for _, called in instruction.calls for each in called)


def _link_seconds(kind: str, payload: int, group: int, hosts: int, chip: Chip) -> float:
    """Seconds at least: bytes that leave a device, and for several hosts a host, over the bandwidth of its links."""
    within = _SENT[kind](group) * payload / chip.link_bandwidth
    if hosts == 1 or not chip.network_bandwidth:
        return within
    return max(within, _SENT[kind](hosts) * payload * hosts / group / chip.network_bandwidth)


def _first_group(attributes: str, devices: int) -> list[int]:
    """The devices of a collective's first group, in each notation that XLA has; all devices if it names no groups."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        axes = re.findall(r"'(\w+)'=(\d+)", mesh[1])
        grid = np.arange(devices).reshape([int(size) for _, size in axes])
        return grid[tuple(slice(None) if f"'{name}'" in mesh[2] else 0 for name, _ in axes)].ravel().tolist()
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        grid = np.arange(devices).reshape([int(size) for size in iota[3].split(",")])
        grid = grid.transpose([int(axis) for axis in iota[4].split(",")]) if iota[4] else grid
        return grid.ravel()[: int(iota[2])].tolist()
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", attributes)
    return [int(member) for member in listed[1].split(",")] if listed else list(range(devices))
