"""Ranks that share a row keep their part of its activations, and copies where they share a Mamba group."""

from __future__ import annotations

import pytest

from megatron_ext.plan.activations import activation_bytes
from megatron_ext.plan.stage_plan import ExecutionPlan
from tests.support.plans import make_plan


def activations(ranks: int, *, recompute: str = "none") -> int:
    """Of a Mamba-2 layer with two groups of state 8, over 64 tokens of 4 bytes."""
    layout = {"context_parallel_size": ranks, "backend": "te"}
    plan = make_plan(model={"hybrid_layer_pattern": "M"}, layout=layout)
    execution = ExecutionPlan.model_validate({"recompute": recompute})
    return activation_bytes(plan.model, plan.layout, plan.batch, execution, stage=0, precision="fp32")["activations"]


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_two_ranks_of_a_row_keep_half_each(recompute: str) -> None:
    assert activations(2, recompute=recompute) == activations(1, recompute=recompute) / 2


def test_ranks_that_share_a_group_have_its_b_and_c_each() -> None:
    two_more_groups = 16 * 2 * 2 * 8 * 4  # tokens of a rank, B and C, groups, state, bytes
    assert activations(4) == activations(1) / 4 + two_more_groups
