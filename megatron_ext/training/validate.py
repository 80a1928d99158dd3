"""Held-out loss, or pass rate of an rl stage, the same way everywhere it is reported."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.progress import Progress
from megatron_ext.datasets.conversations import held_out_conversations
from megatron_ext.datasets.held_out import held_out_batches
from megatron_ext.objectives.pretrain import PretrainObjective, Report
from megatron_ext.plan.stage_plan import SourcePlan, StagePlan
from megatron_ext.training.intervals import wilson_interval
from megatron_ext.training.microbatches import run_schedule
from megatron_ext.training.parts import Parts, gather_weights
from megatron_ext.training.rollout_source import RolloutSource
from megatron_ext.training.step import losses_by_source, sum_over_ranks

_BATCHES_AT_ONCE = 64
"""Microbatches that are read before the first of them is run: an evaluation may have millions of rows."""


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
    gather_weights(parts.model)  # core calls no hook that would, of layers behind a CUDA graph (0.19.2, cuda_graphs.py)
    parts.model.eval()
    losses = {}
    for source in parts.plan.data.sources:
        report = held_out_report(parts.plan, parts.model, parts.objective, parts.groups, source=source)
        losses |= losses_by_source(parts, report)
    parts.model.train()
    return losses


@torch.no_grad()
def held_out_report(
    plan: StagePlan,
    model: Any,
    objective: PretrainObjective,
    groups: ProcessGroupCollection,
    *,
    source: SourcePlan,
    keep_tail: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Sums the loss on a source's first `cadence.validation_samples` held-out rows.

    All ranks must call this.

    Args:
        plan: The stage, of kind pretrain or sft.
        model: In evaluation mode, wrapped for training or not.
        objective: Of the stage.
        groups: Process groups.
        source: One of `plan.data.sources`.
        keep_tail: Whether tokens behind the last whole row of a pretrain stage's source are read too.
        progress: Is told of every row of this rank.

    Returns:
        `[num_sources, columns]` of all ranks together; see the objective. Other sources' rows are 0.
    """
    ranks: Any = {"data_parallel_rank": groups.dp.rank(), "data_parallel_size": groups.dp.size()}
    if plan.sft is None:
        batches = held_out_batches(plan, source, keep_tail=keep_tail, **ranks)
    else:
        batches = held_out_conversations(plan, source, **ranks)
    reports: list[Report] = []
    for some in itertools.batched(batches, _BATCHES_AT_ONCE):
        reports += run_schedule(model, objective, some, groups=groups, forward_only=True)
        if progress is not None:
            progress.advance(sum(len(batch.sample_ids) for batch in some))
    return sum_over_ranks(objective, groups, reports)


def _with_interval(source: str, rates: Sequence[float]) -> dict[str, float]:
    """The mean over prompts, and the ends of its interval.

    Prompts are what is drawn at random: several samples of one do not narrow the interval as more prompts would.

    >>> {name: round(value, 3) for name, value in _with_interval("a", [1.0, 0.0, 0.0, 0.0]).items()}
    {'a': 0.25, 'a_low': 0.046, 'a_high': 0.699}
    """
    rate = math.fsum(rates) / len(rates)
    low, high = wilson_interval(rate, len(rates))
    return {source: rate, f"{source}_low": low, f"{source}_high": high}
