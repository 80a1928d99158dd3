"""The recipe's `rl:` section as the options of the sampler, of the loss and of the rewards."""

from __future__ import annotations

from megatron_ext.objectives.rewards import RewardOptions
from megatron_ext.objectives.rl import RlOptions
from megatron_ext.recipe.schema import RlRecipe
from megatron_ext.rollout.protocol import Sampling


def rl_options(rl: RlRecipe) -> RlOptions:
    """What the loss is."""
    return RlOptions(
        max_new_tokens=rl.max_new_tokens,
        temperature=rl.temperature,
        advantage=rl.advantage,
        clip_low=rl.clip_low,
        clip_high=rl.clip_high,
        kl=rl.kl.estimator,
        kl_coefficient=rl.kl.coefficient,
        kl_weighted=rl.kl.weighted,
        aggregation=rl.aggregation,
        importance_cap=rl.importance_cap,
        overlong=rl.overlong,
        overlong_penalty_tokens=rl.overlong_penalty_tokens,
    )


def sampling_of(rl: RlRecipe, stop_ids: frozenset[int]) -> Sampling:
    """How completions are sampled, ending with one of `stop_ids`."""
    return Sampling(
        max_new_tokens=rl.max_new_tokens,
        temperature=rl.temperature,
        top_k=rl.top_k,
        top_p=rl.top_p,
        stop_ids=stop_ids,
    )


def reward_options(rl: RlRecipe) -> RewardOptions:
    """What a completion is worth."""
    weights = {
        "accuracy": rl.rewards.accuracy,
        "format": rl.rewards.format,
        "accuracy-and-format": rl.rewards.accuracy_and_format,
    }
    return RewardOptions(
        weights={name: weight for name, weight in weights.items() if weight},
        on_error="raise" if rl.rewards.on_error == "stop" else "count",
    )
