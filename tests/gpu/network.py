"""Bandwidth of collectives over the GPUs of this machine; the first rank prints one line of JSON.

    python -m torch.distributed.run --standalone --nproc-per-node 8 -m tests.gpu.network [--mebibytes 256]

Bus bandwidth: what each link must carry for the bytes that a rank holds or receives, so that it can be held against
the hardware's number whatever the number of ranks: 2 (n - 1) / n of them in an all-reduce, (n - 1) / n in the others.

Source of the factors: NVIDIA/nccl-tests, `doc/PERFORMANCE.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from megatron_ext.runtime.device import device
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups

ROUNDS = 20
WARMUP = 5


def bus_bandwidths(mebibytes: int, *, rounds: int = ROUNDS) -> dict[str, float]:
    """GB/s by collective. All ranks must call this, inside process groups.

    Args:
        mebibytes: Of the larger side of each, in bf16.
        rounds: Whose median counts, behind some others.
    """
    ranks = dist.get_world_size()
    numel = mebibytes * 2**20 // 2 // ranks * ranks
    whole = torch.ones(numel, dtype=torch.bfloat16, device=device())
    part = torch.ones(numel // ranks, dtype=torch.bfloat16, device=device())
    calls: dict[str, tuple[Callable[[], object], float]] = {
        "all-reduce": (lambda: dist.all_reduce(whole), 2 * (ranks - 1) / ranks),
        "all-gather": (lambda: dist.all_gather_into_tensor(whole, part), (ranks - 1) / ranks),
        "reduce-scatter": (lambda: dist.reduce_scatter_tensor(part, whole), (ranks - 1) / ranks),
    }
    found = {}
    for name, (call, factor) in calls.items():
        seconds = [_seconds(call, whole) for _ in range(WARMUP + rounds)]
        found[name] = factor * whole.nbytes / statistics.median(seconds[WARMUP:]) / 1e9
    return found


def _seconds(call: Callable[[], object], tensor: torch.Tensor) -> float:
    dist.barrier()
    began = time.perf_counter()
    call()
    float(tensor[0])  # waits for the device
    return time.perf_counter() - began


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    launch = Launch.from_environment()
    with process_groups(launch):
        found = bus_bandwidths(args.mebibytes, rounds=args.rounds)
    if launch.is_main:
        print(json.dumps({"ranks": launch.world_size, "mebibytes": args.mebibytes, "collectives_gb_per_s": found}))


if __name__ == "__main__":
    main()
