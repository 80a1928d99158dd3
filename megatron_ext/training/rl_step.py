"""One step of an rl stage: one batch of completions, and one or more optimizer updates from it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from megatron_ext.training.parts import Parts
from megatron_ext.training.rollout_source import RolloutSource
from megatron_ext.training.state import StepResult
from megatron_ext.training.step import train_step


def rl_step(parts: Parts, *, lr: float, step: int, may_skip: bool = False) -> StepResult:
    """Samples completions, and updates the parameters as often as mini-batches and epochs ask for.

    All ranks must call this.

    Args:
        parts: What is trained.
        lr: Learning rate of the step's updates.
        step: Number of this step, from 1.
        may_skip: As in `train_step`, for each update.

    Raises:
        TrainingError: Sampler and trainer disagree, or loss or gradient is not finite.
        DataError: The permitted passes over the prompts are used up.
    """
    source = parts.cursor
    assert isinstance(source, RolloutSource), "an rl stage reads rollouts"
    began, sampled = time.perf_counter(), source.sampled_tokens
    results = [train_step(parts, lr=lr, step=step, may_skip=may_skip) for _ in range(source.updates_per_step)]
    processed = sum(result.processed_tokens for result in results)
    learning_s = time.perf_counter() - began - source.facts["sampling_s"]
    facts = {"updates": len(results), "learning_s": learning_s, "learned_tokens_per_s": processed / learning_s}
    return _joined(results, sampled_tokens=source.sampled_tokens - sampled, facts=source.facts | facts)


def _joined(results: Sequence[StepResult], *, sampled_tokens: int, facts: dict[str, Any]) -> StepResult:
    """The updates of a step as one result: counts summed, losses and norms averaged, maxima kept."""
    first, skipped = results[0], [result.skipped for result in results if result.skipped is not None]
    objective = {
        name: (max if name.endswith("_max") else fmean)([result.objective[name] for result in results])
        for name in first.objective
    }
    return StepResult(
        loss=fmean(result.loss for result in results),
        loss_by_source=_mean_by_key([result.loss_by_source for result in results]),
        loss_by_domain=_mean_by_key([result.loss_by_domain for result in results]),
        grad_norm=fmean(result.grad_norm for result in results),
        lr=first.lr,
        samples=sum(result.samples for result in results),
        processed_tokens=sum(result.processed_tokens for result in results),
        trained_tokens=sum(result.trained_tokens for result in results),
        skipped="\n".join(skipped) if skipped else None,
        norms=next((result.norms for result in results if result.norms), {}),
        rank_seconds=tuple(map(sum, zip(*(result.rank_seconds for result in results), strict=True))),
        objective=objective | facts,
        sampled_tokens=sampled_tokens,
    )


def _mean_by_key(values: Sequence[dict[str, float]]) -> dict[str, float]:
    keys = dict.fromkeys(key for of_one in values for key in of_one)
    return {key: fmean(of_one[key] for of_one in values if key in of_one) for key in keys}
