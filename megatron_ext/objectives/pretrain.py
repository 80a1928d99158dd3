"""Next-token prediction, summed over trained tokens.

The gradient is divided by the number of trained tokens of the whole global batch (Megatron-Core's
`calculate_per_token_loss=True`), so a token weighs the same wherever microbatch, rank and mask
borders fall. Core's default averages per microbatch and is biased as soon as masks differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from megatron_ext.datasets.batch import Batch
from megatron_ext.datasets.packed_params import Reset, packed_params

Report = torch.Tensor
"""`[num_sources, columns]` float64 of one microbatch: of each source the summed loss in nats, what divides it, and
last the trained tokens. In pretraining these divide it, and there are two columns."""

LossFunction = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, Report]]


class PretrainObjective:
    """Cross entropy of the next token.

    Args:
        num_sources: Sources of the blend; `Batch.source_index` is below it.
        reset: What stops at a document's end, in batches that say where documents begin.
    """

    report_columns = 2
    max_columns: tuple[int, ...] = ()
    """Columns of the report of which a step has the largest value, where of others it has the sum; none is below 0."""

    def __init__(self, num_sources: int, *, reset: Reset = "full") -> None:
        self.num_sources = num_sources
        self.reset = reset

    def forward_step(self, batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, LossFunction]:
        """Runs the model on the next microbatch; Megatron-Core's `forward_step_func`.

        Args:
            batches: This rank's microbatches.
            model: A pipeline stage of a `HybridModel`, wrapped or not.

        Returns:
            The stage's output (`[b, s]` losses on the last stage, hidden states elsewhere) and the
            function that turns the losses into (summed loss, trained tokens, report).
        """
        batch = next(batches)
        output = self.run_model(model, batch, labels=batch.labels.reshape(batch.model_shape))

        def loss_function(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Report]:
            return self.sum_losses(losses.view_as(batch.labels), batch)

        return output, loss_function

    def run_model(self, model: Any, batch: Batch, *, labels: torch.Tensor | None) -> torch.Tensor:
        """What a pipeline stage gives for a microbatch; without `labels` the last one gives its part of the logits."""
        tokens, positions = (t.reshape(batch.model_shape) for t in (batch.tokens, batch.position_ids))
        apart = {}
        if batch.cu_seqlens is not None:
            apart["packed_seq_params"] = packed_params(
                batch.cu_seqlens, total_tokens=batch.cu_seqlens[-1], reset=self.reset, device=tokens.device
            )
        output: torch.Tensor = model(tokens, positions, None, labels=labels, **apart)
        return output

    def metrics(self, report: Report) -> dict[str, float]:
        """What there is to log of a step beside losses.

        Args:
            report: Of all microbatches and ranks together, `[num_sources, report_columns]`.
        """
        return {}

    def sum_losses(self, losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, Report]:
        """Sums `losses` over the trained tokens of `batch`.

        Args:
            losses: `[b, s]` cross entropies in nats.
            batch: The microbatch they belong to.

        Returns:
            Summed loss (scalar, float32, with gradient), trained tokens (scalar, int32, as core's
            counter wants it), and the report per source.
        """
        masked = losses.float() * batch.loss_mask
        report = torch.zeros(self.num_sources, self.report_columns, dtype=torch.float64, device=losses.device)
        per_row = torch.stack((masked.detach().double().sum(1), batch.loss_mask.double().sum(1)), dim=1)
        report.index_add_(0, batch.source_index, per_row)
        return masked.sum(), batch.weight, report
