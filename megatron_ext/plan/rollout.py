"""What sampling from a policy takes of a rank, and the layouts that it can run in."""

from __future__ import annotations

from typing import NamedTuple

from megatron_ext.plan.sizes import CONV_KERNEL, mamba_inner_size
from megatron_ext.plan.stage_plan import BatchPlan, LayoutPlan
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA, parse_pattern
from megatron_ext.recipe.schema import ModelRecipe, RlRecipe

PROMPT_TOKENS = 8192
"""Prompts of one length that are read in one pass hold as many tokens at most, a longer prompt goes alone."""


class SlotSize(NamedTuple):
    """Bytes on one tensor-parallel rank of what a sample keeps."""

    states: int  # convolutions and SSM states, whatever the length
    per_token: int  # keys and values


class RolloutBytes(NamedTuple):
    """Bytes on one rank while it samples, beside the weights."""

    cache: int  # every slot at its longest, allocated once
    prompts: int  # at most, of the prompts that are being read

    @property
    def total(self) -> int:
        """Both."""
        return self.cache + self.prompts


def slot_size(model: ModelRecipe, layout: LayoutPlan, *, precision: str) -> SlotSize:
    """Counts what one sample keeps on one rank.

    SSM states are float32 in any precision, the rest is in the parameters' (`rollout/cache.py`).
    """
    ranks, width = layout.tensor_model_parallel_size, 2 if precision == "bf16" else 4
    pattern = parse_pattern(model.hybrid_layer_pattern)
    channels = mamba_inner_size(model) + 2 * model.mamba_num_groups * model.mamba_state_dim
    mamba = width * CONV_KERNEL * channels + 4 * mamba_inner_size(model) * model.mamba_state_dim
    attention = width * 2 * model.num_query_groups * model.kv_channels
    return SlotSize(pattern.count(MAMBA) * mamba // ranks, pattern.count(ATTENTION) * attention // ranks)


def rollout_bytes(
    model: ModelRecipe, layout: LayoutPlan, *, num_slots: int, tokens_per_slot: int, precision: str
) -> RolloutBytes:
    """Counts the caches of the in-process engine on one rank.

    Args:
        model: A checked model.
        layout: One pipeline stage.
        num_slots: Samples that a rank advances at once.
        tokens_per_slot: Prompt and completion together at most.
        precision: `fp32` or `bf16`.
    """
    slot = slot_size(model, layout, precision=precision)
    return RolloutBytes(
        cache=num_slots * (slot.states + tokens_per_slot * slot.per_token),
        prompts=num_slots * slot.states + max(PROMPT_TOKENS, tokens_per_slot) * slot.per_token,
    )


def slots_in_use(rl: RlRecipe, batch: BatchPlan) -> int:
    """Slots of a rank: as many as are asked for, or all completions that a step or a validation samples at once."""
    of_step = batch.global_batch_size * rl.samples_per_prompt
    held_out = max(source.validation_prompts for source in rl.prompts)
    return min(rl.slots, max(of_step, held_out * rl.validation_samples))


def rollout_problems(layout: LayoutPlan) -> list[str]:
    """Why the in-process engine cannot sample in a layout; key, value, rule and remedy of each."""
    rules = {
        "pipeline_model_parallel_size": "every rank needs all layers to append a token",
        "context_parallel_size": "a cached text lies whole on its rank",
    }
    return [
        f"parallel.{key}: {getattr(layout, key)}: sampling needs 1, for {rule}; "
        "use parallel.tensor_model_parallel_size, and data parallelism for the rest."
        for key, rule in rules.items()
        if getattr(layout, key) != 1
    ]
