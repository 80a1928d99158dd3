"""Ten lines of plain torch: what a training step is, without any of Megatron-Core's machinery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_ext.datasets.batch import Batch
from megatron_ext.plan.stage_plan import StagePlan
from megatron_ext.training.optimizer import has_weight_decay


def make_adamw(plan: StagePlan, model: torch.nn.Module) -> torch.optim.AdamW:
    """torch's AdamW with the plan's hyperparameters and no decay on vectors and the convolution."""
    wanted = plan.optimizer
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if has_weight_decay(n, p)], "weight_decay": wanted.weight_decay},
        {"params": [p for n, p in named if not has_weight_decay(n, p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=wanted.lr, betas=(wanted.beta1, wanted.beta2), eps=wanted.eps)


def plain_step(plan: StagePlan, model: Any, adam: torch.optim.AdamW, batches: Sequence[Batch], *, lr: float) -> float:
    """One update; returns the mean loss over the step's tokens, in nats."""
    for group in adam.param_groups:
        group["lr"] = lr
    adam.zero_grad()
    trained_tokens = sum(batch.loss_mask.sum() for batch in batches)
    loss = 0.0
    for batch in batches:
        losses = model(batch.tokens, batch.position_ids, None, labels=batch.labels)
        part = (losses * batch.loss_mask).sum() / trained_tokens
        part.backward()
        loss += part.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), plan.optimizer.clip_grad)
    adam.step()
    return loss
