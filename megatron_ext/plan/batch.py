"""Tokens into samples, samples into steps: every number of a stage that follows from its budget.

Whatever has to be rounded is rounded to the nearest, and said in a sentence with both numbers.
"""

from __future__ import annotations

from data_tools.blend_plan import nearest_multiple
from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.ramp import ramp_fits, ramp_segments
from megatron_ext.plan.stage_plan import BatchPlan, CadencePlan, LayoutPlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import Recipe


def plan_batch(
    loaded: LoadedRecipe,
    layout: LayoutPlan,
    problems: Problems,
    roundings: list[str],
    *,
    before: BatchPlan | None = None,
) -> BatchPlan:
    """Divides the budget into steps, samples and microbatches.

    The stages of a chain are rounded together: each ends at the step that is nearest to the sum of all
    budgets so far, so a chain has as many steps as one stage of its whole budget.

    Args:
        loaded: What was asked.
        layout: Legal for the recipe, so that a full step divides into whole microbatches.
        problems: Takes a ramp that does not fit.
        roundings: Takes a sentence when the budget is no whole number of steps.
        before: The stage that this one continues.
    """
    recipe, training = loaded.recipe, loaded.recipe.training
    tokens_per_step = training.sequence_length * training.global_batch_size
    ramp: tuple[tuple[int, int], ...] = ()
    tokens_before, requested_before = _before(before)
    if before is None and training.ramp_tokens and ramp_fits(loaded, layout, problems):
        ramp, total_steps, total_samples = _ramped_steps(recipe, roundings)
    else:
        if before is None:
            total_steps = _steps("budget.tokens", recipe.budget.tokens, tokens_per_step, roundings)
        else:
            total_steps = _steps_behind(before, recipe, roundings)
        total_samples = total_steps * training.global_batch_size
    return BatchPlan(
        sequence_length=training.sequence_length,
        global_batch_size=training.global_batch_size,
        micro_batch_size=training.micro_batch_size,
        num_microbatches=training.global_batch_size // (training.micro_batch_size * layout.data_parallel_size),
        requested_tokens=recipe.budget.tokens,
        tokens_per_step=tokens_per_step,
        total_steps=total_steps,
        total_samples=total_samples,
        total_tokens=total_samples * training.sequence_length,
        max_steps=training.max_steps,
        ramp=ramp,
        tokens_before=tokens_before,
        requested_tokens_before=requested_before,
    )


def _before(before: BatchPlan | None) -> tuple[int, int]:
    """Tokens of the chain before a stage, read and requested."""
    if before is None:
        return 0, 0
    return before.end_tokens, before.requested_tokens_before + before.requested_tokens


def _steps_behind(before: BatchPlan, recipe: Recipe, roundings: list[str]) -> int:
    """Steps of a stage that continues another."""
    training, asked = recipe.training, recipe.budget.tokens
    tokens_per_step = training.sequence_length * training.global_batch_size
    done, asked_before = _before(before)
    steps = nearest_multiple(asked_before + asked - done, tokens_per_step)
    tokens = steps * tokens_per_step
    if tokens != asked:
        roundings.append(
            f"budget.tokens {asked:,} behind {asked_before:,} in the stages before, which read {done:,}: rounded to "
            f"{steps:,} steps, {tokens:,} tokens, so that the chain reads {done + tokens:,} of "
            f"{asked_before + asked:,}."
        )
    if training.ramp_tokens:
        roundings.append(
            f"training.ramp_tokens {training.ramp_tokens:,}: the ramp lies in the first stage of the chain; here every "
            f"step has {training.global_batch_size:,} samples."
        )
    return steps


def _ramped_steps(recipe: Recipe, roundings: list[str]) -> tuple[tuple[tuple[int, int], ...], int, int]:
    """The ramp's segments, and the steps and samples of the whole stage."""
    training, asked = recipe.training, recipe.budget.tokens
    length, rows = training.sequence_length, training.global_batch_size
    ramp, ramp_samples = ramp_segments(training)
    ramp_steps = ramp[-1][0] - 1
    full_steps = nearest_multiple(max(0, asked - ramp_samples * length), rows * length)
    total = ramp_samples + full_steps * rows
    if total * length != asked:
        roundings.append(
            f"budget.tokens {asked:,} is no whole number of steps: rounded to {ramp_steps:,} steps of the ramp and "
            f"{full_steps:,} full steps of {rows * length:,} tokens, {total * length:,} tokens."
        )
    roundings.append(
        f"training.ramp_tokens {training.ramp_tokens:,}: the batch grows from {ramp[0][1]:,} to {rows:,} samples in "
        f"{ramp_steps:,} steps. Validations and checkpoints come every so many steps, counted in full steps: while "
        "the batch grows there are fewer tokens between them."
    )
    return ramp, ramp_steps + full_steps, total


