"""RoPE turns by the plan's base: angle = position * base^(-2i / kv_channels) (Source: arXiv 2104.09864, eq. 15)."""

from __future__ import annotations

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_ext.models.build import build_model
from tests.support.plans import make_plan


def test_the_frequencies_are_powers_of_the_recipes_base(groups: ProcessGroupCollection) -> None:
    plan = make_plan(model={"position_embedding_type": "rope", "rotary_base": 10_000, "kv_channels": 8})
    model = build_model(plan, groups)
    torch.testing.assert_close(model.rotary_pos_emb.inv_freq.float(), torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_without_rope_there_are_no_frequencies(groups: ProcessGroupCollection) -> None:
    assert not hasattr(build_model(make_plan(), groups), "rotary_pos_emb")
