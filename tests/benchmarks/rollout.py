"""How fast the in-process engine samples: `python tests/benchmarks/rollout.py [--new-tokens 512] [--batches 1 8 32]`.

Ratios of one process with one thread, random weights of `recipes/models/hybrid_tiny.yaml`, prompts of 64 tokens:

- cached against recomputed: the whole text again for every token, on the training path without gradients. It is timed
  at some lengths and integrated between them, which is exact for a cost that is linear or quadratic in the length.
- batched against one by one: the same samples through 32 slots and through one.
- against `generate` of transformers' NemotronHForCausalLM with the same weights and its own cache, sampling.
- prefix sharing: 8 samples of long prompts as one group each, and as 8 prompts.

The last lines say where a step of 32 goes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parents[2]))

from megatron_ext.models.build import build_model
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Prompt, Sampling
from megatron_ext.runtime.device import plain_torch
from tests.support.nemotron_h import copy_weights, nemotron_h
from tests.support.one_process import logits_of, one_process, random_tokens
from tests.support.plans import make_plan

HYBRID_TINY: dict[str, Any] = {
    "hybrid_layer_pattern": "M-M*-M-",
    "hidden_size": 128,
    "vocab_size": 4096,
    "ffn_hidden_size": 384,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 32,
    "mamba_num_heads": 8,
    "mamba_head_dim": 32,
    "mamba_state_dim": 32,
    "mamba_num_groups": 2,
}
VOCAB_SIZE = 4096
PROMPT_TOKENS = 64
BATCHES = (1, 8, 32)


def main() -> None:
    """Prints a line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--new-tokens", type=int, default=512, help="of every sample")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="samples at once")
    args = parser.parse_args()
    plan = make_plan(
        model=HYBRID_TINY,
        model_size={"padded_vocab_size": VOCAB_SIZE},
        data={"tokenizer_vocab_size": VOCAB_SIZE},
        batch={"sequence_length": PROMPT_TOKENS + args.new_tokens},
    )
    with one_process() as groups:
        model = build_model(plan, groups).eval()
        for batch in args.batches:
            compare_batch(model, plan, groups, batch, args.new_tokens)
        share_prefixes(model, plan, groups)
        show_step(model, plan, groups, args.batches[-1])


def compare_batch(
    model: HybridModel, plan: StagePlan, groups: ProcessGroupCollection, batch: int, new_tokens: int
) -> None:
    """Cached, recomputed, one by one, and transformers, at one batch size."""
    prompts = [
        Prompt(tuple(random_tokens(1, PROMPT_TOKENS, seed=i, vocab_size=VOCAB_SIZE)[0].tolist()), seed=i)
        for i in range(batch)
    ]
    cached = sampling_time(model, plan, groups, prompts, new_tokens=new_tokens, num_slots=batch)
    tokens = batch * new_tokens
    print(f"batch {batch}: cached {tokens / cached:,.0f} tokens/s ({1e3 * cached / new_tokens:.2f} ms a step)")
    recomputed = recomputed_time(model, batch, new_tokens)
    print(f"batch {batch}: against recomputation ({tokens / recomputed:,.0f} tokens/s) {recomputed / cached:.1f}x")
    if batch > 1:
        one_by_one = sampling_time(model, plan, groups, prompts[:4], new_tokens=new_tokens, num_slots=1) / 4 * batch
        print(f"batch {batch}: against one by one {one_by_one / cached:.1f}x")
    theirs = transformers_time(model, plan, prompts, new_tokens)
    print(f"batch {batch}: against transformers' generate ({tokens / theirs:,.0f} tokens/s) {theirs / cached:.1f}x")


def sampling_time(
    model: HybridModel,
    plan: StagePlan,
    groups: ProcessGroupCollection,
    prompts: list[Prompt],
    *,
    new_tokens: int,
    num_slots: int,
    tokens_per_slot: int | None = None,
) -> float:
    """Processor seconds of one call, after a short one."""
    room = tokens_per_slot or PROMPT_TOKENS + new_tokens
    engine = InProcessEngine(model, plan, groups, num_slots=num_slots, tokens_per_slot=room)
    engine.generate(prompts, Sampling(8))
    return timed(lambda: engine.generate(prompts, Sampling(new_tokens)))


def recomputed_time(model: HybridModel, batch: int, new_tokens: int) -> float:
    """Processor seconds of running the whole text for every token, from passes at five lengths."""
    steps = [round(new_tokens * i / 4) for i in range(5)]
    times = []
    for step in steps:
        tokens = random_tokens(batch, PROMPT_TOKENS + step, vocab_size=VOCAB_SIZE)
        logits_of(model, tokens)
        times.append(timed(lambda tokens=tokens: logits_of(model, tokens)))  # type: ignore[misc]
    pairs = zip(steps[1:], steps, times[1:], times, strict=False)
    return sum((end - begin) * (first + last) / 2 for end, begin, last, first in pairs)


def transformers_time(model: HybridModel, plan: StagePlan, prompts: list[Prompt], new_tokens: int) -> float:
    """Processor seconds of transformers' `generate` with its cache, after a short one."""
    theirs = nemotron_h(plan).eval()
    copy_weights(model, theirs, plan)
    tokens = torch.tensor([prompt.ids for prompt in prompts])

    def sample(count: int) -> None:
        with torch.no_grad():
            theirs.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=True,
                top_k=0,
                use_cache=True,
                pad_token_id=0,
            )

    with plain_torch():  # transformers does not pay for what core needs on a CPU
        sample(8)
        return timed(lambda: sample(new_tokens))


def share_prefixes(model: HybridModel, plan: StagePlan, groups: ProcessGroupCollection) -> None:
    """Eight samples of 32 tokens of four prompts of 1,024."""
    ids = [tuple(random_tokens(1, 1024, seed=i, vocab_size=VOCAB_SIZE)[0].tolist()) for i in range(4)]
    shared = [Prompt(prompt, num_samples=8) for prompt in ids]
    apart = [Prompt(prompt, seed=j) for prompt in ids for j in range(8)]
    times = [
        sampling_time(model, plan, groups, prompts, new_tokens=32, num_slots=32, tokens_per_slot=1056)
        for prompts in (shared, apart)
    ]
    print(f"prefix sharing: 8 samples of prompts of 1,024 tokens, 32 new each: {times[1] / times[0]:.1f}x")


def show_step(model: HybridModel, plan: StagePlan, groups: ProcessGroupCollection, batch: int) -> None:
    """The operations of 64 steps, longest first."""
    prompts = [Prompt((i + 1,), seed=i) for i in range(batch)]
    engine = InProcessEngine(model, plan, groups, num_slots=batch, tokens_per_slot=128)
    engine.generate(prompts, Sampling(8))
    with profile(activities=[ProfilerActivity.CPU]) as record:
        engine.generate(prompts, Sampling(64))
    rows = sorted(record.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    parts = ", ".join(f"{row.key} {row.self_cpu_time_total / total:.0%}" for row in rows[:8])
    print(f"a step of {batch}: {parts}")


def timed(work: Callable[[], Any]) -> float:
    """Processor seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
