"""What attention kernels execute: they state the work of all pairs of blocks, and visit those that segments allow."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from lsm_jax.attention.ranges import block_ranges, padded
from lsm_jax.attention.registry import IMPLEMENTATIONS, blocks_of, resolved
from lsm_jax.objectives.shared import Attended
from lsm_jax.planning.arithmetic import stated_flops
from lsm_jax.planning.hlo import Computation, Instruction

_OURS = "segment_attention_"


@dataclasses.dataclass(frozen=True)
class Visits:
    """What is visited of rows of so many slots.

    Attributes:
      by_query, by_key: shares of pairs of blocks, of kernels that go by blocks of queries, by blocks of keys.
      products: of a pair of blocks, by kernel.
    """

    by_query: float
    by_key: float
    products: Mapping[str, int]


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
            products={
                "forward": 2,
                "query_gradient": IMPLEMENTATIONS[name].backward_by_query,
                "key_gradient": IMPLEMENTATIONS[name].backward_by_key,
            },
        )
    return found


def kernel_name(call: Instruction) -> str:
    """A kernel of ours, or one that states its cost, by name; empty for other calls. GPUs tell it in an attribute."""
    if call.opcode != "custom-call":
        return ""
    if ours := re.search(rf"{_OURS}[a-z_]+", f"{call.name} {call.attributes}"):
        return ours[0]
    return re.sub(r"\.\d+$", "", call.name) if stated_flops(call) else ""


def kernel_flops(known: Visited, computation: Computation, call: Instruction) -> float:
    """FLOPs a kernel executes; all that it states where nothing is known of its segments."""
    part, found = kernel_name(call).removeprefix(_OURS), _visits(known, computation, call)
    if found is None or part not in found[1].products:
        return stated_flops(call)
    pairs, visits = found
    return (visits.by_key if part == "key_gradient" else visits.by_query) * visits.products[part] * pairs


def flops_of_scores_again(known: Visited, computation: Computation, call: Instruction) -> float:
    """What of a kernel's FLOPs makes scores a second time, once per pair visited: flash attention's own remat."""
    found = _visits(known, computation, call)
    if found is None or kernel_name(call) != f"{_OURS}key_gradient":
        return 0.0
    pairs, visits = found
    return visits.by_key * pairs


def _visits(known: Visited, computation: Computation, call: Instruction) -> tuple[float, Visits] | None:
    """FLOPs of one product over all pairs, and what is visited of them.

    By the slots among the heads a kernel is given: [R, S, H, D] and [R, T, H, D], or [R, H, D, S] and [R, H, T, D].
    """
    heads = [each.shapes[0] for each in computation.operands(call) if len(each.shapes) == 1]
    heads = [shape for shape in heads if len(shape.dimensions) == 4][:2]
    if len(heads) < 2:
        return None
    query, key = heads
    fits = [slots for slots in known if slots[0] in query.dimensions[1:] and slots[1] in key.dimensions[1:]]
    return (2.0 * query.size * fits[0][1], known[fits[0]]) if len(fits) == 1 else None
