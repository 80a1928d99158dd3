"""The loop trains like ten lines of plain torch on the same model.

Both run the same kernels on the same weights; they differ in the order in which gradients of
microbatches are added and divided. Tolerance 1e-6 relative over 10 steps in fp32.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_ext.models.build import build_model
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.runtime.launch import Launch
from megatron_ext.runtime.parallel import process_groups
from megatron_ext.training.parts import make_parts
from megatron_ext.training.schedule import learning_rate
from megatron_ext.training.step import train_step
from tests.support.plain_torch import make_adamw, plain_step
from tests.support.plans import make_plan
from tests.support.sources import plan_reading, write_source


@pytest.fixture
def plan(tmp_path: Path) -> StagePlan:
    generator = torch.Generator().manual_seed(0)
    documents = [[*torch.randint(1, 100, (50,), generator=generator).tolist(), 0] for _ in range(80)]
    write_source(tmp_path / "toy", documents)
    schedule = make_plan().schedule.model_copy(update={"style": "cosine", "warmup_samples": 20, "horizon_samples": 80})
    return plan_reading(
        {"toy": (tmp_path / "toy", 80)},
        global_batch_size=8,
        micro_batch_size=2,
        batch={"sequence_length": 32},
        schedule=schedule,
    )


def test_the_loop_and_plain_torch_have_the_same_losses(plan: StagePlan) -> None:
    with process_groups(Launch(rank=0, local_rank=0, world_size=1)) as groups:
        parts, twin = make_parts(plan, groups), make_parts(plan, groups)
        model = build_model(plan, groups)
        adam = make_adamw(plan, model)
        for step in range(1, 11):
            lr = learning_rate(plan.schedule, plan.optimizer, consumed_samples=step * 8)
            expected = plain_step(plan, model, adam, twin.cursor.next_step(), lr=lr)
            assert train_step(parts, lr=lr, step=step).loss == pytest.approx(expected, rel=1e-6), f"step {step}"
        for (name, ours), theirs in zip(parts.model.module.named_parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)
