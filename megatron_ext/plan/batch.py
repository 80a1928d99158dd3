"""Tokens into samples, samples into steps: every number of a stage that follows from its budget.

Whatever has to be rounded is rounded to the nearest, and said in a sentence with both numbers.
"""

from __future__ import annotations

from data_tools.blend_plan import nearest_multiple
from megatron_ext.plan.ramp import ramp_fits, ramp_segments
from megatron_ext.plan.stage_plan import BatchPlan, CadencePlan, LayoutPlan, SchedulePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import Recipe


def plan_batch(loaded: LoadedRecipe, layout: LayoutPlan, problems: Problems, roundings: list[str]) -> BatchPlan:
    """Divides the budget into steps, samples and microbatches.

    Args:
        loaded: What was asked.
        layout: Legal for the recipe, so that a full step divides into whole microbatches.
        problems: Takes a ramp that does not fit.
        roundings: Takes a sentence when the budget is no whole number of steps.
    """
    recipe, training = loaded.recipe, loaded.recipe.training
    tokens_per_step = training.sequence_length * training.global_batch_size
    if training.ramp_tokens and ramp_fits(loaded, layout, problems):
        ramp, total_steps, total_samples = _ramped_steps(recipe, roundings)
    else:
        ramp = ()
        total_steps = _steps("budget.tokens", recipe.budget.tokens, tokens_per_step, roundings)
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
    )


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


def plan_schedule(loaded: LoadedRecipe, batch: BatchPlan, problems: Problems, roundings: list[str]) -> SchedulePlan:
    """Turns the tokens of warmup and decay into samples.

    Args:
        loaded: What was asked.
        batch: The stage's budget in samples, which is the schedule's horizon.
        problems: Takes a warmup and decay that do not fit.
        roundings: Takes a sentence for each length that is no whole number of samples.
    """
    asked = loaded.recipe.schedule
    warmup = _samples("schedule.warmup_tokens", asked.warmup_tokens, batch, roundings)
    if asked.decay_tokens is not None:
        decay = _samples("schedule.decay_tokens", asked.decay_tokens, batch, roundings)
        parts = f"{asked.warmup_tokens:,} + decay_tokens {asked.decay_tokens:,} = "
        parts += f"{asked.warmup_tokens + asked.decay_tokens:,}"
        fits, rule = warmup + decay <= batch.total_samples, "do not fit in"
    else:
        decay = batch.total_samples - warmup
        parts = f"{asked.warmup_tokens:,}"
        fits, rule = decay > 0, f"leaves style {asked.style} nothing of"
    if not fits:
        budget = (
            f"{batch.total_tokens:,} tokens of the budget ({batch.total_steps:,} steps of {batch.tokens_per_step:,})"
        )
        problems.add(
            loaded.origin(("schedule", "warmup_tokens")),
            ("schedule", "warmup_tokens"),
            f"{parts} {rule} the {budget}; lower {'them' if asked.decay_tokens else 'it'} or raise budget.tokens",
        )
    return SchedulePlan(
        style=asked.style,
        decay_style=asked.decay_style,
        warmup_samples=warmup,
        decay_samples=decay,
        horizon_samples=batch.total_samples,
    )


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
        validation_samples=_samples("training.validation_tokens", training.validation_tokens, batch, roundings),
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


def _samples(key: str, tokens: int, batch: BatchPlan, roundings: list[str]) -> int:
    length = batch.sequence_length
    samples = nearest_multiple(tokens, length) if tokens else 0
    if samples * length != tokens:
        roundings.append(
            f"{key} {tokens:,} is {tokens / length:,.2f} samples of {length:,} tokens: "
            f"rounded to {samples:,} samples, {samples * length:,} tokens."
        )
    return samples
