"""Learning rates that a pencil can check."""

from __future__ import annotations

import pytest

from megatron_ext.plan.stage_plan import SchedulePlan
from megatron_ext.recipe.schema import OptimizerRecipe
from megatron_ext.training.schedule import learning_rate

OPTIMIZER = OptimizerRecipe(lr=1.0, min_lr=0.2)


def rates(style: str, samples: list[int], *, decay_style: str = "linear") -> list[float]:
    schedule = SchedulePlan(
        style=style, decay_style=decay_style, warmup_samples=10, decay_samples=40, horizon_samples=110, sample_tokens=1
    )
    return [learning_rate(schedule, OPTIMIZER, consumed_samples=count) for count in samples]


def test_warmup_rises_linearly_from_zero_to_the_peak() -> None:
    assert rates("cosine", [1, 5, 10]) == [0.1, 0.5, 1.0]


def test_linear_decay_reaches_min_lr_at_the_horizon() -> None:
    assert rates("linear", [10, 60, 110]) == pytest.approx([1.0, 0.6, 0.2])


def test_wsd_is_flat_until_the_decay_begins() -> None:
    assert rates("wsd", [11, 70, 90, 110]) == pytest.approx([1.0, 1.0, 0.6, 0.2])


def test_constant_never_decays() -> None:
    assert rates("constant", [10, 110, 500]) == [1.0, 1.0, 1.0]


def test_beyond_the_horizon_the_rate_is_min_lr() -> None:
    assert rates("cosine", [111, 10_000]) == [0.2, 0.2]


def test_no_warmup_starts_at_the_peak() -> None:
    schedule = SchedulePlan(
        style="cosine", decay_style="linear", warmup_samples=0, decay_samples=1, horizon_samples=8, sample_tokens=1
    )
    assert learning_rate(schedule, OPTIMIZER, consumed_samples=0) == 1.0
