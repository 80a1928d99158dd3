"""Planned parameters, gradients and optimizer states are those of real ranks, to the byte."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_ext.models.build import build_model
from megatron_ext.plan.memory import memory_per_rank
from megatron_ext.plan.sizes import model_size
from megatron_ext.plan.stage_plan import StagePlan
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
}


def plan_of(layout: dict[str, Any], precision: str, tied: bool) -> StagePlan:
    # 5 Mamba channels a head and 3 heads' worth of odd sizes make every padding rule visible.
    model = {"mamba_head_dim": 5, "mamba_state_dim": 7, "share_embeddings_and_output_weights": tied}
    plan = make_plan(model=model, layout=layout, precision=precision)
    return plan.model_copy(update={"model_size": model_size(plan.model)})


def bytes_of_rank(plans: dict[str, StagePlan]) -> dict[str, tuple[int, int, int, int]]:
    """Pipeline stage, bytes of parameters, gradients and optimizer states of this rank, by plan."""
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
            )
    return found


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
        f"{precision} {'tied' if tied else 'untied'}": plan_of(LAYOUTS[layout], precision, tied)
        for precision, tied in (("fp32", False), ("bf16", False), ("bf16", True))
    }
    ranks = run_distributed(bytes_of_rank, plans["fp32 untied"].layout.world_size, plans)
    for name, plan in plans.items():
        planned = memory_per_rank(plan.model, plan.layout, plan.batch, plan.execution, precision=plan.precision)
        for stage, memory in enumerate(planned):
            found = [rank[name][1:] for rank in ranks if rank[name][0] == stage]
            fullest = tuple(max(values) for values in zip(*found, strict=True))
            assert fullest == (memory.parameters, memory.gradients, memory.optimizer), f"{name}, stage {stage}"
