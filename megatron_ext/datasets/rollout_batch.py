"""One microbatch of sampled responses, packed in rows with their prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from megatron_ext.datasets.batch import Batch


@dataclass(frozen=True, kw_only=True)
class RolloutBatch(Batch):
    """As `Batch`, in packed rows, with what an RL loss needs of each token.

    All of it stands at the place of the label that it is of, `[b, s]` float32. What it holds where `loss_mask` is 0
    does not matter; 0 is the custom. The `loss_mask` of a response is `response_weight`'s `per_token` at each of its
    labels.

    Attributes:
        divisor: What each response adds to the number that divides the gradient (`response_weight`'s `counted`), at
            its first label; 0 elsewhere.
        advantages: Of the token's response.
        sampled_log_probs: As the sampler gave them, at its temperature, in nats.
        old_log_probs: Of the policy that the step began with, by the training path; None takes the log-probabilities
            of the update itself, without gradient: exactly on policy.
        reference_log_probs: Of the reference model, by the training path; None without one.
    """

    divisor: torch.Tensor
    advantages: torch.Tensor
    sampled_log_probs: torch.Tensor
    old_log_probs: torch.Tensor | None = None
    reference_log_probs: torch.Tensor | None = None
