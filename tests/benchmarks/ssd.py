"""The chunked SSD and the causal convolution of this project against their plain torch forms.

    python tests/benchmarks/ssd.py [--quick] [--threads 2]

Forward and backward in float32, batch 1. The plain SSD is the einsum listing of the Mamba-2 paper under
autograd; the plain convolution is depthwise F.conv1d. The two alternate; medians are compared. Nothing
is asserted about time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from megatron_ext.models.conv import causal_conv1d_silu
from megatron_ext.models.ssd import ssd_chunked

HEADS, WIDTH, GROUPS = 8, 64, 2
CHANNELS = 768


def plain_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *, chunk_size: int) -> Tensor:
    """Listing 1 of arXiv 2405.21060, with one einsum a term and heads that repeat B and C."""
    B, C = (t.repeat_interleave(HEADS // GROUPS, dim=2) for t in (B, C))
    x = x * dt[..., None]
    x, a, B, C = (t.unflatten(1, (-1, chunk_size)) for t in (x, dt * A, B, C))
    a = a.permute(0, 3, 1, 2)  # [b, h, c, q]
    total = a.cumsum(-1)
    L = segment_sums(a).exp()
    inside = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, L, x)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, (total[..., -1:] - total).exp(), x)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
    between = segment_sums(F.pad(total[..., -1], (1, 0))).exp()
    states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
    carried = torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states, total.exp())
    return (inside + carried).flatten(1, 2)


def segment_sums(a: Tensor) -> Tensor:
    """Sum of a over (j, i] for every i >= j, else -inf."""
    length = a.shape[-1]
    a = a[..., None].expand(*a.shape, length)
    ones = torch.ones(length, length, dtype=torch.bool)
    return a.masked_fill(~ones.tril(-1), 0).cumsum(-2).masked_fill(~ones.tril(), -torch.inf)


def plain_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise F.conv1d, which wants channels before tokens."""
    return F.silu(F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight, bias, groups=CHANNELS)).transpose(1, 2)


def compare(
    name: str, ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[Tensor], repeats: int
) -> None:
    """Prints median times of forward and backward, alternating."""
    inputs = [t.requires_grad_() for t in inputs]
    weights = torch.randn_like(ours(*inputs))
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(repeats + 1):
        for label, function in (("ours", ours), ("plain", plain)):
            begin = time.perf_counter()
            torch.autograd.grad(function(*inputs), inputs, weights)
            times[label].append(time.perf_counter() - begin)
    ms = {label: statistics.median(values[1:]) * 1e3 for label, values in times.items()}
    print(f"  {name:<28} ours {ms['ours']:8.1f} ms   plain {ms['plain']:8.1f} ms   {ms['plain'] / ms['ours']:.2f}x")


def ssd_inputs(length: int, state_dim: int) -> list[Tensor]:
    """Random x, dt, A, B, C."""
    shared = (1, length, GROUPS, state_dim)
    return [
        torch.randn(1, length, HEADS, WIDTH),
        torch.rand(1, length, HEADS) * 0.1,
        -torch.rand(HEADS) * 16,
        torch.randn(shared),
        torch.randn(shared),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="length 512 only, three repeats")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    repeats = 3 if args.quick else 9
    for length in [512] if args.quick else [512, 2048]:
        print(f"length {length}, {HEADS} heads of {WIDTH}, {GROUPS} groups, {args.threads} threads")
        for state_dim in (64, 128):
            for chunk_size in (32, 64, 128):
                compare(
                    f"SSD, state {state_dim}, chunk {chunk_size}",
                    lambda *inputs, q=chunk_size: ssd_chunked(*inputs, chunk_size=q)[0],
                    lambda *inputs, q=chunk_size: plain_ssd(*inputs, chunk_size=q),
                    ssd_inputs(length, state_dim),
                    repeats,
                )
        conv = [torch.randn(1, length, CHANNELS), torch.randn(CHANNELS, 1, 4), torch.randn(CHANNELS)]
        compare(f"convolution, {CHANNELS} channels", causal_conv1d_silu, plain_conv, conv, repeats)


if __name__ == "__main__":
    main()
