"""What is known of GPUs before one is touched: the numbers of their data sheets."""

from __future__ import annotations

from typing import NamedTuple

from data_tools.errors import UsageError

NODE = 8
"""GPUs that one NVLink domain joins (DGX and HGX of A100, H100 and H200)."""

LINK_RATIO = 0.8
"""Share of a link's bandwidth that collectives are taken to reach. An assumption: no link has been measured here."""


RESERVE = 0.1
"""Share of a GPU that no plan fills, for what plan/memory.py does not count. Our choice."""


def fits(planned: int, gpu_memory: int) -> bool:
    """Whether planned bytes leave `RESERVE` of a GPU free.

    >>> fits(72 * 10**9, 80 * 10**9), fits(73 * 10**9, 80 * 10**9)
    (True, False)
    """
    return planned <= (1 - RESERVE) * gpu_memory


class Gpu(NamedTuple):
    """One GPU and its links; bandwidths in bytes a second, of links one way."""

    name: str
    peak_tflops: float  # dense bf16
    memory: int  # bytes
    memory_bandwidth: float
    nvlink: float
    network: float  # of the node's adapters, by GPU


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312.0, 80 * 10**9, 2.039e12, 300e9, 25e9),
        Gpu("h100", 989.4, 80 * 10**9, 3.35e12, 450e9, 50e9),
        Gpu("h200", 989.4, 141 * 10**9, 4.8e12, 450e9, 50e9),
    )
}
"""SXM cards (Source: NVIDIA's data sheets of A100 80GB, H100 and H200; of the latter two half of the 1,979 TFLOP/s that
hold with sparsity, and of NVLink's 600 and 900 GB/s both ways; of DGX A100, H100 and H200 an adapter of 200 or 400 Gb/s
for each GPU)."""


def known_gpu(name: str) -> Gpu:
    """The GPU of a name, in any case.

    Raises:
        UsageError: Its data sheet is not here.
    """
    if (gpu := GPUS.get(name.lower())) is None:
        raise UsageError(
            f"plan: --gpu {name!r}: its memory and links are not known, so its speed cannot be told; use "
            f"{', '.join(GPUS)}, or state its dense bf16 peak in TFLOP/s and a share of it: --gpu 989.4 --mfu 0.4."
        )
    return gpu


def link(gpu: Gpu, *, size: int, stride: int) -> float:
    """Bytes a second that each rank of a group moves, one way, at `LINK_RATIO`.

    Inside a node it is NVLink. A ring through several nodes leaves each through the adapters of all its members
    there, so members share what they have: 4 of 8 GPUs of a node have 4 adapters.

    Args:
        gpu: Every rank's; its `network` is that of one adapter.
        size: Ranks of the group.
        stride: Distance of two neighbours in global ranks (core's order: TP, CP, DP, PP).

    >>> link(GPUS["h100"], size=8, stride=1) / 1e9, link(GPUS["h100"], size=64, stride=4) / 1e9
    (360.0, 80.0)
    """
    if size * stride <= NODE:
        return gpu.nvlink * LINK_RATIO
    members = max(1, NODE // stride)
    return min(gpu.nvlink, members * gpu.network) * LINK_RATIO
