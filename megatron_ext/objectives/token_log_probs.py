"""Log-probabilities of labels and entropies, from logits that lie on tensor-parallel ranks in parts.

The normaliser is over the whole padded vocabulary, as in pretraining's loss and in the samplers
(`rollout/protocol.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

from megatron_ext.datasets.batch import Batch
from megatron_ext.objectives.pretrain import LossFunction, PretrainObjective, Report

_ENTROPY_TOKENS = 1024
"""Tokens whose entropies are computed at once: the copies of their logits are all that it holds beside them."""


def log_probs_and_entropy(
    logits: torch.Tensor, labels: torch.Tensor, *, temperature: float, tp_group: dist.ProcessGroup | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of `labels`, and the entropy of the distribution that each comes from.

    All tensor-parallel ranks must call this.

    Args:
        logits: `[b, s, padded vocabulary / TP]`, this rank's part; left as they are.
        labels: `[b, s]` int64, the same on all ranks.
        temperature: The logits are divided by it.
        tp_group: The tensor-parallel ranks.

    Returns:
        Log-probabilities `[b, s]`, float32, in nats, with gradient; entropies `[b, s]`, the same without. One float32
        copy of the logits is held for the backward pass.
    """
    scaled = _scaled(logits, temperature)
    entropy = _entropy(scaled.detach(), tp_group)
    return -vocab_parallel_cross_entropy(scaled, labels, tp_group=tp_group), entropy


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """A copy: core writes the softmax over what it is given, in place, and keeps it for the gradient."""
    return logits.to(torch.float32, copy=True).div_(temperature)


@torch.no_grad()
def _entropy(logits: torch.Tensor, tp_group: dist.ProcessGroup | None) -> torch.Tensor:
    """Entropies `[b, s]` in nats: log Z - E[x - max], with Z the sum of exp(x - max)."""
    rows = logits.flatten(0, 1)
    entropies = []
    for part in rows.split(_ENTROPY_TOKENS):
        largest = part.amax(-1)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=tp_group)
        shifted = part - largest[:, None]
        weights = shifted.exp()
        sums = torch.stack((weights.sum(-1), weights.mul_(shifted).sum(-1)))
        dist.all_reduce(sums, group=tp_group)
        entropies.append(sums[0].log() - sums[1] / sums[0])
    return torch.cat(entropies).view(logits.shape[:2])


class TokenScores(PretrainObjective):
    """Log-probabilities of labels, for passes without a gradient: of the old policy, of a reference model.

    Its report of a microbatch is them, `[b, s]` float32. They belong to no sum over microbatches.

    Args:
        temperature: The logits are divided by it.
        tp_group: The tensor-parallel ranks.
    """

    def __init__(self, *, temperature: float, tp_group: dist.ProcessGroup | None) -> None:
        super().__init__(0, reset="full")
        self._temperature, self._tp_group = temperature, tp_group

    def forward_step(self, batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, LossFunction]:
        """Runs the model on the next microbatch; Megatron-Core's `forward_step_func`.

        Args:
            batches: This rank's microbatches.
            model: A pipeline stage of a `HybridModel`, wrapped or not.

        Returns:
            The stage's output, and the function that turns logits into (0, 0, log-probabilities of the labels).
        """
        batch = next(batches)
        output = self.run_model(model, batch, labels=None)

        @torch.no_grad()
        def scores(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Report]:
            labels = batch.labels.reshape(batch.model_shape)
            scaled = _scaled(logits, self._temperature)
            found = -vocab_parallel_cross_entropy(scaled, labels, tp_group=self._tp_group)
            nothing = torch.zeros((), device=found.device)
            return nothing, nothing.to(torch.int32), found.view_as(batch.labels)

        return output, scores
