"""Cross entropy of conversations, weighted: every trained token alike, or every conversation alike.

The batch's loss mask holds the weights (`datasets/conversations.py`). They sum to whole numbers, of trained tokens
or of parts of conversations, and the sum over the global batch divides the gradient: nothing hangs on which row,
microbatch or rank a conversation lies in. A mean of means per row, as most trainers take it, lets a token weigh more
the emptier its row is.
"""

from __future__ import annotations

import torch

from megatron_ext.datasets.batch import Batch
from megatron_ext.objectives.pretrain import PretrainObjective, Report


class SftObjective(PretrainObjective):
    """As `PretrainObjective`, of rows whose tokens belong to several sources; the report has a third column.

    Its columns are weighted loss in nats, weight, and trained tokens, of each source.
    """

    report_columns = 3

    def sum_losses(self, losses: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, Report]:
        """Sums weighted `losses` over the trained tokens of `batch`.

        Args:
            losses: `[b, s]` cross entropies in nats.
            batch: The microbatch they belong to.

        Returns:
            Weighted loss (scalar, float32, with gradient), its weight (scalar, int32, as core's counter wants it),
            and the report per source.
        """
        weighted = losses.float() * batch.loss_mask
        report = torch.zeros(self.num_sources, self.report_columns, dtype=torch.float64, device=losses.device)
        per_token = torch.stack((weighted.detach(), batch.loss_mask, (batch.loss_mask > 0).float()), dim=-1).double()
        report.index_add_(0, batch.source_index.flatten(), per_token.flatten(0, 1))
        return weighted.sum(), batch.weight, report
