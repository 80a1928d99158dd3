r"""GRPO: a clipped policy gradient whose baseline is the mean reward of the samples of one prompt.

Everything here is a pure function of tensors. Of each token of a response, with log-probabilities at the sampling
temperature,

    loss = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) w + kl_coefficient k

where r = exp(log p - log p_old), A is the advantage of the response, w the truncated importance weight of the
mismatch between sampler and training path (1 without `importance_cap`), and k an estimate of the KL divergence from
the policy to the reference model.

Where this differs from GRPO as published (DeepSeekMath, arXiv 2402.03300, equations 3 and 4):

1. With `aggregation: sequence`, the paper's, the mean is over all responses of the batch that are trained on. The
   paper averages within each group first; the two are the same where groups are equally large.
2. `advantage: mean-std` divides by the sample's standard deviation (n - 1) plus 1e-6, as veRL does; a group whose
   rewards are all equal has the advantages 0, exactly.
3. `clip_high` may differ from `clip_low` (DAPO, arXiv 2503.14476, section 3.1).
4. `aggregation: token` is DAPO's (section 3.3), `group-sum` is Dr. GRPO's (arXiv 2503.20783), divided by the constant
   `max_new_tokens`. `advantage: mean` is Dr. GRPO's too, `leave-one-out` is RLOO's (arXiv 2402.14740).
5. `kl: k3` is the paper's estimator; k1 and k2 are the others of one list (Schulman, "Approximating KL divergence",
   2020). `kl_weighted` multiplies the estimate by r, with gradient.
6. `importance_cap` is not in the paper.
7. `overlong: soft-penalty` is DAPO's equation 13, added to the reward; `mask` is its overlong filtering: a response
   that was cut off is in neither the loss nor what divides it.
8. Ratios and logarithms are nowhere cut to a range, and there is no third, lower clip for negative advantages: a
   ratio that overflows stops the step with an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch

from data_tools.errors import RecipeError
from megatron_ext.recipe.step_weight import SAMPLE_WEIGHT

Advantage = Literal["mean-std", "leave-one-out", "mean"]
KlEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["token", "sequence", "group-sum"]
Overlong = Literal["keep", "mask", "soft-penalty"]

_STD_FLOOR = 1e-6
"""Source: `epsilon` of veRL's `compute_grpo_outcome_advantage`."""


@dataclass(frozen=True, kw_only=True)
class RlOptions:
    """What the loss is; the recipe's `rl:` section has the same names.

    Attributes:
        max_new_tokens: Of a response at most, the token that stopped it included.
        temperature: Of sampling; logits are divided by it, above 0.
        advantage: What becomes of the rewards of a group: less their mean, over their standard deviation
            (`mean-std`); less the mean of the others (`leave-one-out`); less their mean (`mean`).
        clip_low: The ratio is clipped at 1 - clip_low.
        clip_high: The ratio is clipped at 1 + clip_high.
        kl: Estimator of the KL divergence to the reference.
        kl_coefficient: Of that estimate in the loss; 0 needs no reference.
        kl_weighted: Multiply the estimate by the ratio, with gradient: the gradient is then that of the divergence
            itself. Source: DeepSeek-V3.2, arXiv 2512.02556; TRL's `use_bias_correction_kl`.
        aggregation: What weighs the same: every token; every response (`sequence`); every token, divided by responses
            times `max_new_tokens` (`group-sum`).
        importance_cap: Upper bound of p_old / p_sampled, by which a token's policy term is multiplied; None does not.
        overlong: What becomes of responses that were cut off (`mask`) or are nearly so (`soft-penalty`).
        overlong_penalty_tokens: With `soft-penalty`: how many of the last tokens are penalised.

    Raises:
        RecipeError: A value is outside its range, or two do not go together.
    """

    max_new_tokens: int
    temperature: float = 1.0
    advantage: Advantage = "mean-std"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl: KlEstimator = "k3"
    kl_coefficient: float = 0.001
    kl_weighted: bool = False
    aggregation: Aggregation = "sequence"
    importance_cap: float | None = None
    overlong: Overlong = "keep"
    overlong_penalty_tokens: int = 0

    def __post_init__(self) -> None:
        is_soft, tokens = self.overlong == "soft-penalty", self.overlong_penalty_tokens
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 < self.temperature < float("inf"), "above 0: log-probabilities are taken at it"),
            "advantage": (self.advantage in get_args(Advantage), f"one of {', '.join(get_args(Advantage))}"),
            "clip_low": (0 < self.clip_low <= 1, "in (0, 1]"),
            "clip_high": (0 < self.clip_high < float("inf"), "above 0"),
            "kl": (self.kl in get_args(KlEstimator), f"one of {', '.join(get_args(KlEstimator))}"),
            "kl_coefficient": (0 <= self.kl_coefficient < float("inf"), "at least 0; 0 needs no reference"),
            "kl_weighted": (
                self.kl_weighted or self.kl != "k1" or not self.kl_coefficient,
                "true with kl: k1, whose gradient is else 0 on average; or take k2 or k3",
            ),
            "aggregation": (self.aggregation in get_args(Aggregation), f"one of {', '.join(get_args(Aggregation))}"),
            "importance_cap": (self.importance_cap is None or self.importance_cap >= 1, "at least 1, or null for none"),
            "overlong": (self.overlong in get_args(Overlong), f"one of {', '.join(get_args(Overlong))}"),
            "overlong_penalty_tokens": (
                0 < tokens <= self.max_new_tokens if is_soft else tokens == 0,
                "from 1 to max_new_tokens with overlong: soft-penalty, else 0",
            ),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise RecipeError(f"rl.{name}: {getattr(self, name)}: must be {rule}.")


