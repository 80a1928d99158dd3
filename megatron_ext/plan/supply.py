"""Whether each source can supply its share within its permitted passes, and what to change if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data_tools.blend_files import SourceFile
from data_tools.blend_floors import unread
from data_tools.blend_plan import Allotment, Budget, shortages
from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.stage_plan import BatchPlan
from megatron_ext.recipe.load import LoadedBlend, LoadedRecipe
from megatron_ext.recipe.problems import Problems


def check_supply(
    loaded: LoadedRecipe,
    blend: LoadedBlend,
    allotments: Sequence[Allotment],
    batch: BatchPlan,
    problems: Problems,
    *,
    samples: int,
    entry_of: Mapping[str, int],
) -> None:
    """Finds each source that a phase would read more often than it may, or less than it must, counted over the chain.

    Args:
        loaded: What was asked.
        blend: The phase's blend.
        allotments: What its sources give, with what was read of them before.
        batch: The stage's numbers.
        problems: Takes what each such source needs, what it has, and up to three changes of which each makes it
            suffice.
        samples: Samples of the phase.
        entry_of: Place in the blend of the entry that leads to each source.
    """
    is_whole_stage = len(loaded.blends) == 1
    full_steps = (batch.total_samples - batch.ramp_samples) // batch.global_batch_size
    budget = Budget(
        key="budget.tokens",
        sequence_length=batch.sequence_length,
        total_samples=samples,
        step_samples=batch.global_batch_size,
        most_steps=full_steps - 1 if is_whole_stage else 0,  # a phase is shortened in two places at once
        ramp_samples=batch.ramp_samples,
        shares_are_written=all(isinstance(part, SourceFile) for part in blend.parts),
    )
    may_raise = is_whole_stage and loaded.recipe.schedule.horizon_tokens is None
    for index, message in [*shortages(allotments, budget), *unread(allotments, budget, may_raise=may_raise)]:
        key: KeyPath = (*blend.key, entry_of[allotments[index].source], "share")
        problems.add(loaded.origin(key), key, message)
