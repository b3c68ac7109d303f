"""What a topology of `lsm plan` is called by the engines that start runs on it: the one table of the launchers."""

from __future__ import annotations

import dataclasses
import math

from lsm_jax.errors import UserError
from lsm_jax.tools.plan.topologies import EXAMPLES, GPUS, chip_named, split_name

CHIPS_PER_TPU_HOST = 4


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """The names of one kind of chip.

    Attributes:
      gke: value of GKE's node label `gke-tpu-accelerator` or, for GPUs, `gke-accelerator`.
      cloud_tpu: `AcceleratorConfig.Type` of the Cloud TPU API; empty where only GKE has the chip.
      runtime: the software of a Cloud TPU VM.
    """

    gke: str
    cloud_tpu: str = ""
    runtime: str = ""


ACCELERATORS = {
    "v4": Accelerator("tpu-v4-podslice", "V4", "tpu-ubuntu2204-base"),
    "v5e": Accelerator("tpu-v5-lite-podslice", "V5LITE_POD", "v2-alpha-tpuv5-lite"),
    "v5p": Accelerator("tpu-v5p-slice", "V5P", "v2-alpha-tpuv5"),
    "v6e": Accelerator("tpu-v6e-slice", "V6E", "v2-alpha-tpuv6e"),
    "tpu7x": Accelerator("tpu7x"),
    "a100": Accelerator("nvidia-a100-80gb"),
    "h100": Accelerator("nvidia-h100-80gb"),
    "h200": Accelerator("nvidia-h200-141gb"),
    "b200": Accelerator("nvidia-b200"),
}


@dataclasses.dataclass(frozen=True)
class Pod:
    """The machines of a run.

    Attributes:
      kind: of the chip, as in `lsm plan --topology KIND:SHAPE`; `cpu` for nodes without accelerators.
      shape: chips along each axis of a TPU slice; hosts x GPUs; nodes x processes of `cpu`.
      slices: TPU slices that the data-centre network joins.
      hosts: of all slices.
      chips_per_host: chips, GPUs, or processes of `cpu`.
      devices: JAX devices of all hosts.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int
    hosts: int
    chips_per_host: int
    devices: int

    @property
    def is_tpu(self) -> bool:
        """Whether it is made of TPU slices."""
        return self.kind in ACCELERATORS and self.kind not in GPUS

    @property
    def topology(self) -> str:
        """The shape in words, `16x16`."""
        return "x".join(map(str, self.shape))


def pod(name: str, slices: int = 1) -> Pod:
    """The machines of a topology; UserError if there is no such topology."""
    if name.lower().startswith("cpu:"):
        kind, shape = "cpu", split_name(name.lower().replace("cpu:", "h100:"))[1]
    else:
        kind, shape = split_name(name)
    is_tpu = kind != "cpu" and kind not in GPUS
    if slices < 1 or (slices > 1 and not is_tpu):
        raise UserError(f"--slices {slices}: TPUs have slices, 1 or more; a topology of GPUs counts all hosts.")
    if not is_tpu:
        hosts, per_host = shape
        return Pod(kind, shape, 1, hosts, per_host, hosts * per_host)
    chips = math.prod(shape)
    per_host = min(chips, CHIPS_PER_TPU_HOST)
    if chips % per_host:
        raise UserError(f"no topology {name!r}: a host has {per_host} chips. Known: {', '.join(EXAMPLES[kind])}.")
    devices = slices * chips * chip_named(kind).devices
    return Pod(kind, shape, slices, slices * chips // per_host, per_host, devices)
