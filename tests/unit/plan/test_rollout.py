"""The bytes of caches, by pencil, and the layouts that cannot sample."""

from __future__ import annotations

from megatron_ext.plan.rollout import PROMPT_TOKENS, rollout_bytes, rollout_problems, slot_size
from tests.support.plans import make_plan


def test_a_slot_holds_states_whatever_its_length_and_keys_and_values_a_token() -> None:
    """`M-*M`: twice 64 channels + 2 x 2 x 8 of B and C, 4 taps; SSM 4 heads x 16 x 8; one layer of 2 groups x 8."""
    plan = make_plan()
    fp32 = slot_size(plan.model, plan.layout, precision="fp32")
    assert fp32.states == 2 * (4 * 4 * (64 + 32) + 4 * 64 * 8)
    assert fp32.per_token == 4 * 2 * 2 * 8
    bf16 = slot_size(plan.model, plan.layout, precision="bf16")
    assert bf16.states == 2 * (2 * 4 * (64 + 32) + 4 * 64 * 8)  # the SSM state stays float32
    assert bf16.per_token == 2 * 2 * 2 * 8


def test_a_cache_is_its_slots_at_their_longest_and_the_prompts_being_read() -> None:
    plan = make_plan()
    counted = rollout_bytes(plan.model, plan.layout, num_slots=3, tokens_per_slot=100, precision="fp32")
    states, per_token = slot_size(plan.model, plan.layout, precision="fp32")
    assert counted.cache == 3 * (states + 100 * per_token)
    assert counted.prompts == 3 * states + PROMPT_TOKENS * per_token
    assert counted.total == counted.cache + counted.prompts


def test_tensor_parallel_ranks_share_a_slot() -> None:
    whole, half = make_plan(), make_plan(layout={"tensor_model_parallel_size": 2})
    one, two = (slot_size(plan.model, plan.layout, precision="fp32") for plan in (whole, half))
    assert one == (2 * two.states, 2 * two.per_token)


def test_pipelines_and_split_sequences_cannot_sample_and_each_is_said() -> None:
    layout = make_plan(layout={"pipeline_model_parallel_size": 2}).layout.model_copy(
        update={"context_parallel_size": 4}
    )
    first, second = rollout_problems(layout)
    assert first.startswith(
        "parallel.pipeline_model_parallel_size: 2: sampling needs 1, for every rank needs all layers"
    )
    assert second.startswith("parallel.context_parallel_size: 4: sampling needs 1")
    assert rollout_problems(make_plan(layout={"tensor_model_parallel_size": 2}).layout) == []
