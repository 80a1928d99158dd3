"""The learning rate as a function of consumed samples, and of nothing else.

Shapes are those of Megatron-Core 0.19 `optimizer_param_scheduler.py` (`get_lr`), checked against it
in tests/parity. One thing differs: a step uses the rate at the samples consumed *after* it. Core
uses the samples before it, so its first warmup step trains with rate 0 and its last step never
reaches the end of the decay.
"""

from __future__ import annotations

import math

from megatron_ext.plan.stage_plan import SchedulePlan
from megatron_ext.recipe.schema import OptimizerRecipe


def learning_rate(schedule: SchedulePlan, optimizer: OptimizerRecipe, *, consumed_samples: float) -> float:
    """The rate of the step that ends at `consumed_samples`.

    Args:
        schedule: Shape and lengths, in samples.
        optimizer: `lr` is the peak, `min_lr` the end of the decay.
        consumed_samples: Samples consumed once the step is done, over all ranks and all stages of the chain, of
            `schedule.sample_tokens` tokens.

    Returns:
        The learning rate, between 0 (warmup) and `lr`.
    """
    if consumed_samples < schedule.warmup_samples:
        return optimizer.lr * consumed_samples / schedule.warmup_samples
    if schedule.style == "constant":
        return optimizer.lr
    if consumed_samples >= schedule.horizon_samples:
        return optimizer.min_lr
    if schedule.style == "wsd":
        decayed, shape = _wsd_progress(schedule, consumed_samples), schedule.decay_style
    else:
        decay_samples = schedule.horizon_samples - schedule.warmup_samples
        decayed, shape = (consumed_samples - schedule.warmup_samples) / decay_samples, schedule.style
    return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * _height(shape, decayed)


def _wsd_progress(schedule: SchedulePlan, consumed_samples: float) -> float:
    start = schedule.horizon_samples - schedule.decay_samples
    return max(0.0, (consumed_samples - start) / schedule.decay_samples)


def _height(shape: str, decayed: float) -> float:
    """Share of the distance between `min_lr` and `lr` that is left after `decayed` in [0, 1] of the decay."""
    if shape == "linear":
        return 1.0 - decayed
    if shape == "cosine":
        return 0.5 * (math.cos(math.pi * decayed) + 1.0)
    if shape == "exponential":
        return 2.0 * math.pow(0.5, decayed) - 1.0
    assert shape == "minus_sqrt", f"unknown decay shape {shape!r}"
    return 1.0 - math.sqrt(decayed)
