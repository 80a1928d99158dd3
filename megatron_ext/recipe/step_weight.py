"""What the samples of a step may weigh together: core counts it in an int32, and a sum beyond it wraps in silence.

Source: `num_tokens` of `schedules.py` and `finalize_model_grads.py`, Megatron-Core 0.19: torch.int, summed over
microbatches and ranks, clamped to 1 where it has become negative. The gradient is divided by it.
"""

from __future__ import annotations

from collections.abc import Iterator

from data_tools.strict_yaml import KeyPath
from megatron_ext.recipe.schema import Recipe, SftRecipe

SAMPLE_WEIGHT = 4096
"""Of a whole conversation or response where these weigh alike, because core counts in whole numbers.

A row may hold a third of a split conversation: weights are counted in this many parts. It is a power of two, so the
division gives the same bits.
"""

MAX_STEP_WEIGHT = 2**31 - 1
"""The largest number that core's counter holds."""


def sft_losses(sft: SftRecipe) -> set[str]:
    """The ways in which a stage weighs, that behind `loss_switch_tokens` included: `token`, `sample`."""
    return {sft.loss} if sft.loss_switch_tokens is None else {"token", "sample"}


def heavy_step_rules(recipe: Recipe) -> Iterator[tuple[KeyPath, str]]:
    """Refuses steps that weigh too much, where the recipe alone says so; `plan/sft_checks.py` counts the others."""
    batch, length, sft = recipe.training.global_batch_size, recipe.training.sequence_length, recipe.sft or SftRecipe()
    per_sample, unit = length, f"training.sequence_length {length:,} tokens"
    key: KeyPath = ("training", "global_batch_size")
    if recipe.stage == "rl":
        if recipe.rl is None:
            return
        if recipe.rl.mini_batch_prompts is not None:
            batch, key = recipe.rl.mini_batch_prompts, ("rl", "mini_batch_prompts")
        per_response = recipe.rl.max_new_tokens if recipe.rl.aggregation == "token" else SAMPLE_WEIGHT
        per_sample = recipe.rl.samples_per_prompt * per_response
        unit = f"rl.samples_per_prompt {recipe.rl.samples_per_prompt:,} responses of weight {per_response:,}"
    elif recipe.stage == "sft" and sft.batch_unit == "conversations":
        if "sample" not in sft_losses(sft):
            return  # how many rows they fill is known with the data
        per_sample, unit = SAMPLE_WEIGHT, f"weight {SAMPLE_WEIGHT:,} a conversation"
    elif recipe.stage == "sft" and "token" not in sft_losses(sft):
        return
    weight, most = batch * per_sample, MAX_STEP_WEIGHT // per_sample
    if weight > MAX_STEP_WEIGHT and not most and recipe.rl is not None:  # one prompt's responses are too many
        key, most = ("rl", "samples_per_prompt"), MAX_STEP_WEIGHT * recipe.rl.samples_per_prompt // weight
    if weight > MAX_STEP_WEIGHT:
        yield key, too_heavy(f"{batch:,} x {unit}", weight=weight, most=most)


def too_heavy(what: str, *, weight: int, most: int) -> str:
    """The message of a step that weighs too much.

    Args:
        what: Value and rule.
        weight: Of the step.
        most: The largest value that is sure to do.
    """
    return (
        f"{what} = {weight:,} divide the gradient of a step, and core counts to {MAX_STEP_WEIGHT:,}; lower it to "
        f"{most:,} or less"
    )
