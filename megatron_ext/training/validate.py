"""Held-out loss, or pass rate of an rl stage, the same way everywhere it is reported."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from megatron_ext.datasets.conversations import held_out_conversations
from megatron_ext.datasets.held_out import held_out_batches
from megatron_ext.training.parts import Parts
from megatron_ext.training.rollout_source import RolloutSource
from megatron_ext.training.step import losses_by_source, run_microbatches


def validate(parts: Parts) -> dict[str, float]:
    """Computes the mean loss on the held-out rows of every source, or the pass rate on its held-out prompts.

    All ranks must call this.

    Returns:
        Nats per token by source, over the first `cadence.validation_samples` held-out rows. Of stage rl the share of
        right answers by source, judged on accuracy alone, and the ends of its 95 % interval as `SOURCE_low`,
        `SOURCE_high`.
    """
    if isinstance(parts.cursor, RolloutSource):
        return {
            name: value
            for source, rates in parts.cursor.pass_rates().items()
            for name, value in _with_interval(source, rates).items()
        }
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


def _with_interval(source: str, rates: Sequence[float]) -> dict[str, float]:
    """The mean over prompts, and Wilson's interval, which holds for small numbers and near 0 and 1 too.

    Prompts are what is drawn at random: several samples of one do not narrow the interval as more prompts would.
    Source: E. B. Wilson, JASA 22 (1927), 209-212, with z = 1.96.

    >>> {name: round(value, 3) for name, value in _with_interval("a", [1.0, 0.0, 0.0, 0.0]).items()}
    {'a': 0.25, 'a_low': 0.046, 'a_high': 0.699}
    """
    count, rate, z = len(rates), math.fsum(rates) / len(rates), 1.959964
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return {source: rate, f"{source}_low": max(0.0, centre - half), f"{source}_high": min(1.0, centre + half)}
