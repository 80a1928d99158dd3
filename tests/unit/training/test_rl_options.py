"""Nothing that a recipe says of an rl stage is lost on its way to sampler, loss and rewards."""

from __future__ import annotations

import dataclasses

from megatron_ext.objectives.rewards import RewardOptions
from megatron_ext.objectives.rl import RlOptions
from megatron_ext.recipe.schema import RlRecipe
from megatron_ext.rollout.protocol import Sampling
from megatron_ext.training.rl_options import reward_options, rl_options, sampling_of

ODD = RlRecipe.model_validate(
    {
        "prompts": ({"source": "a", "file": "a.jsonl"},),
        "max_prompt_tokens": 3,
        "max_new_tokens": 7,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 11,
        "advantage": "leave-one-out",
        "clip_low": 0.1,
        "clip_high": 0.28,
        "kl": {"estimator": "k1", "coefficient": 0.5, "weighted": True},
        "aggregation": "token",
        "importance_cap": 2.0,
        "overlong": "soft-penalty",
        "overlong_penalty_tokens": 4,
        "rewards": {"accuracy": 0.25, "format": 0.5, "accuracy_and_format": 0.0, "on_error": "count"},
    }
)
"""Every value is another than its default."""


def test_the_loss_is_what_the_recipe_says() -> None:
    found = rl_options(ODD)
    assert found == RlOptions(
        max_new_tokens=7,
        temperature=0.7,
        advantage="leave-one-out",
        clip_low=0.1,
        clip_high=0.28,
        kl="k1",
        kl_coefficient=0.5,
        kl_weighted=True,
        aggregation="token",
        importance_cap=2.0,
        overlong="soft-penalty",
        overlong_penalty_tokens=4,
    )
    defaults = RlOptions(max_new_tokens=8)
    assert all(getattr(found, field.name) != getattr(defaults, field.name) for field in dataclasses.fields(RlOptions))


def test_sampling_is_what_the_recipe_says() -> None:
    stops = frozenset({5})
    assert sampling_of(ODD, stops) == Sampling(max_new_tokens=7, temperature=0.7, top_p=0.9, top_k=11, stop_ids=stops)


def test_rewards_are_what_the_recipe_says() -> None:
    assert reward_options(ODD) == RewardOptions(weights={"accuracy": 0.25, "format": 0.5}, on_error="count")
