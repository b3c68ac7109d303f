"""What XLA is told beyond its defaults, by platform: `lsm plan` compiles with what `lsm train` compiles with."""

from __future__ import annotations

from collections.abc import Mapping

Options = dict[str, bool | int | float | str]

_OPTIONS: Mapping[str, Options] = {
    # Gradients are summed inside the backward scan, layer by layer; these let the sums travel while others compute.
    "gpu": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "tpu": {
        # Sums of a layer's gradients that are combined into one wait for the last of them, and overlap nothing.
        "xla_jf_crs_combiner_threshold_in_bytes": 2**17,
        "xla_enable_async_all_reduce": True,
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        "xla_tpu_enable_async_collective_fusion_fuse_kloop_fusions": True,
        # Elementwise work hides a sum less surely than a matrix product: told that it hides nothing, the scheduler puts
        # sums beside products, as far as there are any.
        "xla_lhs_loop_fusion_latency_multiplier": 0.0,
    },
}


def compiler_options(platform: str) -> Options:
    """Options for `compile(compiler_options=...)` on a platform of JAX: cpu, gpu, tpu."""
    return dict(_OPTIONS.get(platform, {}))
