"""A batch that grows: small steps while the loss falls fast, full ones afterwards.

The first `ramp_tokens` of the stage are cut into equal stretches, one for each batch size from
`ramp_start_batch_size` to `global_batch_size - ramp_increment`; a step has the size of the stretch in
which its first token lies. What no stretch holds any more is read in steps of `global_batch_size`.

Source: Megatron-LM's `--rampup-batch-size start increment samples`, in tokens and whole numbers. Core 0.19
reads that option no more; a test compares with the general schedule that it has instead
(`StepBatchsizeNumMicroBatchesCalculator`), given the same stretches.
"""

from __future__ import annotations

from megatron_ext.plan.stage_plan import LayoutPlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.rules import divisors, listed
from megatron_ext.recipe.schema import TrainingRecipe

_LISTED = 12


def ramp_segments(training: TrainingRecipe) -> tuple[tuple[tuple[int, int], ...], int]:
    """The batch sizes of a ramp.

    Args:
        training: With a ramp that is legal (`ramp_fits`).

    Returns:
        `(first step, samples a step)` of each size that gets a step, `global_batch_size` last, and the samples
        that the steps before that one read.
    """
    full = training.global_batch_size
    sizes = range(training.ramp_start_batch_size or 0, full, training.ramp_increment or 0)  # the rules want both
    step, samples, segments = 1, 0, []
    for stretch, rows in enumerate(sizes, 1):
        # The stretch ends at ramp_tokens * stretch / len(sizes): compared after multiplying, so exactly.
        left = training.ramp_tokens * stretch - samples * training.sequence_length * len(sizes)
        steps = max(0, -(-left // (rows * training.sequence_length * len(sizes))))
        if steps:
            segments.append((step, rows))
        step, samples = step + steps, samples + steps * rows
    return (*segments, (step, full)), samples


def ramp_fits(loaded: LoadedRecipe, layout: LayoutPlan, problems: Problems) -> bool:
    """Whether a ramp ends within the budget and divides among the ranks; what is wrong goes to `problems`."""
    training, budget = loaded.recipe.training, loaded.recipe.budget.tokens
    start, increment = training.ramp_start_batch_size or 0, training.ramp_increment or 0  # the rules want both
    full, unit = training.global_batch_size, training.micro_batch_size * layout.data_parallel_size
    wrong: dict[str, str] = {}
    if training.ramp_tokens >= budget:
        wrong["ramp_tokens"] = (
            f"{training.ramp_tokens:,} does not end within budget.tokens {budget:,}; lower it, or raise budget.tokens"
        )
    elif full % unit == 0 and start % unit:
        legal = [rows for rows in range(unit, full, unit) if (full - rows) % increment == 0] or [
            *range(unit, full, unit)
        ]
        wrong["ramp_start_batch_size"] = _does_not_divide(start, training, layout, legal)
    elif full % unit == 0 and increment % unit:
        legal = [rows for rows in divisors(full - start) if rows % unit == 0]
        wrong["ramp_increment"] = _does_not_divide(increment, training, layout, legal)
    for key, message in wrong.items():
        problems.add(loaded.origin(("training", key)), ("training", key), message)
    return not wrong


def _does_not_divide(value: int, training: TrainingRecipe, layout: LayoutPlan, legal: list[int]) -> str:
    micro, ranks = training.micro_batch_size, layout.data_parallel_size
    values = (
        listed(legal[:_LISTED]) + (" …" if len(legal) > _LISTED else "") if legal else "none, lower micro_batch_size"
    )
    return (
        f"{value} is no multiple of micro_batch_size {micro} x data_parallel_size {ranks} = {micro * ranks}, so a step "
        f"of the ramp does not divide into whole microbatches; legal: {values}"
    )
