"""Prompts, and what a policy would sample by other ways: the whole text again for every token, core's own caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.inference.utils import InferenceMode
from megatron.core.models.hybrid.hybrid_model import HybridModel
from torch import Tensor

from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.rollout.cache import RolloutCache
from megatron_ext.rollout.forward import CachedForward
from megatron_ext.rollout.protocol import Completion, Prompt
from megatron_ext.rollout.twin import decodable
from megatron_ext.runtime.device import device, device_scope
from tests.support.one_process import logits_of, random_tokens

VOCAB_SIZE = 120  # of the plans of tests.support.plans


def prompts_of(lengths: Sequence[int], *, num_samples: int = 1) -> list[Prompt]:
    """Random prompts; each has its place as its seed."""
    return [
        Prompt(tuple(random_tokens(1, length, seed=100 + i)[0].tolist()), num_samples=num_samples, seed=i)
        for i, length in enumerate(lengths)
    ]


def recomputed_greedily(model: HybridModel, prompt: Sequence[int], num_tokens: int) -> tuple[list[int], Tensor]:
    """Greedy tokens, and the logits [tokens, padded vocabulary] that chose them, without caches."""
    tokens, logits = list(prompt), []
    for _ in range(num_tokens):
        logits.append(logits_of(model, torch.tensor([tokens]))[0, -1])
        tokens.append(int(logits[-1][:VOCAB_SIZE].argmax()))
    return tokens[len(prompt) :], torch.stack(logits)


def training_log_probs(
    model: HybridModel, prompt: Prompt, completion: Completion, *, temperature: float = 1.0
) -> Tensor:
    """Log-probabilities [tokens] that the training path gives a completion, over the whole padded vocabulary."""
    row = torch.tensor([[*prompt.ids, *completion.token_ids]])
    log_probs = (logits_of(model, row)[0] / temperature).log_softmax(-1)
    places = torch.arange(len(prompt.ids), row.shape[1])
    return log_probs[places - 1, row[0, places]]


def cached_logits(model: HybridModel, plan: StagePlan, tokens: Sequence[int], *, prompt: int) -> Tensor:
    """The engine's logits [tokens after the prompt + 1, padded vocabulary], one token at a time; float32 on the CPU."""
    forward = CachedForward(decodable(model, plan), max_tokens=len(tokens))
    cache = RolloutCache(forward.model, num_slots=1, tokens_per_slot=len(tokens))
    whole = torch.tensor([tokens], device=device())
    logits = [forward.read_prompts(whole[:, :prompt], cache)]
    logits += [forward.decode(whole[0, n : n + 1], cache, shortest=n, longest=n) for n in range(prompt, len(tokens))]
    return torch.cat(logits).cpu()


def next_token_logits(model: HybridModel, prompt: list[int], new: list[int], max_new_tokens: int) -> Iterator[Tensor]:
    """Yields logits [padded vocabulary] of core's static context after the prompt, then after each token put in `new`.

    Core keeps one position for the whole batch, so it serves as an oracle for one text; the model is evaluating.
    """
    context = StaticInferenceContext(max_batch_size=1, max_sequence_length=len(prompt) + max_new_tokens)
    for index in range(max_new_tokens):
        with device_scope(), torch.no_grad(), InferenceMode.active():
            tokens = torch.tensor([new[-1:] if index else prompt], device=device())
            begin = context.sequence_len_offset
            positions = torch.arange(begin, begin + tokens.shape[1], device=device())[None]
            logits = model(tokens, positions, None, inference_context=context, runtime_gather_output=True)
            context.sequence_len_offset += tokens.shape[1]
            context.enable_decode_mode()
        yield logits[0, -1].float()
