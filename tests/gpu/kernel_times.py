"""Where a training step's GPU time goes, by kind of kernel, and how fast texts are sampled."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.profiler import ProfilerActivity, profile

from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Prompt, Sampling

KINDS = {
    "ssd": r"_chunk_|_bmm_|_state_passing",
    "convolution": r"causal_conv1d",
    "attention": r"flash|fmha|sdpa|attention",
    "matrix products": r"gemm|cutlass|nvjet|cublas|splitK",
    "norms": r"norm",
    "optimizer": r"adam|multi_tensor",
}
"""Kinds by the name of a kernel; the first that matches counts, everything else is "other"."""
PROMPT, NEW = 64, 128
TEXTS = (1, 8, 32)


def kernel_times(step: Callable[[], Any], *, steps: int) -> dict[str, Any]:
    """Shares of the GPU's busy time by kind, busy milliseconds a step, and the ten longest kernels of `steps` steps."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        for _ in range(steps):
            step()
    events = [
        event
        for event in record.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    by_kind: Counter[str] = Counter()
    for event in events:
        by_kind[_kind_of(event.key)] += event.self_device_time_total
    total = sum(by_kind.values())
    longest = sorted(events, key=lambda event: -event.self_device_time_total)[:10]
    return {
        "busy_ms": total / steps / 1e3,
        "shares": {kind: time_us / total for kind, time_us in by_kind.most_common()},
        "longest": {_short(event.key): event.self_device_time_total / steps / 1e3 for event in longest},
    }


def _short(name: str) -> str:
    """A kernel's name without what all of torch's have, for the part that differs stands behind it."""
    return re.sub(r"void |at::native::|\(anonymous namespace\)::|at::detail::|std::", "", name)[:160]


def _kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def graphed(plan: StagePlan) -> StagePlan:
    """The same plan, whose sampling's full steps are CUDA graphs: as of an rl stage that asks for them."""
    execution = plan.execution.model_copy(update={"cuda_graphs": True})
    return plan.model_copy(update={"stage": "rl", "execution": execution})


def sampled_tokens_per_s(model: Any, plan: StagePlan, groups: ProcessGroupCollection) -> dict[str, float]:
    """Tokens/s of `NEW` tokens after prompts of `PROMPT`, by the texts sampled at once; the prompts' reading counts."""
    found = {}
    for texts in TEXTS:
        engine = InProcessEngine(model, plan, groups, num_slots=texts, tokens_per_slot=PROMPT + NEW)
        prompts = [Prompt(tuple(range(1, PROMPT + 1)), seed=seed) for seed in range(texts)]
        for _ in range(2):  # the first call compiles
            began = time.perf_counter()
            completions = engine.generate(prompts, Sampling(NEW))  # the tokens are on the CPU, so the GPU has finished
            seconds = time.perf_counter() - began
        found[str(texts)] = sum(len(completion.token_ids) for completion in completions) / seconds
    return found
