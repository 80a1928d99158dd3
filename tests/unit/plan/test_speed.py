"""The time of a step, by a pencil, on a GPU of one operation and one byte a second."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_ext.plan.activations import kept_bytes
from megatron_ext.plan.hardware import Gpu
from megatron_ext.plan.speed import BANDWIDTH_RATIO, LOSS_BYTES, Constants, Step, StepTime, stage_work, step_time
from megatron_ext.plan.stage_plan import ExecutionPlan, StagePlan
from tests.support.plans import make_plan

SLOW = Gpu("slow", 1e-12, 1, 1.0, 1.0, 1.0)
ONE = Constants(1.0, 1.0, {"te": 1.0, "local": 1.0}, {"te": 0.0, "local": 0.0})


def plan_of(pattern: str, **layout: Any) -> StagePlan:
    """32 tokens a row, 32 hidden, MLP of 64."""
    stages = pattern.count("|") + 1
    return make_plan(
        model={"hybrid_layer_pattern": pattern.replace("|", "")},
        layout={
            "hybrid_layer_pattern": pattern,
            "backend": "te",
            "pipeline_model_parallel_size": stages,
            **layout,
        },
    )


def time_of(plan: StagePlan, constants: Constants = ONE, **more: Any) -> StepTime:
    step = Step(plan.model, plan.layout, plan.batch, plan.execution, "bf16")
    return step_time(step, SLOW, constants=constants, **more)


def work_of(plan: StagePlan, execution: ExecutionPlan | None = None) -> Any:
    return stage_work(Step(plan.model, plan.layout, plan.batch, execution or ExecutionPlan(), "bf16"), loss="te")


def test_an_mlp_layer_takes_three_times_its_two_products() -> None:
    first, last = work_of(plan_of("-|-"))
    tokens = plan_of("-|-").batch.micro_batch_size * 32
    assert first.products == 3 * (2 * 32 * 64 + 2 * 64 * 32) * tokens
    assert last.products - first.products == 3 * 2 * 32 * 1024 * tokens  # the output layer over the padded vocabulary
    assert first.ssd == 0


def test_attention_counts_twice() -> None:
    first, _ = work_of(plan_of("*|-"))
    tokens = plan_of("*|-").batch.micro_batch_size * 32
    assert first.products == 3 * (2 * 32 * (2 * 32 + 2 * 16) + 2 * (2 * 32 * 32)) * tokens


def test_tensor_ranks_share_the_operations() -> None:
    alone, shared = work_of(plan_of("M-*M")), work_of(plan_of("M-*M", tensor_model_parallel_size=2))
    assert (shared[0].products, shared[0].ssd) == (alone[0].products / 2, alone[0].ssd / 2)


def test_full_recomputation_adds_a_third_to_layers_and_nothing_to_the_output_layer() -> None:
    plan = plan_of("M-|-")
    for plain, again in zip(work_of(plan), work_of(plan, ExecutionPlan(recompute="full")), strict=True):
        assert again.ssd == pytest.approx(plain.ssd * 4 / 3)
        assert again.kept == pytest.approx(plain.kept * 4 / 3)
    first, first_again = work_of(plan)[0], work_of(plan, ExecutionPlan(recompute="full"))[0]
    assert first_again.products == pytest.approx(first.products * 4 / 3)


def test_selective_recomputation_of_the_mlp_adds_its_forward_pass() -> None:
    plan = plan_of("--|M")
    mlp = ExecutionPlan(recompute="selective", recompute_modules=("mlp",))
    plain, again = work_of(plan)[0], work_of(plan, mlp)[0]
    tokens = plan.batch.micro_batch_size * 32
    assert again.products - plain.products == 2 * 4 * 32 * 64 * tokens


def test_bytes_are_what_layers_keep_and_what_is_counted() -> None:
    plan = plan_of("M-")
    (work,) = work_of(plan)
    tokens = plan.batch.micro_batch_size * 32
    assert work.kept == kept_bytes(plan.model, plan.layout, plan.batch, stage=0, precision="bf16")
    assert work.counted == LOSS_BYTES["te"] * tokens * 1024 + 10 * work.numel
    assert time_of(plan).elementwise == pytest.approx(
        plan.batch.num_microbatches * (work.kept + work.counted) / BANDWIDTH_RATIO
    )


def test_a_pipeline_takes_the_slowest_stage_microbatches_and_stages_less_one_times() -> None:
    """Idle is then (stages - 1) / microbatches of the slowest stage, and the wait of the faster ones for it."""
    plan = plan_of("M|-|*|-")
    fixed = time_of(plan).update + time_of(plan).data
    micro = plan.batch.num_microbatches
    more = plan.batch.model_copy(
        update={"num_microbatches": 2 * micro, "tokens_per_step": 2 * plan.batch.tokens_per_step}
    )
    twice = time_of(plan.model_copy(update={"batch": more}))
    slowest = (twice.total - time_of(plan).total) / micro
    assert time_of(plan).total - fixed == pytest.approx((micro + 3) * slowest)
    assert 0 < time_of(plan).idle < time_of(plan).total


def test_one_stage_is_never_idle() -> None:
    assert time_of(plan_of("M-*M")).idle == pytest.approx(0)


def test_ranks_without_a_row_idle() -> None:
    plan = plan_of("M-")
    busy, waiting = time_of(plan), time_of(plan, time_over_work=1.5)
    assert waiting.idle == pytest.approx((busy.total - busy.update) / 2)


def test_a_host_that_launches_slowly_sets_the_time_of_a_microbatch() -> None:
    plan = plan_of("M-*M")
    busy = time_of(plan)
    micro = plan.batch.num_microbatches
    a_layer_s = 10 * busy.total
    slow = time_of(plan, ONE._replace(host_ms={"te": 1e3 * a_layer_s}))
    assert slow.total - slow.update == pytest.approx(micro * 4 * a_layer_s)
    assert slow.products == busy.products


def test_a_factor_holds_for_all_but_communication() -> None:
    plan = plan_of("M-*M", tensor_model_parallel_size=2, sequence_parallel=True, data_parallel_size=2)
    plain, slower = time_of(plan), time_of(plan, factor=1.5)
    assert slower.communication == plain.communication > 0
    assert slower.total - slower.communication == pytest.approx(1.5 * (plain.total - plain.communication))
