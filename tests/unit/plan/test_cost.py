"""Disk, saves and GPU-hours of a stage, by a pencil."""

from __future__ import annotations

from typing import Any

import pytest

from data_tools.errors import UsageError
from megatron_ext.plan.cost import gpu_time, plan_cost
from megatron_ext.plan.stage_plan import CostPlan, StagePlan
from tests.support.plans import make_plan


def cost_of(precision: str = "bf16", **changes: Any) -> CostPlan:
    plan = make_plan(**changes)
    return plan_cost(plan.model, plan.layout, plan.batch, plan.cadence, plan.execution, precision=precision)


def test_a_save_of_the_distributed_optimizer_gathers_its_buffer_on_every_rank() -> None:
    alone = cost_of(layout={"data_parallel_size": 2})
    shared = cost_of(layout={"data_parallel_size": 2, "use_distributed_optimizer": True})
    assert alone.gathered_bytes == 0
    assert shared.gathered_bytes >= 12 * (shared.weights_bytes // 2)
    assert shared.gathered_bytes % 4 == 0
    assert alone.busiest_rank_bytes == shared.busiest_rank_bytes == shared.checkpoint_bytes


@pytest.mark.parametrize(
    ("precision", "is_distributed", "bytes_a_parameter"),
    [("fp32", False, 12), ("bf16", False, 14), ("fp32", True, 16), ("bf16", True, 14)],
)
def test_a_checkpoint_takes_so_many_bytes_a_parameter(
    precision: str, is_distributed: bool, bytes_a_parameter: int
) -> None:
    cost = cost_of(precision, layout={"use_distributed_optimizer": is_distributed})
    parameters = cost.weights_bytes // (4 if precision == "fp32" else 2)
    assert cost.checkpoint_bytes == bytes_a_parameter * parameters


@pytest.mark.parametrize(
    ("interval", "keep_last", "keep_every", "kept"),
    [
        (4, 2, None, 2),  # steps 4, 8, 10: 8 and 10 stay
        (2, 1, 4, 3),  # 4, 8 and 10
        (2, 2, 4, 3),  # 8 is among the last two
        (20, 2, None, 1),  # only the last step
    ],
)
def test_kept_checkpoints_are_counted(interval: int, keep_last: int, keep_every: int | None, kept: int) -> None:
    cadence = {
        "checkpoint_interval_steps": interval,
        "checkpoint_keep_last": keep_last,
        "checkpoint_keep_every_steps": keep_every,
    }
    assert cost_of(cadence=cadence).kept_checkpoints == kept


def plan_of(total_flops: int) -> StagePlan:
    cost = cost_of().model_copy(update={"total_flops": total_flops})
    return make_plan(layout={"data_parallel_size": 2}).model_copy(update={"cost": cost})


def test_gpu_hours_are_operations_over_peak_and_mfu() -> None:
    time = gpu_time(plan_of(24 * 3600 * 10**12), mfu=0.5, gpu="2")
    assert time is not None
    assert (time.gpu_hours, time.days) == (24.0, 0.5)


def test_a_known_gpu_has_its_dense_peak() -> None:
    time = gpu_time(plan_of(10**12), mfu=0.5, gpu="H100")
    assert time is not None
    assert time.peak_tflops == 989.4


def test_no_hours_without_an_mfu() -> None:
    assert gpu_time(plan_of(1), mfu=None, gpu=None) is None


@pytest.mark.parametrize(
    ("mfu", "gpu", "message"),
    [
        (0.45, None, "plan: --mfu and --gpu belong together; a time without either would be a guess."),
        (45.0, "h100", "plan: --mfu 45 is no share of the peak; give it in (0, 1], such as 0.45."),
        (0.45, "b9", "plan: --gpu 'b9': use a100, h100, h200, or a peak in TFLOP/s, such as 989.4."),
        (0.45, "-1", "plan: --gpu '-1': use a100, h100, h200, or a peak in TFLOP/s, such as 989.4."),
    ],
)
def test_a_guess_is_refused(mfu: float, gpu: str | None, message: str) -> None:
    with pytest.raises(UsageError) as error:
        gpu_time(plan_of(1), mfu=mfu, gpu=gpu)
    assert str(error.value) == message
