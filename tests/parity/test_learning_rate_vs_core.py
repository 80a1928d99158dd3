"""The learning rate equals Megatron-Core's OptimizerParamScheduler at the same sample count.

Both are a handful of float64 operations in the same order; the tolerance is rounding.
"""

from __future__ import annotations

import pytest
import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_ext.plan.stage_plan import SchedulePlan
from megatron_ext.recipe.schema import OptimizerRecipe
from megatron_ext.training.schedule import learning_rate

OPTIMIZER = OptimizerRecipe(lr=3e-4, min_lr=3e-6)
WARMUP, DECAY, HORIZON = 100, 300, 1000
STYLES = [("cosine", "linear"), ("linear", "linear"), ("constant", "linear")] + [
    ("wsd", decay) for decay in ("linear", "cosine", "exponential", "minus_sqrt")
]


def core_rate(style: str, decay_style: str, consumed_samples: int) -> float:
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = OptimizerParamScheduler(
        adam,
        init_lr=0.0,
        max_lr=OPTIMIZER.lr,
        min_lr=OPTIMIZER.min_lr,
        lr_warmup_steps=WARMUP,
        lr_decay_steps=HORIZON,
        lr_decay_style={"wsd": "WSD"}.get(style, style),
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=0,
        wd_incr_style="constant",
        wsd_decay_steps=DECAY,
        lr_wsd_decay_style=decay_style,
    )
    scheduler.step(consumed_samples)
    return float(adam.param_groups[0]["lr"])


@pytest.mark.parametrize(("style", "decay_style"), STYLES)
@pytest.mark.parametrize("consumed_samples", [1, 50, 100, 101, 500, 700, 701, 850, 999, 1000, 1001])
def test_learning_rate_equals_cores_at_the_same_sample_count(
    style: str, decay_style: str, consumed_samples: int
) -> None:
    schedule = SchedulePlan(
        style=style,
        decay_style=decay_style,
        warmup_samples=WARMUP,
        decay_samples=DECAY,
        horizon_samples=HORIZON,
        sample_tokens=1,
    )
    ours = learning_rate(schedule, OPTIMIZER, consumed_samples=consumed_samples)
    assert ours == pytest.approx(core_rate(style, decay_style, consumed_samples), rel=1e-12)
