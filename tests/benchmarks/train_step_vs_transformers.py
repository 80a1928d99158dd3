"""Tokens per second of a training step: ours and transformers' NemotronHForCausalLM, same shapes, one run.

    python tests/benchmarks/train_step_vs_transformers.py [--quick] [--threads 2]

Forward, cross entropy, backward and AdamW of a 7M hybrid, batch 1, both in plain torch on the CPU. Steps of
the two alternate, so that a busy machine slows both; medians are compared. Nothing is asserted about time.
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

sys.path.insert(0, str(Path(__file__).parents[2]))

from megatron_ext.models.build import build_model
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from tests.support.nemotron_h import nemotron_h
from tests.support.plans import make_plan

VOCAB_SIZE = 4096
MODEL = {
    "hybrid_layer_pattern": "M-M-M*M-M-",
    "hidden_size": 256,
    "vocab_size": VOCAB_SIZE,
    "ffn_hidden_size": 1024,
    "num_attention_heads": 8,
    "num_query_groups": 2,
    "kv_channels": 32,
    "mamba_num_heads": 8,
    "mamba_head_dim": 64,
    "mamba_state_dim": 64,
    "mamba_num_groups": 2,
}

Step = Callable[[], float]


def plan_of(length: int, precision: str) -> StagePlan:
    return make_plan(
        model=MODEL,
        model_size={"padded_vocab_size": VOCAB_SIZE},
        batch={"sequence_length": length, "global_batch_size": 1, "micro_batch_size": 1},
        precision=precision,
    )


def training_step(model: torch.nn.Module, loss_of: Callable[[torch.Tensor], torch.Tensor], length: int) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, VOCAB_SIZE, (1, length + 1), generator=torch.Generator().manual_seed(0))

    def step() -> float:
        begin = time.perf_counter()
        loss_of(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begin

    return step


def our_step(model: torch.nn.Module, length: int) -> Step:
    positions = torch.arange(length)[None]
    return training_step(
        model, lambda tokens: model(tokens[:, :-1], positions, None, labels=tokens[:, 1:]).mean(), length
    )


def their_step(model: torch.nn.Module, length: int) -> Step:
    return training_step(model, lambda tokens: F.cross_entropy(model(tokens[:, :-1]).logits[0], tokens[0, 1:]), length)


def alternate(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median seconds of each step; one unmeasured round first."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            times[name].append(step())
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def gemm_peak(dtype: torch.dtype) -> float:
    """FLOP/s of the best of ten square matrix products."""
    a = torch.randn(1024, 1024, dtype=dtype)
    best = min(_seconds(lambda: a @ a) for _ in range(10))
    return 2 * 1024**3 / best


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def matmul_flops(model: torch.nn.Module, length: int) -> float:
    """FLOPs of a step's matrix products with weights: 6 a weight and token; SSD and attention are left out."""
    weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embedding" not in name)
    return 6.0 * weights * length


def has_fast_bf16() -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="sequence 512 only, three repeats")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lengths, repeats = ([512], 3) if args.quick else ([512, 2048], 9)
    peak = gemm_peak(torch.float32)
    print(f"threads {args.threads}, fp32 GEMM peak {peak / 1e9:.0f} GFLOP/s")
    with process_groups(Launch(rank=0, local_rank=0, world_size=1)) as groups:
        for length in lengths:
            ours, theirs = build_model(plan_of(length, "fp32"), groups), nemotron_h(plan_of(length, "fp32"))
            steps = {"ours": our_step(ours, length), "transformers": their_step(theirs, length)}
            if has_fast_bf16():
                steps["ours bf16"] = our_step(build_model(plan_of(length, "bf16"), groups), length)
            seconds = alternate(steps, repeats)
            size = sum(p.numel() for p in ours.parameters())
            share = matmul_flops(ours, length) / seconds["ours"] / peak
            print(f"sequence {length}, {size:,} parameters")
            for name, value in seconds.items():
                print(f"  {name:<13} {value * 1e3:8.1f} ms  {length / value:8.0f} tokens/s")
            print(f"  ours / transformers {seconds['transformers'] / seconds['ours']:.2f}x tokens/s")
            print(f"  weights' matrix products run at {share:.0%} of the GEMM peak over the whole step")
            if "ours bf16" in seconds:
                print(f"  bf16 / fp32 {seconds['ours'] / seconds['ours bf16']:.2f}x tokens/s")
            else:
                print("  bf16 / fp32 not measured: this CPU has neither avx512_bf16 nor AMX")


if __name__ == "__main__":
    main()
