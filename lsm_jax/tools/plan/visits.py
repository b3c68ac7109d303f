"""What attention kernels execute: they state the work of all pairs of blocks, and visit those that segments allow."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lsm_jax.nn.attention import BlockSparsity, block_sparsity
from lsm_jax.nn.attention.api import KEY_MAJOR_KERNELS
from lsm_jax.objectives.shared import AttentionShape
from lsm_jax.tools.plan.arithmetic import stated_flops
from lsm_jax.tools.plan.hlo import Computation, Instruction

_OURS = "segment_attention_"


Visited = Sequence[BlockSparsity]


def visited(attended: Sequence[AttentionShape], implementation: str) -> Visited:
    """What an implementation visits for drawn segments. Call it where the mesh of the chips is entered."""
    found = [
        block_sparsity(implementation, each.queries, each.keys, each.size.width // each.size.heads) for each in attended
    ]
    return [each for each in found if each]


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
    pairs, known_visits = found
    share = known_visits.by_key if part in KEY_MAJOR_KERNELS else known_visits.by_query
    return share * known_visits.products[part] * pairs


def flops_of_scores_again(known: Visited, computation: Computation, call: Instruction) -> float:
    """What of a kernel's FLOPs makes scores a second time, once per pair visited: flash attention's own remat."""
    found = _visits(known, computation, call)
    if found is None or kernel_name(call).removeprefix(_OURS) not in KEY_MAJOR_KERNELS:
        return 0.0
    pairs, known_visits = found
    return known_visits.by_key * pairs


def _visits(known: Visited, computation: Computation, call: Instruction) -> tuple[float, BlockSparsity] | None:
    """FLOPs of one product over all pairs, and what is visited of them.

    By the slots among the heads a kernel is given: [R, S, H, D] and [R, T, H, D], or [R, H, D, S] and [R, H, T, D].
    """
    heads = [each.shapes[0] for each in computation.operands(call) if len(each.shapes) == 1]
    heads = [shape for shape in heads if len(shape.dimensions) == 4][:2]
    if len(heads) < 2:
        return None
    query, key = heads
    fits = {
        each.slots: each
        for each in known
        if each.slots[0] in query.dimensions[1:] and each.slots[1] in key.dimensions[1:]
    }
    if len(fits) != 1:
        return None
    [(slots, found)] = fits.items()
    return 2.0 * query.size * slots[1], found
