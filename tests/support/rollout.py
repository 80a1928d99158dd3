"""Prompts, and what a policy would sample by running the whole text again for every token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.models.hybrid.hybrid_model import HybridModel
from torch import Tensor

from megatron_ext.rollout.protocol import Completion, Prompt
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