def plan_phases(loaded: LoadedRecipe, batch: BatchPlan, problems: Problems, roundings: list[str]) -> tuple[int, ...]:
    """The samples of each phase; a phase ends at the step that is nearest to what was asked up to there.

    Args:
        loaded: What was asked.
        batch: The whole stage.
        problems: Takes a phase that ends inside the ramp, or has no step.
        roundings: Takes a sentence for each phase that is no whole number of steps.
    """
    if len(loaded.blends) <= 1:
        return (batch.total_samples,)
    length, rows = batch.sequence_length, batch.global_batch_size
    start = batch.ramp_samples
    done, asked, samples = 0, batch.requested_tokens_before, []
    for index, blend in enumerate(loaded.blends):
        asked += blend.tokens
        left = asked - batch.tokens_before - start * length
        end = start + max(0, (2 * left + rows * length) // (2 * rows * length)) * rows
        if index == len(loaded.blends) - 1:
            end = batch.total_samples
        key: KeyPath = (*blend.key[:-1], "tokens")
        if left <= 0 or end <= done:
            message = f"{blend.tokens:,} tokens end {'inside the ramp' if left <= 0 else 'before the first step'}"
            problems.add(loaded.origin(key), key, f"{message}; raise them, or join the phase with the next one")
        elif (end - done) * length != blend.tokens:
            roundings.append(
                f"data.phases[{index}].tokens {blend.tokens:,} does not end with a step: rounded to "
                f"{(end - done) * length:,} tokens."
            )
        samples.append(end - done)
        done = end
    return tuple(samples)


def plan_cadence(recipe: Recipe, batch: BatchPlan, roundings: list[str]) -> CadencePlan:
    """Turns the tokens between validations and checkpoints into steps.

    `checkpoint.keep_every_tokens` becomes a multiple of the checkpoint interval: between two
    checkpoints there is nothing to keep.
    """
    training, checkpoint = recipe.training, recipe.checkpoint
    step = batch.tokens_per_step
    interval = _steps("checkpoint.interval_tokens", checkpoint.interval_tokens, step, roundings)
    keep_every: int | None = None
    if checkpoint.keep_every_tokens is not None:
        asked = checkpoint.keep_every_tokens
        keep_every = interval * nearest_multiple(asked, interval * step)
        if keep_every * step != asked:
            roundings.append(
                f"checkpoint.keep_every_tokens {asked:,} is no multiple of the {interval:,} steps between checkpoints: "
                f"rounded to every {keep_every:,} steps, {keep_every * step:,} tokens."
            )
    return CadencePlan(
        validation_interval_steps=_steps(
            "training.validation_interval_tokens", training.validation_interval_tokens, step, roundings
        ),
        validation_samples=to_samples(
            "training.validation_tokens", training.validation_tokens, batch.sequence_length, roundings
        ),
        checkpoint_interval_steps=interval,
        checkpoint_keep_last=checkpoint.keep_last,
        checkpoint_keep_every_steps=keep_every,
    )


def _steps(key: str, tokens: int, tokens_per_step: int, roundings: list[str]) -> int:
    steps = nearest_multiple(tokens, tokens_per_step)
    if steps * tokens_per_step != tokens:
        roundings.append(
            f"{key} {tokens:,} is {tokens / tokens_per_step:,.2f} steps of {tokens_per_step:,} tokens: "
            f"rounded to {steps:,} steps, {steps * tokens_per_step:,} tokens."
        )
    return steps


def to_samples(key: str, tokens: int, length: int, roundings: list[str]) -> int:
    """The samples of some length that are nearest to some tokens; a rounding is said with the key."""
    samples = nearest_multiple(tokens, length) if tokens else 0
    if samples * length != tokens:
        roundings.append(
            f"{key} {tokens:,} is {tokens / length:,.2f} samples of {length:,} tokens: "
            f"rounded to {samples:,} samples, {samples * length:,} tokens."
        )
    return samples
