"""The cursor that reads a stage: of a blend in pretraining, of packed rows in fine-tuning."""

from __future__ import annotations

from megatron_ext.datasets.blended import BlendedCursor
from megatron_ext.datasets.conversations import ConversationCursor
from megatron_ext.plan.stage_plan import StagePlan

Cursor = BlendedCursor | ConversationCursor


def open_cursor(plan: StagePlan, *, data_parallel_rank: int, data_parallel_size: int) -> Cursor:
    """Opens the data of a stage and stands before its first step.

    Args:
        plan: The stage.
        data_parallel_rank: This rank among those that hold the same weights' shards.
        data_parallel_size: How many there are.

    Raises:
        DataError: If a source is missing, damaged or not the one that was planned.
    """
    kind = BlendedCursor if plan.sft is None else ConversationCursor
    return kind(plan, data_parallel_rank=data_parallel_rank, data_parallel_size=data_parallel_size)
