"""Responses of unequal lengths with random numbers for everything an RL loss reads, packed in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.datasets.rollout_batch import RolloutBatch
from megatron_ext.objectives.rl import RlOptions, response_weight

PROMPT_TOKENS = 2


@dataclass(frozen=True)
class Responses:
    """Numbers of responses, `[num_responses, longest]` float32 but for what has one number each.

    Attributes:
        lengths: Tokens of each.
        cut_off: Numbers of those that ended at their limit.
        policy: Log-probabilities under the policy.
        old: Likewise under the old policy, and so on.
        advantages: One each.
    """

    lengths: tuple[int, ...]
    cut_off: frozenset[int]
    policy: Tensor
    old: Tensor
    sampled: Tensor
    reference: Tensor
    entropy: Tensor
    advantages: Tensor

    @property
    def mask(self) -> Tensor:
        """1 at tokens of responses, `[num_responses, longest]`."""
        return (torch.arange(max(self.lengths)) < torch.tensor(self.lengths)[:, None]).float()


def make_responses(lengths: Sequence[int], *, cut_off: Sequence[int] = (), seed: int = 0) -> Responses:
    """Policies so far apart that every clip and cap is met."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    policy = -3 * torch.rand(shape, generator=generator) - 0.5
    near = [policy + 0.4 * torch.randn(shape, generator=generator) for _ in range(3)]
    entropy = torch.rand(shape, generator=generator)
    advantages = torch.randn(len(lengths), generator=generator)
    return Responses(tuple(lengths), frozenset(cut_off), policy, *near, entropy, advantages)


def pack(responses: Responses, numbers: Sequence[int], *, row_length: int, options: RlOptions) -> RolloutBatch:
    """One row of some responses, each behind a prompt of two tokens, with padding behind the last."""
    columns = {name: torch.zeros(1, row_length) for name in ("mask", "divisor", "advantages", "old", "sampled", "ref")}
    begins, at = [], 0
    for number in numbers:
        begins.append(at)
        length = responses.lengths[number]
        first = at + PROMPT_TOKENS - 1  # the last token of the prompt predicts the first of the response
        here = slice(first, first + length)
        weight = response_weight(length, options, is_cut_off=number in responses.cut_off)
        columns["mask"][0, here] = weight.per_token
        columns["divisor"][0, first] = weight.counted
        columns["advantages"][0, here] = responses.advantages[number]
        for name, values in (("old", responses.old), ("sampled", responses.sampled), ("ref", responses.reference)):
            columns[name][0, here] = values[number, :length]
        at += PROMPT_TOKENS + length
    ids = torch.zeros(1, row_length, dtype=torch.int64)
    return RolloutBatch(
        tokens=ids,
        labels=ids,
        loss_mask=columns["mask"],
        position_ids=torch.arange(row_length)[None],
        source_index=ids,
        sample_ids=("row:0",),
        cu_seqlens=(*begins, *((at, row_length) if at < row_length else (row_length,))),
        divisor=columns["divisor"],
        advantages=columns["advantages"],
        old_log_probs=columns["old"],
        sampled_log_probs=columns["sampled"],
        reference_log_probs=columns["ref"] if options.kl_coefficient else None,
    )


def packed_values(responses: Responses, values: Tensor, numbers: Sequence[int], *, row_length: int) -> Tensor:
    """`values`, one a token, at the places where `pack` puts them; `[1, row_length]`."""
    parts = []
    for number in numbers:
        length = responses.lengths[number]
        parts += [torch.zeros(PROMPT_TOKENS - 1), values[number, :length], torch.zeros(1)]
    packed = torch.cat(parts)
    return torch.cat((packed, torch.zeros(row_length - len(packed))))[None]
