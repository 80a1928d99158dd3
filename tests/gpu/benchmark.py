"""Tokens/s, model FLOPs utilisation and memory of a training step; prints one line of JSON.

    python -m tests.gpu.benchmark --backend te [--steps 20] [--document-tokens 512] [--kernels]
    torchrun --standalone --nproc-per-node 8 -m tests.gpu.benchmark --backend te --tensor 2 --sharded

`hybrid_130m` in bf16, AdamW: forward, backward, clipping, update, as `megatron_ext.run` does them.
MFU is the model's FLOPs (`megatron_ext/plan/flops.py`) over what the same GPU reached in a bf16 matrix
product of 8192 x 8192 x 8192, best of 20. Memory is the allocator's peak beside what `plan/memory.py` counts,
which leaves temporary buffers out. `--document-tokens` packs documents of so many tokens into the rows and keeps
them apart; their attention costs less than MFU counts, and how long the proof takes that they do not meet is timed
too. `--kernels` adds shares of the GPU's time by kind of kernel, of three more steps, and tokens/s of sampling.
On several GPUs `--rows` is of each data-parallel rank, tokens/s are of all and MFU is of one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from data_tools.strict_yaml import load_yaml
from megatron_ext.models.kernels import describe_layers
from megatron_ext.plan.flops import token_flops
from megatron_ext.plan.memory import memory_per_rank
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.recipe.schema import ModelRecipe, Precision
from megatron_ext.runtime.device import device
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.runtime.seed import seed_everything
from megatron_ext.training.isolation import measure_isolation
from megatron_ext.training.parts import Parts, make_parts
from megatron_ext.training.step import train_step
from tests.gpu.kernel_times import graphed, kernel_times, sampled_tokens_per_s
from tests.support.plans import make_plan
from tests.support.sources import plan_reading, write_source

MODEL = Path(__file__).parents[2] / "recipes" / "models" / "hybrid_130m.yaml"
WARMUP_STEPS = 5
KERNEL_STEPS = 3


def measure(
    plan: StagePlan, steps: int, *, warmup: int, with_kernels: bool, with_graphs: bool = False
) -> dict[str, Any]:
    """Times `steps` training steps after `warmup` others. All ranks must call this."""
    tensor = plan.layout.tensor_model_parallel_size
    with process_groups(Launch.from_environment(), tensor_model_parallel_size=tensor) as groups:
        seed_everything(plan.seed)
        parts = make_parts(plan, groups)
        seconds = []
        for step in range(1, steps + warmup + 1):
            began = time.perf_counter()
            loss = train_step(parts, lr=1e-4, step=step).loss  # reads the loss, so the GPU has finished
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds[warmup:])
        peak_memory = torch.accelerator.max_memory_allocated()
        peak = matmul_peak()
        is_fused = parts.model.config.cross_entropy_loss_fusion
        more: dict[str, Any] = {}
        if with_kernels:
            times = kernel_times(lambda: train_step(parts, lr=1e-4, step=1), steps=KERNEL_STEPS)
            more = {"kernels": times, "sampled_tokens_per_s": sampled_tokens_per_s(parts.model, plan, groups)}
        if with_graphs:
            more["graphed_tokens_per_s"] = sampled_tokens_per_s(parts.model, graphed(plan), groups)
        if plan.data.document_isolation == "full":
            more["isolation"] = isolation_times(parts)
    tokens_per_s = plan.batch.tokens_per_step / median
    flops = sum(token_flops(plan.model, plan.batch.sequence_length).values())
    (planned,) = memory_per_rank(
        plan.model, plan.layout, plan.batch, plan.execution, precision=plan.precision, on_gpu=True
    )
    return {
        "layers": describe_layers(plan),
        "cross_entropy": "te" if is_fused else "core",
        "step_ms": median * 1e3,
        "tokens_per_s": tokens_per_s,
        "flops_per_token": flops,
        "matmul_peak_tflops": peak / 1e12,
        "gpus": plan.layout.world_size,
        "mfu": tokens_per_s * flops / peak / plan.layout.world_size,
        "peak_memory": peak_memory,
        "planned_memory": planned.total,
        "first_step_s": seconds[0],
        "last_loss": loss,
        **more,
    }


def isolation_times(parts: Parts) -> dict[str, Any]:
    """What `training/isolation.py` finds, and the seconds that it takes at first and again."""
    first, again = (measure_isolation(parts.model, parts.plan, parts.groups) for _ in range(2))
    return {"holds": again.holds, "report": str(again), "first_s": first.seconds, "again_s": again.seconds}


def matmul_peak(size: int = 8192) -> float:
    """FLOP/s of the best of 20 square bf16 products."""
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device())
    return 2 * size**3 / min(_seconds_of_product(a) for _ in range(20))


def _seconds_of_product(a: torch.Tensor) -> float:
    began = time.perf_counter()
    float((a @ a)[0, 0])  # waits for the product
    return time.perf_counter() - began


def make_benchmark_plan(
    folder: Path,
    backend: str,
    steps: int,
    rows: int,
    length: int,
    recipe: dict[str, Any],
    *,
    document_tokens: int | None = None,
    precision: Precision = "bf16",
    world_size: int = 1,
    tensor: int = 1,
    is_sharded: bool = False,
) -> StagePlan:
    """A plan that reads random tokens; documents of `document_tokens` are kept apart.

    Args:
        folder: Takes the tokens.
        backend: Whose layers.
        steps: To be timed.
        rows: Of a step on each data-parallel rank.
        length: Tokens of a row.
        recipe: The model's keys.
        document_tokens: Of each document; None makes them as long as a row and does not keep them apart.
        precision: Of the forward pass.
        world_size: Ranks.
        tensor: Ranks that share a layer, and the tokens between products.
        is_sharded: Whether data-parallel ranks share the optimizer's state, and send while they compute.
    """
    data = world_size // tensor
    rows_of_rank, rows = rows, rows * data
    samples = (steps + WARMUP_STEPS + KERNEL_STEPS) * rows
    tokens = torch.randint(1, 4000, (samples + 1, length), generator=torch.Generator().manual_seed(0))
    write_source(folder / "toy", tokens.reshape(-1, document_tokens or length).tolist())
    plan = plan_reading(
        {"toy": (folder / "toy", samples)},
        global_batch_size=rows,
        micro_batch_size=rows_of_rank,
        layout={
            "tensor_model_parallel_size": tensor,
            "data_parallel_size": data,
            "sequence_parallel": tensor > 1,
            "use_distributed_optimizer": is_sharded,
            "overlap_grad_reduce": is_sharded,
            "overlap_param_gather": is_sharded,
        },
        batch={"sequence_length": length},
        data={"document_isolation": "none" if document_tokens is None else "full"},
        model=recipe,
        model_size=make_plan().model_size.model_copy(update={"padded_vocab_size": ModelRecipe(**recipe).vocab_size}),
        precision=precision,
    )
    return plan.model_copy(update={"layout": plan.layout.model_copy(update={"backend": backend})})


def main() -> None:
    """Measures one backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["local", "te"], required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=8, help="rows of a step, of each data-parallel rank")
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--document-tokens", type=int, help="of each document, a divisor of the row; kept apart")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--tensor", type=int, default=1, help="ranks that share a layer; the rest is data parallel")
    parser.add_argument("--sharded", action="store_true", help="distributed optimizer, sums and gathers overlapped")
    parser.add_argument("--kernels", action="store_true", help="shares of the GPU's time, and sampling")
    parser.add_argument("--graphs", action="store_true", help="sampling whose full steps are CUDA graphs")
    parser.add_argument("--only-mamba", action="store_true", help="one step of one Mamba-2 layer, to compile it")
    args = parser.parse_args()
    recipe, steps, warmup = load_yaml(args.model).data, args.steps, WARMUP_STEPS
    if args.only_mamba:
        recipe |= {"hybrid_layer_pattern": "M", "vocab_size": 4096}
        steps, warmup = 1, 0
    launch = Launch.from_environment()
    with tempfile.TemporaryDirectory() as folder:
        plan = make_benchmark_plan(
            Path(folder),
            args.backend,
            steps,
            args.rows,
            args.sequence_length,
            recipe,
            document_tokens=args.document_tokens,
            precision=args.precision,
            world_size=launch.world_size,
            tensor=args.tensor,
            is_sharded=args.sharded,
        )
        found = measure(plan, steps, warmup=warmup, with_kernels=args.kernels, with_graphs=args.graphs)
    shape = {"model": args.model.stem, "rows": args.rows, "sequence_length": args.sequence_length}
    shape |= {"document_tokens": args.document_tokens, "precision": args.precision}
    shape |= {"tensor": args.tensor, "steps": steps}
    if launch.is_main:
        print(json.dumps({"backend": args.backend, **shape, **found}))


if __name__ == "__main__":
    main()
