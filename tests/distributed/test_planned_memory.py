"""Planned bytes are those of real ranks: memory and checkpoints, but for AdamW's step counters.

What is saved is summed over the sharded tensors that core's writer is given, without writing them. A save in
shards (`dp_reshardable`) writes the padding inside the buffer too.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica

from megatron_ext.models.build import build_model
from megatron_ext.plan.cost import plan_cost
from megatron_ext.plan.memory import memory_per_rank
from megatron_ext.plan.sizes import model_size
from megatron_ext.plan.stage_plan import ExecutionPlan, StagePlan
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.optimizer import make_optimizer
from megatron_ext.training.parts import wrap_model
from tests.support.distributed import run_distributed
from tests.support.plans import make_plan

LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2-pp2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    "dp2": {"data_parallel_size": 2},
    "tp2-dp2-distributed": {
        "tensor_model_parallel_size": 2,
        "data_parallel_size": 2,
        "use_distributed_optimizer": True,
    },
    "pp2-dp3-distributed": {
        "pipeline_model_parallel_size": 2,
        "data_parallel_size": 3,
        "use_distributed_optimizer": True,
    },
    "dp2-distributed-in-shards": {"data_parallel_size": 2, "use_distributed_optimizer": True},
}


def plan_of(name: str, precision: str, tied: bool) -> StagePlan:
    # 5 Mamba channels a head and 9 states make every padding rule visible, that between two buckets too.
    model = {"mamba_head_dim": 5, "mamba_state_dim": 9, "share_embeddings_and_output_weights": tied}
    plan = make_plan(model=model, layout=LAYOUTS[name], precision=precision)
    execution = ExecutionPlan(optimizer_format="dp_reshardable" if "shards" in name else "fully_reshardable")
    return plan.model_copy(update={"model_size": model_size(plan.model), "execution": execution})


def bytes_of_rank(plans: dict[str, StagePlan]) -> dict[str, tuple[int, ...]]:
    """Pipeline stage of this rank, and its bytes by plan: parameters, gradients, optimizer, saved, gathered."""
    layout = next(iter(plans.values())).layout
    sizes = {key: getattr(layout, key) for key in ("tensor_model_parallel_size", "pipeline_model_parallel_size")}
    found = {}
    with process_groups(Launch.from_environment(), **sizes) as groups:
        for name, plan in plans.items():
            model = wrap_model(plan, build_model(plan, groups), groups)
            optimizer = make_optimizer(plan, model, groups)
            let_adam_fill_its_states(optimizer)
            found[name] = (
                groups.pp.rank(),
                storage_bytes(list(model.parameters())),
                storage_bytes([buffer.grad_data for buffer in model.buffers]),
                state_bytes(optimizer),
                saved_bytes(model, optimizer, groups, plan.execution.optimizer_format),
                12 * sum(buffer.numel_unpadded for buffer in model.buffers),
            )
    return found


def saved_bytes(model: Any, optimizer: Any, groups: Any, optimizer_format: str) -> int:
    """Bytes of weights and optimizer state that this rank writes into a checkpoint."""
    metadata = {"dp_cp_group": groups.dp_cp, "distrib_optim_sharding_type": optimizer_format}
    weights = model.module.sharded_state_dict(metadata=metadata)
    state = {"optimizer": optimizer.sharded_state_dict(weights, is_loading=False, metadata=metadata)}
    state["model"] = weights
    apply_factories(state)
    tensors = [value for value in nested_values(state) if isinstance(value, ShardedTensor)]
    return sum(tensor.data.nbytes for tensor in tensors if is_main_replica(tensor.replica_id))


def let_adam_fill_its_states(optimizer: Any) -> None:
    for inner in optimizer.chained_optimizers:
        for group in inner.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        inner.optimizer.step()


def storage_bytes(tensors: list[torch.Tensor]) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def state_bytes(optimizer: Any) -> int:
    """Moments, and master weights where there are any; without AdamW's step counters."""
    total = 0
    for inner in optimizer.chained_optimizers:
        moments = [state[key] for state in inner.optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
        groups = getattr(inner, "shard_fp32_from_float16_groups", getattr(inner, "fp32_from_float16_groups", []))
        total += sum(tensor.nbytes for tensor in [*moments, *(main for group in groups for main in group)])
    return total


@pytest.mark.parametrize("layout", LAYOUTS)
def test_planned_states_are_those_of_real_ranks(layout: str) -> None:
    plans = {
        f"{precision} {'tied' if tied else 'untied'}": plan_of(layout, precision, tied)
        for precision, tied in (("fp32", False), ("bf16", False), ("bf16", True))
    }
    ranks = run_distributed(bytes_of_rank, plans["fp32 untied"].layout.world_size, plans)
    for name, plan in plans.items():
        planned = memory_per_rank(plan.model, plan.layout, plan.batch, plan.execution, precision=plan.precision)
        for stage, memory in enumerate(planned):
            found = [rank[name][1:4] for rank in ranks if rank[name][0] == stage]
            fullest = tuple(max(values) for values in zip(*found, strict=True))
            assert fullest == (memory.parameters, memory.gradients, memory.optimizer), f"{name}, stage {stage}"
        cost = plan_cost(plan.model, plan.layout, plan.batch, plan.cadence, plan.execution, precision=plan.precision)
        saved = [rank[name][4] for rank in ranks]
        assert max(saved) == cost.busiest_rank_bytes, name
        is_gathered = plan.layout.use_distributed_optimizer and "shards" not in layout
        assert cost.gathered_bytes == (max(rank[name][5] for rank in ranks) if is_gathered else 0), name
        padding = 12 * (planned[0].gradients // 4 - plan.model_size.total_parameters) if "shards" in layout else 0
        assert cost.checkpoint_bytes <= sum(saved) <= cost.checkpoint_bytes + padding, name
