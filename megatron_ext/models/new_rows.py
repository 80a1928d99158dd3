"""Rows of embedding and output layer for tokens that weights of another stage do not know (`plan/new_tokens.py`)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_ext.plan.stage_plan import NewTokensPlan

VOCABULARY_WEIGHTS = ("embedding.word_embeddings.weight", "output_layer.weight")
"""Keys of a checkpoint whose first dimension is the padded vocabulary; tied weights have the first one alone."""

_BLOCK = 64
"""Rows that are summed together. It divides a rank's part of every padded vocabulary over up to 16 ranks, so all these
layouts add the same numbers in the same order."""


@torch.no_grad()
def fill_new_rows(model: Any, new: NewTokensPlan, groups: ProcessGroupCollection) -> None:
    """Puts the mean of the known rows into each row of a new token, and of padding that the weights had not.

    All ranks must call this.

    Args:
        model: This rank's pipeline stage, with the weights loaded.
        new: Which rows are new.
        groups: Process groups of the model.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(VOCABULARY_WEIGHTS):
            first = groups.tp.rank() * parameter.shape[0]
            mean = _mean_of_known(parameter, new, first=first, group=groups.tp)
            ids = [*(token.id for token in new.tokens), *range(new.known_rows, new.rows)]
            mine = [number - first for number in sorted(set(ids)) if first <= number < first + parameter.shape[0]]
            parameter[mine] = mean.to(parameter.dtype)


def _mean_of_known(weight: Tensor, new: NewTokensPlan, *, first: int, group: dist.ProcessGroup) -> Tensor:
    """The mean of the known rows over all ranks, `[h]` in float64; `first` is the id of this rank's first."""
    ids = torch.arange(first, first + len(weight))
    is_known = (ids < new.known_vocab_size) & ~torch.isin(ids, torch.tensor(new.unused_ids, dtype=ids.dtype))
    blocks = [
        weight[start : start + _BLOCK][is_known[start : start + _BLOCK].to(weight.device)].double().sum(0)
        for start in range(0, len(weight), _BLOCK)
    ]
    sums = torch.stack(blocks)
    of_ranks = [torch.empty_like(sums) for _ in range(group.size())]
    dist.all_gather(of_ranks, sums, group=group)
    return torch.cat(of_ranks).sum(0) / (new.known_vocab_size - len(new.unused_ids))
