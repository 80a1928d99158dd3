"""Where a training step's GPU time goes, by kind of kernel, and how fast one text is generated."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from megatron_ext.rollout.generate import next_token_logits

KINDS = {
    "ssd": r"_chunk_|_bmm_|_state_passing",
    "convolution": r"causal_conv1d",
    "attention": r"flash|fmha|sdpa|attention",
    "matrix products": r"gemm|cutlass|nvjet|cublas|splitK",
    "optimizer": r"adam|multi_tensor",
}
"""Kinds by the name of a kernel; the first that matches counts, everything else is "other"."""
PROMPT, NEW = 64, 128


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
        "longest": {event.key[:80]: event.self_device_time_total / steps / 1e3 for event in longest},
    }


def _kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def generated_tokens_per_s(model: Any) -> float:
    """Tokens/s of one text of `NEW` tokens after a prompt of `PROMPT`, with caches; the first token is not timed."""
    new: list[int] = []
    began = 0.0
    for _ in range(2):  # the first text compiles
        new.clear()
        for logits in next_token_logits(model, list(range(1, PROMPT + 1)), new, NEW):
            new.append(int(logits.argmax()))  # waits for the token
            if len(new) == 1:
                began = time.perf_counter()
    return (NEW - 1) / (time.perf_counter() - began)
