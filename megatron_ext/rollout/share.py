"""Which data-parallel rank samples which prompts."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_ext.rollout.protocol import Prompt


def share_prompts(prompts: Sequence[Prompt], num_ranks: int, *, max_new_tokens: int) -> list[list[int]]:
    """Shares prompts among ranks by the tokens that each is expected to cost.

    A prompt goes whole, so that its samples share one prefill and a group's rewards meet on one rank. The dearest
    prompt left goes to the rank with the least work (Source: Graham's longest-processing-time rule, 1969: at most 4/3
    of the best possible longest share).

    Args:
        prompts: Of the call.
        num_ranks: Data-parallel ranks.
        max_new_tokens: Of a completion at most; the expectation of prompts that state none.

    Returns:
        For each rank the indices of its prompts, ascending; empty where there are fewer prompts than ranks.
    """
    costs = [expected_tokens(prompt, max_new_tokens=max_new_tokens) for prompt in prompts]
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for index in sorted(range(len(prompts)), key=lambda i: (-costs[i], i)):
        rank = min(range(num_ranks), key=lambda r: (loads[r], r))
        shares[rank].append(index)
        loads[rank] += costs[index]
    return [sorted(share) for share in shares]


def expected_tokens(prompt: Prompt, *, max_new_tokens: int) -> int:
    """Tokens that pass through the model for a prompt: it once, and its completions."""
    new = max_new_tokens if prompt.expected_new_tokens is None else min(prompt.expected_new_tokens, max_new_tokens)
    return len(prompt.ids) + prompt.num_samples * new
