"""Operations of a layer and of a pipeline stage, by a pencil."""

from __future__ import annotations

from megatron_ext.plan.flops import layer_flops, recomputed_token_flops, stage_token_flops, token_flops
from megatron_ext.plan.stage_plan import ExecutionPlan
from tests.support.plans import make_plan
from tests.unit.plan.test_sizes import pencil


def test_one_layer_of_each_kind_as_counted_by_hand() -> None:
    # M: in_proj 4 -> 20 + 14 + 2, out_proj 10 -> 4: (144 + 40) * 2. SSD in chunks of 8: C B^T 8 * 7, times x 8 * 10,
    # into and out of the states 2 * 7 * 10: 276 * 2. Convolution: 4 taps of 24 channels: 96 * 2.
    assert layer_flops(pencil(), "M", 8) == {"projection": 368, "ssd": 552, "convolution": 192}
    # *: qkv 4 -> 12, proj 6 -> 4: 72 * 2. Of 8 keys half are seen: 4 * 6 * 2 products: 48 * 2.
    assert layer_flops(pencil(), "*", 8) == {"projection": 144, "attention": 96}
    assert layer_flops(pencil(), "-", 8) == {"projection": 96}


def test_pipeline_stages_share_the_operations_of_a_token() -> None:
    model, layout = pencil(), make_plan(layout={"hybrid_layer_pattern": "M-|*"}).layout
    output = 2 * 4 * 1024
    assert stage_token_flops(model, layout, 8) == (3 * (368 + 552 + 192 + 96), 3 * (144 + 96 + output))
    assert sum(token_flops(model, 8).values()) == sum(stage_token_flops(model, layout, 8))


def test_only_what_is_recomputed_is_counted_again() -> None:
    def again(**settings: object) -> int:
        return recomputed_token_flops(pencil(), ExecutionPlan.model_validate(settings), 8)

    assert again() == 0
    assert again(recompute="selective") == 96
    assert again(recompute="selective", recompute_modules=("mlp", "core_attn")) == 96 + 96
    assert again(recompute="full") == 368 + 552 + 192 + 96 + 144 + 96