def group_advantages(rewards: torch.Tensor, kind: Advantage) -> torch.Tensor:
    """How much better each response is than the others of its prompt.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), "leave-one-out").tolist()
    [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0]]

    Args:
        rewards: `[num_prompts, num_samples]`, at least two samples.
        kind: As `RlOptions.advantage`.

    Returns:
        The same shape, float64. Exactly 0 where all rewards of a group are equal.
    """
    rewards = rewards.double()
    num_samples = rewards.shape[1]
    assert num_samples >= 2, "the plan refuses groups of one: their advantages are 0"
    advantages = rewards - rewards.mean(1, keepdim=True)
    if kind == "leave-one-out":
        advantages = (rewards * num_samples - rewards.sum(1, keepdim=True)) / (num_samples - 1)
    elif kind == "mean-std":
        advantages = advantages / (rewards.std(1, keepdim=True) + _STD_FLOOR)
    return advantages.masked_fill(zero_variance_groups(rewards)[:, None], 0.0)


def zero_variance_groups(rewards: torch.Tensor) -> torch.Tensor:
    """Which groups teach nothing because all their rewards are equal; dynamic sampling replaces them.

    DAPO looks at accuracy alone; so does this, where `rewards` are without `length_penalty`.

    >>> zero_variance_groups(torch.tensor([[0.0, 1.0], [1.0, 1.0]])).tolist()
    [False, True]

    Args:
        rewards: `[num_prompts, num_samples]`.

    Returns:
        `[num_prompts]` bool.
    """
    return rewards.amax(1) == rewards.amin(1)


def length_penalty(length: int, options: RlOptions) -> float:
    """What is added to the reward of a response for its length.

    Source: DAPO, arXiv 2503.14476, equation 13.

    >>> options = RlOptions(max_new_tokens=100, overlong="soft-penalty", overlong_penalty_tokens=20)
    >>> [length_penalty(length, options) for length in (80, 90, 100)]
    [0.0, -0.5, -1.0]

    Args:
        length: Tokens of the response, the one that stopped it included.
        options: Of the stage.

    Returns:
        From -1 to 0; 0 without `overlong: soft-penalty`.
    """
    if options.overlong != "soft-penalty":
        return 0.0
    tokens_left = options.max_new_tokens - length
    return min(max(tokens_left / options.overlong_penalty_tokens, 0.0), 1.0) - 1.0


class ResponseWeight(NamedTuple):
    """What a response weighs in the loss.

    Attributes:
        per_token: Factor of the loss of each of its tokens.
        counted: What it adds to the number that divides the gradient of the step.
    """

    per_token: float
    counted: int


