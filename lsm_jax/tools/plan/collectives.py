"""Collectives of a compiled program: kinds, bytes, groups, and whether anything is computed meanwhile."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from lsm_jax.tools.plan.hlo import Computation, Instruction, Program
from lsm_jax.train.hardware import Chip

# What each member of a group of n must send, as a share of the payload that the whole group has at the end or had.
_SENT: Mapping[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda _: 1.0,
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One place in the program where devices exchange.

    Attributes:
      count: times a step runs it.
      bytes: payload of one run.
      group: devices that exchange with each other.
      hosts: hosts a group spans, where fast links end at hosts.
      overlapped: whether it is asynchronous, and before it is waited for a matrix is multiplied or other work takes at
        least as long as the links do.
      seconds: what one run takes on the links at the least.
    """

    kind: str
    count: float
    bytes: int
    group: int
    hosts: int
    overlapped: bool
    seconds: float


def collectives(
    program: Program,
    hosts: Sequence[int],
    chip: Chip,
    computes: Callable[[Computation, Instruction], bool],
    moving: Callable[[Computation, Instruction], float],
) -> list[Collective]:
    """Every collective of a program.

    Args:
      hosts: the host of each device, in the mesh's order.
      chip: of one device.
      computes: whether an instruction multiplies matrices.
      moving: seconds that an instruction's results take to and from memory.
    """

    def described(times: float, inside: Computation, instruction: Instruction, overlapped: bool) -> Collective:
        kind = instruction.opcode.removesuffix("-start")
        groups = replica_groups(instruction.attributes, len(hosts))
        span = len({hosts[member] for member in groups[0]})
        given = sum(shape.bytes for each in inside.operands(instruction) for shape in each.shapes)
        payload = given * groups.shape[1] if kind == "all-gather" else given
        seconds = link_seconds(kind, payload, groups.shape[1], span, chip)
        return Collective(kind, times, payload, groups.shape[1], span, overlapped, seconds)

    found = []
    for times, computation in program.scheduled():
        for place, instruction in enumerate(computation.instructions):
            if instruction.opcode.removesuffix("-start") in _SENT:
                overlapped = instruction.opcode.endswith("-start") and _hidden(computation, place, computes)
                found.append(described(times, computation, instruction, overlapped))
        for parts in _fused(program, computation).values():
            # The start and the end, which are of the kind kCustom, are the collective's own work.
            beside = [fusion for fusion, *_ in parts if fusion.attribute("kind") != "kCustom"]
            exchange = described(times, *parts[0][1:], any(computes(computation, fusion) for fusion in beside))
            long_enough = sum(moving(computation, fusion) for fusion in beside) >= exchange.seconds
            found.append(dataclasses.replace(exchange, overlapped=exchange.overlapped or long_enough))
    return found


def _fused(program: Program, computation: Computation) -> dict[str, list[tuple[Instruction, Computation, Instruction]]]:
    """Collectives that a TPU's compiler took apart and put into fusions, beside what is computed meanwhile.

    A start, fusions with something to compute each and an end name the same channel: together they are one collective.

    Returns:
      By channel its parts: the fusion, the computation inside it and the collective there.
    """
    parts: dict[str, list[tuple[Instruction, Computation, Instruction]]] = {}
    for fusion in computation.instructions:
        for _, inner in program.called(fusion) if fusion.opcode == "fusion" else ():
            for each in inner.instructions:
                if each.opcode.removesuffix("-start") in _SENT:
                    parts.setdefault(each.attribute("channel_id"), []).append((fusion, inner, each))
    return parts


def link_seconds(kind: str, payload: int, group: int, hosts: int, chip: Chip) -> float:
    """Bytes that must leave a device (and, for several hosts, a host) over what its links take out of it."""
    within = _SENT[kind](group) * payload / chip.link_bandwidth
    if hosts == 1 or not chip.network_bandwidth:
        return within
    return max(within, _SENT[kind](hosts) * payload * hosts / group / chip.network_bandwidth)


def replica_groups(attributes: str, devices: int) -> Int[np.ndarray, "groups members"]:
    """The groups of a collective, in any of the forms the text has; one group of all where it names none."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        along = [place for place, name in enumerate(sizes) if f"'{name}'" in named[2]]
        grid = np.arange(devices).reshape(tuple(sizes.values()))
        members = int(np.prod([grid.shape[place] for place in along]))
        return np.moveaxis(grid, along, range(-len(along), 0)).reshape(-1, members)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        grid = np.arange(devices).reshape(tuple(map(int, iota[3].split(","))))
        if iota[4]:
            grid = grid.transpose(tuple(map(int, iota[4].split(","))))
        return grid.reshape(int(iota[1]), int(iota[2]))
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes):
        return np.array([list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return np.array([[int(pairs[1]), int(pairs[2])]])
    return np.arange(devices)[None]


def _hidden(computation: Computation, start: int, computes: Callable[[Computation, Instruction], bool]) -> bool:
    """Whether matrices are multiplied between a start and what waits for it."""
    name = computation.instructions[start].name
    for instruction in computation.instructions[start + 1 :]:
        if name in instruction.operands:
            return False
        if computes(computation, instruction):
            return True
    return False
