"""What attention kernels execute: they state the work of all pairs of blocks, and visit those that segments allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from lsm_jax.attention.ranges import block_ranges, padded
from lsm_jax.attention.registry import IMPLEMENTATIONS, blocks_of, resolved
from lsm_jax.objectives.shared import Attended
from lsm_jax.planning.arithmetic import stated_flops
from lsm_jax.planning.hlo import Computation, Instruction


@dataclasses.dataclass(frozen=True)
class Visits:
    """Shares of pairs of blocks that are visited, and of the backward pass's products what the scores take.

    Attributes:
      by_query, by_key: of kernels that go by blocks of queries, by blocks of keys.
      scores_again: of the work of a kernel by keys.
    """

    by_query: float
    by_key: float
    scores_again: float


# By slots of queries and of keys, padded to blocks, as kernels are given them.
Visited = Mapping[tuple[int, int], Visits]


def visited(attended: Sequence[Attended], implementation: str) -> Visited:
    """What an implementation visits for drawn segments. Call it where the mesh of the chips is entered."""
    found = {}
    for each in attended:
        slots = each.queries.shape[1], each.keys.shape[1]
        name = resolved(implementation, *slots)
        blocks = blocks_of(name, *slots, each.size.width // each.size.heads)
        if blocks is None or not IMPLEMENTATIONS[name].skips:
            continue
        ranges = block_ranges(each.queries, each.keys, blocks)
        pairs = ranges.keys.size * ranges.queries.shape[1]
        found[padded(slots[0], blocks.query), padded(slots[1], blocks.key)] = Visits(
            by_query=float(ranges.keys.sum()) / pairs,
            by_key=float(ranges.queries.sum()) / pairs,
            scores_again=1 / IMPLEMENTATIONS[name].backward_by_key,
        )
    return found


def kernel_flops(known: Visited, computation: Computation, call: Instruction) -> float:
    """FLOPs a kernel executes; all that it states where nothing is known of its segments."""
    visits = _visits(known, computation, call)
    share = 1.0 if visits is None else visits.by_key if _goes_by_key(call) else visits.by_query
    return share * stated_flops(call)


def flops_of_scores_again(known: Visited, computation: Computation, call: Instruction) -> float:
    """What of a kernel's FLOPs makes scores a second time, once per pair visited: flash attention's own remat."""
    visits = _visits(known, computation, call)
    if visits is None or not _goes_by_key(call):
        return 0.0
    return visits.scores_again * visits.by_key * stated_flops(call)


def _goes_by_key(call: Instruction) -> bool:
    return "key_gradient" in call.name or "key_gradient" in call.attributes


def _visits(known: Visited, computation: Computation, call: Instruction) -> Visits | None:
    """Of the slots among the heads a kernel is given: [R, S, H, D], or [R, H, D, S] and [R, H, T, D]."""
    heads = [each.shapes[0].dimensions for each in computation.operands(call) if len(each.shapes) == 1]
    heads = [dimensions for dimensions in heads if len(dimensions) == 4][:2]
    if len(heads) < 2:
        return None
    fits = [slots for slots in known if slots[0] in heads[0][1:] and slots[1] in heads[1][1:]]
    return known[fits[0]] if len(fits) == 1 else None
