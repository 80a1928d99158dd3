"""How far the sampler's log-probabilities are from the trainer's, of the very tokens that are about to be learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from data_tools.errors import TrainingError
from megatron_ext.datasets.rollout_batch import RolloutBatch
from megatron_ext.runtime.device import device


@dataclass(frozen=True)
class Mismatch:
    """Over all tokens of a step that are learned from and all ranks, in nats.

    Attributes:
        mean: Of |log p sampled - log p trained|.
        largest: Of the same.
        kl: KL(sampler || trainer), estimated by k3 (Schulman 2020) of the sampler's tokens.
    """

    mean: float
    largest: float
    kl: float


def measure_mismatch(batches: Sequence[RolloutBatch], groups: ProcessGroupCollection) -> Mismatch:
    """Compares what sampling and training say of the same tokens.

    All ranks must call this.

    Args:
        batches: This rank's rows, with their old log-probabilities.
        groups: Process groups.
    """
    sums = torch.zeros(3, dtype=torch.float64)
    largest = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        assert batch.old_log_probs is not None, "the trainer's log-probabilities are computed first"
        is_trained = batch.loss_mask > 0
        difference = (batch.old_log_probs - batch.sampled_log_probs).double()[is_trained]
        kl = torch.expm1(difference) - difference
        sums += torch.stack((difference.abs().sum(), kl.sum(), is_trained.sum().double()))
        if len(difference):
            largest = torch.maximum(largest, torch.nan_to_num(difference.abs().max(), nan=math.inf))
    sums, largest = sums.to(device()), largest.to(device())
    dist.all_reduce(sums, group=groups.dp)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=groups.dp)
    total, kl_total, tokens = sums.tolist()
    return Mismatch(total / max(tokens, 1), float(largest), kl_total / max(tokens, 1))


def require_agreement(mismatch: Mismatch, threshold: float, *, step: int) -> None:
    """Stops a stage that would learn from what another policy said.

    Raises:
        TrainingError: The mean is above the threshold, or not finite; nothing was learned from the step.
    """
    if mismatch.mean <= threshold:
        return
    raise TrainingError(
        f"step {step}: sampler and trainer disagree: |log p sampled - log p trained| has mean {mismatch.mean:.3g} and "
        f"max {mismatch.largest:.3g} nats, KL {mismatch.kl:.3g}; rl.mismatch_threshold allows a mean of {threshold:g}."
        f" The weights are those of step {step - 1}, the newest checkpoint is untouched.\n"
        "  Likely causes: weights that the sampler did not take over; a cache whose state is wrong or kept in fewer "
        "bits\n  (SSM states want fp32); documents of a row that are not kept apart; another temperature or vocabulary "
        "in one\n  of the two; bf16 whose noise is above the threshold. `megatron-ext doctor` says what computes the "
        "layers; look at\n  the first mismatch of metrics.jsonl: from step 1 on it is the engine, later the weights."
    )
