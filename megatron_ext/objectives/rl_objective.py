"""The RL loss of packed rows, and what is logged of it, as sums that add up over microbatches and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from megatron_ext.datasets.batch import Batch
from megatron_ext.datasets.rollout_batch import RolloutBatch
from megatron_ext.objectives.pretrain import LossFunction, PretrainObjective, Report
from megatron_ext.objectives.rl import RlOptions, TokenLosses, token_losses
from megatron_ext.objectives.token_log_probs import log_probs_and_entropy

SUMS = (
    "entropy", "kl_reference", "clip_low_fraction", "clip_high_fraction", "ratio_mean",
    "mismatch_mean", "mismatch_kl", "importance_truncated_fraction",
)  # fmt: skip
"""Sums over trained tokens, by the name of the mean that they become; docs/reference/metrics.md has them."""

MAXIMA = ("ratio_max", "mismatch_max")

_COLUMNS = ("loss", "weight", *SUMS, *MAXIMA, "trained_tokens")


class RlObjective(PretrainObjective):
    """The clipped policy gradient of `rl.py`, of rows of several responses.

    Its report has of each source the weighted loss, what divides it, `SUMS`, `MAXIMA` and the trained tokens.

    Args:
        num_sources: Prompt sets; `RolloutBatch.source_index` is below it.
        options: Of the stage.
        tp_group: The tensor-parallel ranks.
    """

    report_columns = len(_COLUMNS)
    max_columns = tuple(_COLUMNS.index(name) for name in MAXIMA)

    def __init__(self, num_sources: int, *, options: RlOptions, tp_group: dist.ProcessGroup | None) -> None:
        super().__init__(num_sources, reset="full")
        self._options, self._tp_group = options, tp_group

    def forward_step(self, batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, LossFunction]:
        """Runs the model on the next microbatch; Megatron-Core's `forward_step_func`.

        Args:
            batches: This rank's microbatches, each a `RolloutBatch`.
            model: A pipeline stage of a `HybridModel`, wrapped or not.

        Returns:
            The stage's output (`[b, s, padded vocabulary / TP]` logits on the last stage, hidden states elsewhere) and
            the function that turns the logits into (summed loss, what divides it, report).
        """
        batch = next(batches)
        assert isinstance(batch, RolloutBatch), "an rl stage reads rollouts"
        output = self.run_model(model, batch, labels=None)

        def loss_function(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Report]:
            log_probs, entropy = log_probs_and_entropy(
                logits,
                batch.labels.reshape(batch.model_shape),
                temperature=self._options.temperature,
                tp_group=self._tp_group,
            )
            return self.sum_rollouts(log_probs.view_as(batch.labels), entropy.view_as(batch.labels), batch)

        return output, loss_function

    def sum_rollouts(
        self, log_probs: torch.Tensor, entropy: torch.Tensor, batch: RolloutBatch
    ) -> tuple[torch.Tensor, torch.Tensor, Report]:
        """Sums the weighted losses of a microbatch.

        Args:
            log_probs: Of the labels, `[b, s]` float32, at the sampling temperature, in nats, with gradient.
            entropy: `[b, s]` in nats.
            batch: The microbatch that they belong to.

        Returns:
            Weighted loss (scalar, float32, with gradient), what divides it (scalar, int32, as core's counter wants
            it), and the report.
        """
        is_trained = batch.loss_mask > 0
        old = log_probs.detach() if batch.old_log_probs is None else batch.old_log_probs
        losses = token_losses(
            log_probs,
            old_log_probs=old,
            sampled_log_probs=batch.sampled_log_probs,
            reference_log_probs=batch.reference_log_probs,
            advantages=batch.advantages,
            is_trained=is_trained,
            options=self._options,
        )
        weighted = losses.loss * batch.loss_mask
        divisor = batch.divisor.double()
        mismatch = torch.where(is_trained, old - batch.sampled_log_probs, 0.0)
        facts = {
            "loss": weighted.detach(),
            "weight": divisor,
            **_sums(losses, torch.where(is_trained, entropy, 0.0), mismatch),
            "ratio_max": losses.ratio,
            "mismatch_max": mismatch.abs(),
            "trained_tokens": is_trained,
        }
        return weighted.sum(), divisor.sum().round().to(torch.int32), self._report(facts, batch)

    def _report(self, facts: dict[str, torch.Tensor], batch: RolloutBatch) -> Report:
        """Facts of tokens `[b, s]` by their source."""
        sources = batch.source_index.flatten()
        report = torch.zeros(self.num_sources, self.report_columns, dtype=torch.float64, device=sources.device)
        per_token = torch.stack([facts[name].double().flatten() for name in _COLUMNS], dim=-1)
        report.index_add_(0, sources, per_token)
        columns = list(self.max_columns)
        for source in range(self.num_sources):
            report[source, columns] = torch.where((sources == source)[:, None], per_token[:, columns], 0.0).amax(0)
        return report

    def metrics(self, report: Report) -> dict[str, float]:
        """The means and maxima of a step's trained tokens, by their names in metrics.jsonl.

        Args:
            report: Of all microbatches and ranks together, `[num_sources, report_columns]`.
        """
        tokens = max(float(report[:, -1].sum()), 1.0)
        means = {name: float(report[:, _COLUMNS.index(name)].sum()) / tokens for name in SUMS}
        return means | {name: float(report[:, _COLUMNS.index(name)].max()) for name in MAXIMA}


def _sums(losses: TokenLosses, entropy: torch.Tensor, mismatch: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is summed over tokens `[b, s]`, in the order of `SUMS`; `mismatch` is log p_old - log p_sampled.

    The KL divergence of the mismatch is from the sampler to the training path, estimated by k3 of the sampler's tokens.
    """
    values = (
        entropy,
        losses.kl,
        losses.is_clipped_low,
        losses.is_clipped_high,
        losses.ratio,
        mismatch.abs(),
        torch.expm1(mismatch) - mismatch,
        losses.is_truncated,
    )
    return dict(zip(SUMS, values, strict=True))
