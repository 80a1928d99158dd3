"""Steps of an rl stage: whole steps of prompts, as many as its budget holds and its prompt set permits."""

from __future__ import annotations

import math

from data_tools.quantities import format_exact
from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.stage_plan import BatchPlan, LayoutPlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems

MOST_REFILLS = 4
"""Times that dynamic sampling draws again in one step; what is flat then stays, teaches nothing, and is counted."""


def plan_rl_batch(
    loaded: LoadedRecipe, layout: LayoutPlan, problems: Problems, roundings: list[str], *, size: int | None
) -> BatchPlan:
    """Divides an rl stage into steps; a sample is a prompt, tokens are the most that there can be.

    Args:
        loaded: What was asked.
        layout: How many ranks share the rows of an update.
        problems: Takes a budget of no step, and one that the prompt set does not permit.
        roundings: Takes a sentence where the budget is no whole number of steps.
        size: Prompts of the set; None before they are read.
    """
    recipe, rl = loaded.recipe, loaded.recipe.rl
    assert rl is not None, "a recipe of stage rl has its section"
    training, step = recipe.training, recipe.training.global_batch_size
    steps = _steps(loaded, size, problems, roundings)
    if size is not None and steps * step > rl.max_epochs * size:
        key: KeyPath = ("rl", "max_epochs")
        fitting = math.floor(rl.max_epochs * size / step)
        lower = f"lower the budget to {fitting:,} steps, or " if fitting else ""
        message = (
            f"{rl.max_epochs:g}: {steps:,} steps of {step:,} prompts read the {size:,} of the set "
            f"{steps * step / size:.3g} times; {lower}raise max_epochs to {math.ceil(steps * step / size)}"
        )
        problems.add(loaded.origin(key), key, message)
    elif size is not None and rl.dynamic_sampling:
        _count_refills(loaded, steps * step, size, problems, roundings)
    longest = rl.max_prompt_tokens + rl.max_new_tokens
    tokens_per_step = step * rl.samples_per_prompt * longest
    samples_of_update = (rl.mini_batch_prompts or step) * rl.samples_per_prompt
    rows_of_update = -(-samples_of_update // max(1, training.sequence_length // longest))
    return BatchPlan(
        sequence_length=training.sequence_length,
        global_batch_size=step,
        micro_batch_size=1,
        num_microbatches=-(-rows_of_update // layout.data_parallel_size),
        requested_tokens=steps * tokens_per_step,
        tokens_per_step=tokens_per_step,
        total_steps=steps,
        total_samples=steps * step,
        total_tokens=steps * tokens_per_step,
        max_steps=training.max_steps,
    )


def _count_refills(loaded: LoadedRecipe, planned: int, size: int, problems: Problems, roundings: list[str]) -> None:
    """Says how many prompts dynamic sampling may draw beside the planned ones; refuses where that is none."""
    assert loaded.recipe.rl is not None, "a recipe of stage rl has its section"
    max_epochs = loaded.recipe.rl.max_epochs
    spare = permitted_prompts(max_epochs, size) - planned
    if spare:
        roundings.append(
            f"rl.dynamic_sampling may draw {format_exact(spare)} prompts beside the {format_exact(planned)} of the "
            f"steps (rl.max_epochs {max_epochs:g}); when they are used up, flat groups stay and are counted."
        )
        return
    key: KeyPath = ("rl", "max_epochs")
    message = (
        f"{max_epochs:g}: the steps need all {planned:,} prompts that it permits, and rl.dynamic_sampling could draw "
        f"none in the place of flat groups; raise max_epochs to {math.floor(max_epochs) + 1}, or lower the budget"
    )
    problems.add(loaded.origin(key), key, message)


def permitted_prompts(max_epochs: float, size: int) -> int:
    """Prompts that may be drawn in all.

    >>> permitted_prompts(1.5, 24)
    36
    """
    return math.floor(max_epochs * size + 1e-9)


def _steps(loaded: LoadedRecipe, size: int | None, problems: Problems, roundings: list[str]) -> int:
    """Whole steps of the budget, rounded down: a pass that is permitted once is not begun again."""
    budget, step = loaded.recipe.budget, loaded.recipe.training.global_batch_size
    if budget.steps:
        return budget.steps
    name = "prompts" if budget.prompts else "epochs"
    if name == "epochs" and size is None:
        return 1
    prompts = budget.prompts or math.floor(budget.epochs * (size or 0) + 1e-9)
    steps = prompts // step
    if not steps:
        key: KeyPath = ("budget", name)
        message = (
            f"{getattr(budget, name):,g}: {prompts:,} prompts are less than one step of "
            f"training.global_batch_size {step:,}; raise it, or lower that"
        )
        problems.add(loaded.origin(key), key, message)
        return 1
    if prompts % step:
        roundings.append(
            f"budget.{name} {getattr(budget, name):,g} is no whole number of steps: {format_exact(steps)} steps of "
            f"{step:,} prompts, and {format_exact(prompts % step)} prompts are not sampled."
        )
    return steps
