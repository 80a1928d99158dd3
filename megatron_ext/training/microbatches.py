"""Megatron-Core's schedule over this rank's microbatches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from torch.profiler import record_function

from megatron_ext.datasets.batch import Batch
from megatron_ext.datasets.context_slices import slice_of_rank
from megatron_ext.objectives.pretrain import PretrainObjective, Report
from megatron_ext.runtime.device import device


@record_function("forward and backward")
def run_schedule(
    model: Any,
    objective: PretrainObjective,
    batches: Sequence[Batch],
    *,
    groups: ProcessGroupCollection,
    forward_only: bool,
) -> list[Report]:
    """The reports of this rank's microbatches; none but on the last pipeline stage.

    All ranks must call this, with the same number of microbatches.

    Args:
        model: This rank's pipeline stage, wrapped for training or not.
        objective: What is computed of it.
        batches: At least one, of one shape.
        groups: Process groups.
        forward_only: Whether to leave gradients alone.
    """
    rows, tokens = batches[0].model_shape  # of the whole row: the schedule divides it among the ranks itself
    cp = groups.cp
    reports: list[Report] = get_forward_backward_func(pp_size=groups.pp.size(), vp_size=None)(
        forward_step_func=objective.forward_step,
        data_iterator=iter([slice_of_rank(batch, rank=cp.rank(), size=cp.size()).to(device()) for batch in batches]),
        model=[model],
        num_microbatches=len(batches),
        seq_length=tokens,
        micro_batch_size=rows,
        forward_only=forward_only,
    )
    return reports
