"""The learning rate's lengths in samples, over a stage or over the chain of stages that share one schedule."""

from __future__ import annotations

from data_tools.blend_plan import nearest_multiple
from data_tools.strict_yaml import KeyPath
from megatron_ext.plan.batch import to_samples
from megatron_ext.plan.stage_plan import BatchPlan, SchedulePlan
from megatron_ext.recipe.load import LoadedRecipe
from megatron_ext.recipe.problems import Problems
from megatron_ext.recipe.schema import ScheduleRecipe


def plan_schedule(
    loaded: LoadedRecipe,
    batch: BatchPlan,
    problems: Problems,
    roundings: list[str],
    *,
    before: SchedulePlan | None = None,
) -> SchedulePlan:
    """Turns the tokens of warmup, decay and horizon into samples.

    Args:
        loaded: What was asked.
        batch: The stage's budget in samples, which is the schedule's horizon where none is written.
        problems: Takes a warmup and decay that do not fit, and a chain that outgrows its horizon.
        roundings: Takes a sentence for each length that is no whole number of samples.
        before: The schedule of the stage that this one continues; its horizon is inherited.
    """
    asked = loaded.recipe.schedule
    length = batch.sequence_length if before is None else before.sample_tokens
    horizon = before.horizon_samples if before is not None else _horizon(asked, batch, roundings)
    warmup = _warmup(asked, horizon, length, roundings)
    warmup_tokens = warmup * length if asked.warmup_ratio else asked.warmup_tokens
    if asked.decay_tokens is not None:
        decay = to_samples("schedule.decay_tokens", asked.decay_tokens, length, roundings)
        parts = f"{warmup_tokens:,} + decay_tokens {asked.decay_tokens:,} = {warmup_tokens + asked.decay_tokens:,}"
        fits, rule = warmup + decay <= horizon, "do not fit in"
    else:
        decay = horizon - warmup
        parts = f"{warmup_tokens:,}"
        fits, rule = decay > 0, f"leaves style {asked.style} nothing of"
    if not fits:
        whole = (
            f"{batch.total_tokens:,} tokens of the budget ({batch.total_steps:,} steps of {batch.tokens_per_step:,})"
        )
        if asked.horizon_tokens is not None:
            whole = f"{horizon * length:,} tokens of schedule.horizon_tokens"
        raised = "budget.tokens" if asked.horizon_tokens is None else "that"
        key: KeyPath = ("schedule", "warmup_ratio" if asked.warmup_ratio else "warmup_tokens")
        ratio = f"{asked.warmup_ratio:g}: " if asked.warmup_ratio else ""
        problems.add(
            loaded.origin(key),
            key,
            f"{ratio}{parts} {rule} the {whole}; lower {'them' if asked.decay_tokens else 'it'} or raise {raised}",
        )
    _check_horizon(loaded, batch, problems)
    return SchedulePlan(
        style=asked.style,
        decay_style=asked.decay_style,
        warmup_samples=warmup,
        decay_samples=decay,
        horizon_samples=horizon,
        sample_tokens=length,
        horizon_tokens=asked.horizon_tokens,
    )


def _warmup(asked: ScheduleRecipe, horizon: int, length: int, roundings: list[str]) -> int:
    if asked.warmup_ratio:  # of the horizon: every stage of a chain that writes the same ratio has the same warmup
        return round(asked.warmup_ratio * horizon)
    return to_samples("schedule.warmup_tokens", asked.warmup_tokens, length, roundings)


def _horizon(asked: ScheduleRecipe, batch: BatchPlan, roundings: list[str]) -> int:
    """Samples of a first stage's horizon, rounded to its steps like its budget."""
    if asked.horizon_tokens is None:
        return batch.total_samples
    length, rows = batch.sequence_length, batch.global_batch_size
    steps = nearest_multiple(asked.horizon_tokens - batch.ramp_samples * length, rows * length)
    horizon = batch.ramp_samples + steps * rows
    if horizon * length != asked.horizon_tokens:
        roundings.append(
            f"schedule.horizon_tokens {asked.horizon_tokens:,} is no whole number of steps: rounded to "
            f"{horizon * length:,} tokens."
        )
    return horizon


def _check_horizon(loaded: LoadedRecipe, batch: BatchPlan, problems: Problems) -> None:
    """Compares the written horizon with what the chain reads up to the end of this stage."""
    horizon = loaded.recipe.schedule.horizon_tokens
    if horizon is None:
        return
    key: KeyPath = ("schedule", "horizon_tokens")
    chain = batch.requested_tokens_before + batch.requested_tokens
    if chain > horizon:
        budgets = f"the stages before ask for {batch.requested_tokens_before:,} and " if batch.tokens_before else ""
        message = (
            f"{horizon:,} is less than the chain: {budgets}budget.tokens is {batch.requested_tokens:,}, {chain:,} in "
            "all; raise it in the first stage, or lower the budgets"
        )
        problems.add(loaded.origin(key), key, message)
