"""What each rank of a layout samples, held against its own training path; on either backend."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

from megatron_ext.models.build import build_model
from megatron_ext.rollout.inprocess import InProcessEngine
from megatron_ext.rollout.protocol import Completion, Sampling
from megatron_ext.rollout.share import share_prompts
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.runtime.seed import seed_everything
from tests.support.one_process import strengthen
from tests.support.plans import make_plan
from tests.support.rollout import VOCAB_SIZE, cached_logits, prompts_of

PROMPTS = prompts_of((6, 3, 17, 6, 1), num_samples=2)
SAMPLING = Sampling(8, temperature=0.9, top_p=0.95, stop_ids=frozenset(range(12)))
TOLERANCE = 1e-5
GREEDY = Sampling(8, temperature=0)
Sampled = tuple[list[Completion], list[Completion], list[int]]


def sample(layout: dict[str, Any], model_changes: dict[str, Any]) -> Sampled:
    """Completions of this rank, as they ended, and the tokens a padded row is given by the training path."""
    plan = make_plan(model=model_changes, layout=layout)
    ranks = layout.get("tensor_model_parallel_size", 1)
    with process_groups(Launch.from_environment(), tensor_model_parallel_size=ranks) as groups:
        seed_everything(plan.seed)  # core draws dropout under sequence parallelism, of 0 too
        model = strengthen(build_model(plan, groups))
        engine = InProcessEngine(model, plan, groups, num_slots=3, tokens_per_slot=64)
        ended: list[Completion] = []
        completions = engine.generate(PROMPTS, SAMPLING, on_finished=ended.append)
        for completion in completions:
            prompt = PROMPTS[completion.prompt_index].ids
            row = torch.tensor([[*prompt, *completion.token_ids]])
            row = torch.cat([row, row.new_zeros(1, row.shape[1] % 2)], dim=1)  # sequence parallelism halves it
            with torch.no_grad():
                logits = model(row, torch.arange(row.shape[1])[None], None)
                logits = gather_from_tensor_model_parallel_region(logits, group=groups.tp)[0]
            log_probs = (logits / SAMPLING.temperature).log_softmax(-1)
            places = torch.arange(len(prompt), len(prompt) + len(completion.token_ids))
            expected = log_probs[places - 1, row[0, places]]
            torch.testing.assert_close(torch.tensor(completion.log_probs), expected, rtol=0, atol=TOLERANCE)
        return completions, ended, share_prompts(PROMPTS, groups.dp.size(), max_new_tokens=8)[groups.dp.rank()]


def recompute_greedily(layout: dict[str, Any], model_changes: dict[str, Any]) -> list[Completion]:
    """Greedy completions of this rank, whose tokens and logits are those of the whole text read again for each."""
    plan = make_plan(model=model_changes, layout=layout)
    ranks = layout.get("tensor_model_parallel_size", 1)
    with process_groups(Launch.from_environment(), tensor_model_parallel_size=ranks) as groups:
        seed_everything(plan.seed)
        model = strengthen(build_model(plan, groups))
        engine = InProcessEngine(model, plan, groups, num_slots=3, tokens_per_slot=64)
        completions = engine.generate(PROMPTS, GREEDY)
        for completion in completions:
            prompt = PROMPTS[completion.prompt_index].ids
            text = [*prompt, *completion.token_ids]
            row = torch.tensor([text])
            with torch.no_grad():
                logits = model(row, torch.arange(len(text))[None], None)
                logits = gather_from_tensor_model_parallel_region(logits, group=groups.tp)[0, len(prompt) - 1 :]
            assert logits[:-1, :VOCAB_SIZE].argmax(-1).tolist() == list(completion.token_ids)
            cached = cached_logits(model, plan, text, prompt=len(prompt))
            torch.testing.assert_close(cached, logits.float(), rtol=0, atol=TOLERANCE)
        return completions
