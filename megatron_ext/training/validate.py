"""Held-out loss, the same way everywhere it is reported."""

from __future__ import annotations

import torch

from megatron_ext.datasets.conversations import held_out_conversations
from megatron_ext.datasets.held_out import held_out_batches
from megatron_ext.training.parts import Parts
from megatron_ext.training.step import losses_by_source, run_microbatches


def validate(parts: Parts) -> dict[str, float]:
    """Computes the mean loss on the held-out rows of every source.

    All ranks must call this.

    Returns:
        Nats per token by source, over the first `cadence.validation_samples` held-out rows.
    """
    parts.model.eval()
    losses = {}
    read = held_out_batches if parts.plan.sft is None else held_out_conversations
    with torch.no_grad():
        for source in parts.plan.data.sources:
            batches = list(
                read(
                    parts.plan,
                    source,
                    data_parallel_rank=parts.groups.dp.rank(),
                    data_parallel_size=parts.groups.dp.size(),
                )
            )
            losses |= losses_by_source(parts, run_microbatches(parts, batches, forward_only=True))
    parts.model.train()
    return losses
