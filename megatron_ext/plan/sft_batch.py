"""Steps of an sft stage: its packed rows, or its conversations, by `global_batch_size`; the last has the rest."""

from __future__ import annotations

from data_tools.drawing import Ints
from data_tools.quantities import format_exact
from megatron_ext.plan.sft_declared import PackedStage
from megatron_ext.plan.stage_plan import BatchPlan, LayoutPlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.schema import SftRecipe


def plan_sft_batch(
    loaded: LoadedRecipe, layout: LayoutPlan, roundings: list[str], packed: PackedStage | None
) -> BatchPlan:
    """Divides an sft stage into steps; a sample is what `sft.batch_unit` says.

    Args:
        loaded: What was asked.
        layout: How many ranks share the rows of a step.
        roundings: Takes a sentence when the last step is smaller.
        packed: The rows; None before the data is looked at, when every conversation counts as a row of its own.
    """
    recipe, training = loaded.recipe, loaded.recipe.training
    options = recipe.sft or SftRecipe()
    length, step = training.sequence_length, training.global_batch_size
    read = recipe.budget.examples * options.passes
    rows, conversations = (packed.rows, packed.conversations) if packed is not None else (read, read)
    samples = rows if options.batch_unit == "rows" else conversations
    steps = -(-samples // step)
    left = samples % step
    if packed is not None and left:
        roundings.append(
            f"training.global_batch_size {step:,}: "
            f"{'the only step' if steps == 1 else f'the last of {format_exact(steps)} steps'} has the "
            f"{format_exact(left)} {options.batch_unit.removesuffix('s') if left == 1 else options.batch_unit} that "
            f"{'is' if left == 1 else 'are'} left."
        )
    most_rows = packed.sft.most_rows_of_step if packed is not None else step
    if packed is not None:
        _note_idle_ranks(packed, layout, roundings)
    return BatchPlan(
        sequence_length=length,
        global_batch_size=step,
        micro_batch_size=training.micro_batch_size,
        num_microbatches=-(-most_rows // layout.data_parallel_size),
        requested_tokens=rows * length,
        tokens_per_step=step * length if options.batch_unit == "rows" else max(1, round(rows * length / steps)),
        total_steps=steps,
        total_samples=samples,
        total_tokens=rows * length,
        max_steps=training.max_steps,
    )


def row_slots(rows_of_steps: Ints, data_parallel_size: int) -> int:
    """Rows that the ranks compute in all steps: each rank as many as the others, rows of padding among them.

    >>> import numpy as np
    >>> row_slots(np.array([5, 2]), 4)
    12
    """
    return int((-(-rows_of_steps // data_parallel_size)).sum()) * data_parallel_size


def _note_idle_ranks(packed: PackedStage, layout: LayoutPlan, roundings: list[str]) -> None:
    slots = row_slots(packed.rows_of_steps, layout.data_parallel_size)
    rows = int(packed.rows_of_steps.sum())
    if added := slots - rows:
        padding = "1 row of padding is" if added == 1 else f"{format_exact(added)} rows of padding are"
        roundings.append(
            f"parallel: rows of steps do not divide among {layout.data_parallel_size:,} data-parallel ranks: "
            f"{padding} added to {format_exact(rows)}, "
            f"{100 * (1 - rows / slots):.3g} % of the work; larger steps or fewer ranks have less."
        )
