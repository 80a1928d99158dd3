"""A plan's model in another layout, for those who read its checkpoints without training on."""

from __future__ import annotations

from typing import Literal

from megatron_ext.plan.stage_plan import StagePlan


def placed(
    plan: StagePlan,
    *,
    world_size: int = 1,
    tensor_model_parallel_size: int = 1,
    backend: Literal["auto", "local", "te"] = "auto",
) -> StagePlan:
    """The same model on some ranks: split by tensors only, each part once for every data-parallel rank.

    Checkpoints of any layout fit it. It computes in `precision`, also where a stage trained with products in fp8,
    whose weights are no others.

    Args:
        plan: Of the checkpoint.
        world_size: Ranks; a multiple of the next one.
        tensor_model_parallel_size: Ranks that share one layer.
        backend: Whose layers; `auto` takes those that this machine has.
    """
    layout = plan.layout.model_copy(
        update={
            "world_size": world_size,
            "tensor_model_parallel_size": tensor_model_parallel_size,
            "pipeline_model_parallel_size": 1,
            "context_parallel_size": 1,
            "data_parallel_size": world_size // tensor_model_parallel_size,
            "backend": backend,
            "sequence_parallel": False,
            "tp_comm_overlap": False,
            "hybrid_layer_pattern": plan.layout.hybrid_layer_pattern.replace("|", ""),
        }
    )
    execution = plan.execution.model_copy(update={"cuda_graphs": False})
    return plan.model_copy(update={"layout": layout, "execution": execution, "fp8": None})
