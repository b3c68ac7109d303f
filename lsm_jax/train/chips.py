"""Accelerators by name: what their makers say they reach. The one table behind MFU and `lsm plan`.

All figures are of one chip, dense bfloat16, one direction of a link, in FLOP/s, bytes and bytes per second.
"""

from __future__ import annotations

import dataclasses
import re

_GIB = 2**30
_CLOUD_TPU = "docs.cloud.google.com/tpu/docs"
_DATA_SHEET = "NVIDIA data sheet"


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator.

    Attributes:
      name: ours, as topologies are named.
      kinds: how JAX's `device_kind` begins.
      peak: dense bfloat16 FLOP/s.
      memory: bytes of high-bandwidth memory.
      memory_bandwidth: bytes per second to and from it.
      link_bandwidth: bytes per second out of the chip over all its fast links together (ICI, NVLink), one way.
      network_bandwidth: the same between hosts, for chips whose fast links end at the host; 0 where they do not.
      devices: JAX devices a chip is.
      source: who says so.
    """

    name: str
    kinds: tuple[str, ...]
    peak: float
    memory: int
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    devices: int
    source: str

    def per_device(self) -> Chip:
        """The share of one JAX device, so that a chip of two devices is two of these."""
        share = self.devices
        return dataclasses.replace(
            self,
            peak=self.peak / share,
            memory=self.memory // share,
            memory_bandwidth=self.memory_bandwidth / share,
            link_bandwidth=self.link_bandwidth / share,
            network_bandwidth=self.network_bandwidth / share,
            devices=1,
        )


# Links of v4 and v5e: the older pages' 2400 and 1600 Gbit/s, which is one way; of the others half of what the pages
# call bidirectional. Networks are those of NVIDIA's own DGX hosts: 200 Gbit/s a GPU for A100, 400 from H100 on.
CHIPS: tuple[Chip, ...] = (
    Chip("v4", ("TPU v4",), 275e12, 32 * _GIB, 1228e9, 300e9, 0, 1, f"{_CLOUD_TPU}/v4"),
    Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * _GIB, 819e9, 200e9, 0, 1, f"{_CLOUD_TPU}/v5e"),
    Chip("v5p", ("TPU v5",), 459e12, 95 * _GIB, 2765e9, 600e9, 0, 1, f"{_CLOUD_TPU}/v5p"),
    Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * _GIB, 1638e9, 400e9, 0, 1, f"{_CLOUD_TPU}/v6e"),
    Chip("tpu7x", ("TPU7x",), 2307e12, 192 * _GIB, 7380e9, 600e9, 0, 2, f"{_CLOUD_TPU}/tpu7x"),
    Chip("a100", ("NVIDIA A100-SXM4-80GB",), 312e12, 85_100_068_864, 2039e9, 300e9, 25e9, 1, f"{_DATA_SHEET} A100"),
    Chip("a100-40gb", ("NVIDIA A100",), 312e12, 42_297_786_368, 1555e9, 300e9, 25e9, 1, f"{_DATA_SHEET} A100"),
    Chip("h100", ("NVIDIA H100 80GB HBM3",), 989e12, 84_942_979_072, 3352e9, 450e9, 50e9, 1, f"{_DATA_SHEET} H100 SXM"),
    Chip("h100-pcie", ("NVIDIA H100",), 756e12, 85_899_345_920, 2039e9, 64e9, 50e9, 1, f"{_DATA_SHEET} H100 PCIe"),
    Chip("h200", ("NVIDIA H200",), 989e12, 151_397_597_184, 4800e9, 450e9, 50e9, 1, f"{_DATA_SHEET} H200"),
    Chip("b200", ("NVIDIA B200",), 2250e12, 191_514_411_008, 7672e9, 900e9, 50e9, 1, f"{_DATA_SHEET} DGX B200"),
    Chip("l4", ("NVIDIA L4",), 121e12, 24 * _GIB, 300e9, 32e9, 0, 1, f"{_DATA_SHEET} L4"),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip a JAX device of this kind is part of, None where the table has none; the longest beginning counts."""
    # An L40S is no L4.
    fitting = [
        (len(kind), chip) for chip in CHIPS for kind in chip.kinds if re.match(rf"{kind}(?!\d)", device_kind, re.I)
    ]
    return max(fitting, key=lambda entry: entry[0], default=(0, None))[1]