def response_weight(length: int, options: RlOptions, *, is_cut_off: bool) -> ResponseWeight:
    """What a response of `length` tokens weighs, wherever and beside whatever it lies.

    >>> response_weight(4, RlOptions(max_new_tokens=8), is_cut_off=False)
    ResponseWeight(per_token=1024.0, counted=4096)

    Args:
        length: Its tokens, the one that stopped it included.
        options: Of the stage.
        is_cut_off: Whether it ended at its limit and not by itself.
    """
    if is_cut_off and options.overlong == "mask":
        return ResponseWeight(0.0, 0)
    if options.aggregation == "token":
        return ResponseWeight(1.0, length)
    divisor = length if options.aggregation == "sequence" else options.max_new_tokens
    return ResponseWeight(SAMPLE_WEIGHT / divisor, SAMPLE_WEIGHT)


def estimate_kl(log_probs: torch.Tensor, reference_log_probs: torch.Tensor, kind: KlEstimator) -> torch.Tensor:
    """Per-token estimates of KL(policy || reference), of tokens that the policy sampled.

    Source: Schulman, "Approximating KL divergence" (2020). k1 has no bias and may be negative; k2 = k1^2 / 2 has a
    bias and, on policy, the divergence's own gradient; k3 has neither bias nor negative values.

    Args:
        log_probs: Of the policy, any shape, in nats.
        reference_log_probs: Of the reference, the same shape.
        kind: The estimator.

    Returns:
        Nats, the same shape, with gradient.
    """
    difference = log_probs - reference_log_probs
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    return torch.expm1(-difference) + difference


class TokenLosses(NamedTuple):
    """The loss of each token, and what there is to log about it, `[b, s]` float32; 0 where nothing is trained.

    Attributes:
        loss: With gradient, before any weight of aggregation.
        kl: Estimate of the KL divergence to the reference; 0 without one.
        ratio: Policy over old policy.
        is_clipped_low: Whether the lower clip took the gradient away.
        is_clipped_high: Whether the upper one did.
        is_truncated: Whether the importance weight was cut to its cap.
    """

    loss: torch.Tensor
    kl: torch.Tensor
    ratio: torch.Tensor
    is_clipped_low: torch.Tensor
    is_clipped_high: torch.Tensor
    is_truncated: torch.Tensor


def token_losses(
    log_probs: torch.Tensor,
    *,
    old_log_probs: torch.Tensor,
    sampled_log_probs: torch.Tensor,
    reference_log_probs: torch.Tensor | None,
    advantages: torch.Tensor,
    is_trained: torch.Tensor,
    options: RlOptions,
) -> TokenLosses:
    """The loss of each token; the formula stands on top of this file.

    Args:
        log_probs: Of the policy, `[b, s]` float32, in nats, with gradient.
        old_log_probs: Of the policy that the rollouts' step began with, by the training path.
        sampled_log_probs: As the sampler gave them.
        reference_log_probs: Of the reference model; None only where `kl_coefficient` is 0.
        advantages: Of each token's response.
        is_trained: Bool; what the tensors hold elsewhere does not matter.
        options: Of the stage.
    """
    # before anything is computed: behind an exp, 0 times an infinite value would be a gradient of NaN
    log_probs, old_log_probs, sampled_log_probs, advantages = (
        torch.where(is_trained, values, 0.0) for values in (log_probs, old_log_probs, sampled_log_probs, advantages)
    )
    ratio = (log_probs - old_log_probs).exp()
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    is_truncated = torch.zeros_like(is_trained)
    if options.importance_cap is not None:
        weight = (old_log_probs - sampled_log_probs).exp()
        is_truncated = weight > options.importance_cap
        loss = loss * weight.clamp(max=options.importance_cap)
    kl = torch.zeros_like(loss)
    if options.kl_coefficient:
        assert reference_log_probs is not None, "a coefficient above 0 needs a reference"
        kl = estimate_kl(log_probs, torch.where(is_trained, reference_log_probs, 0.0), options.kl)
        loss = loss + options.kl_coefficient * (kl * ratio if options.kl_weighted else kl)
    return TokenLosses(
        loss=loss,
        kl=kl.detach(),
        ratio=torch.where(is_trained, ratio.detach(), 0.0),
        is_clipped_low=((ratio < 1 - options.clip_low) & (advantages < 0)).float(),
        is_clipped_high=((ratio > 1 + options.clip_high) & (advantages > 0)).float(),
        is_truncated=is_truncated.float(),
    )
