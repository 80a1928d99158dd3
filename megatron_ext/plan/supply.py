"""Whether each source can supply its share within its permitted passes, and what to change if not."""

from __future__ import annotations

from data_tools.blend_plan import Budget, shortages
from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.stage_plan import BatchPlan, SourcePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems


def check_supply(loaded: LoadedRecipe, sources: tuple[SourcePlan, ...], batch: BatchPlan) -> None:
    """Refuses a blend that would repeat a source more often than it may.

    Raises:
        RecipeError: For each source that cannot supply its share: what it needs, what it has, and
            up to three changes of which each makes this source suffice.
    """
    problems = Problems()
    full_steps = batch.total_steps - (batch.ramp[-1][0] - 1 if batch.ramp else 0)
    budget = Budget(
        key="budget.tokens",
        sequence_length=batch.sequence_length,
        total_samples=batch.total_samples,
        step_samples=batch.global_batch_size,
        most_steps=full_steps - 1,
        ramp_samples=batch.total_samples - full_steps * batch.global_batch_size,
    )
    for index, message in shortages(sources, budget):
        key: KeyPath = ("data", "blend", index, "share")
        problems.add(loaded.origin(key), key, message)
    problems.raise_recipe_error()
