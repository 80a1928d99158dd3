"""One microbatch, as every objective gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, their targets, and where each row came from.

    Attributes:
        tokens: Inputs, `[b, s]` int64.
        labels: The token after each input, `[b, s]` int64.
        loss_mask: 1 where a label is trained on, else 0, `[b, s]` float32; in packed rows what it weighs.
        position_ids: Place of each token in its row, `[b, s]` int64; the rows are one row in memory.
        source_index: Place of each row's source in `plan.data.sources`, `[b]` int64; in packed rows of each token's,
            `[b, s]`.
        sample_ids: One `source:epoch:sample` a row; of packed rows `row:number`.
        cu_seqlens: Where documents begin, counted over the rows laid end to end, from 0, and the end `b * s` of all;
            None where documents are not kept apart. Every row begins a document, if only with the rest of one.
        weight_of_part: `weight` of a part of rows, which `context_slices.py` makes; None of whole rows.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    position_ids: torch.Tensor
    source_index: torch.Tensor
    sample_ids: tuple[str, ...]
    cu_seqlens: tuple[int, ...] | None = None
    weight_of_part: int | None = None

    @property
    def weight(self) -> torch.Tensor:
        """What these tokens add to the number that divides the gradient: scalar, int32 as core's counter wants it."""
        if self.weight_of_part is not None:
            return torch.tensor(self.weight_of_part, dtype=torch.int32, device=self.loss_mask.device)
        return self.loss_mask.double().sum().round().to(torch.int32)

    @property
    def model_shape(self) -> tuple[int, int]:
        """Rows and tokens of the tensors that the model gets: documents kept apart share one row."""
        rows, tokens = self.tokens.shape
        return (rows, tokens) if self.cu_seqlens is None else (1, rows * tokens)

    @classmethod
    def from_rows(
        cls,
        rows: NDArray[np.int64],
        *,
        source_index: Sequence[int],
        sample_ids: Sequence[str],
        row_mask: Sequence[float] | None = None,
        document_starts: Sequence[Sequence[int]] | None = None,
        masked_labels: Sequence[Sequence[int]] = (),
    ) -> Batch:
        """Splits rows into inputs and labels.

        Args:
            rows: `[b, s + 1]`; each row's last token is only a label, its first only an input.
            source_index: Place of each row's source in the plan, `[b]`.
            sample_ids: `[b]`.
            row_mask: Loss mask of each whole row, `[b]`; None trains on all of them.
            document_starts: Places in each row where a document begins, rising; None does not keep them apart.
            masked_labels: Places in each row whose label is not trained on; () masks none.
        """
        tokens = torch.from_numpy(rows)
        batch_size, sequence_length = rows.shape[0], rows.shape[1] - 1
        loss_mask = torch.ones(batch_size, sequence_length)
        if row_mask is not None:
            loss_mask *= torch.tensor(row_mask)[:, None]
        for row, places in enumerate(masked_labels):
            loss_mask[row, places] = 0
        return cls(
            tokens=tokens[:, :-1].contiguous(),
            labels=tokens[:, 1:].contiguous(),
            loss_mask=loss_mask,
            position_ids=torch.arange(sequence_length).expand(batch_size, sequence_length),
            source_index=torch.tensor(source_index, dtype=torch.int64),
            sample_ids=tuple(sample_ids),
            cu_seqlens=None if document_starts is None else _laid_end_to_end(document_starts, sequence_length),
        )

    def to(self, device: torch.device) -> Batch:
        """The same rows on `device`."""
        if self.tokens.device == device:
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in values.items() if torch.is_tensor(v)})


def _laid_end_to_end(document_starts: Sequence[Sequence[int]], length: int) -> tuple[int, ...]:
    """Starts within rows of `length` as places in all rows together.

    >>> _laid_end_to_end([[0, 3], [], [2, 4]], 4)
    (0, 3, 4, 8, 10, 12)
    """
    places: list[int] = []
    for row, starts in enumerate(document_starts):
        inside = (start for start in starts if 0 < start < length)  # place `length` is the last label, no input
        places += [row * length, *(row * length + start for start in inside)]
    return (*places, len(document_starts) * length)


def rows_of_rank(
    *, num_microbatches: int, micro_batch_size: int, data_parallel_rank: int, data_parallel_size: int
) -> list[list[int]]:
    """Lists the rows of a global batch that one data-parallel rank reads, by microbatch.

    Row `m * (micro * dp) + rank * micro + i` is row i of microbatch m: a global batch is the same
    set of rows in every layout.

    >>> rows_of_rank(num_microbatches=2, micro_batch_size=2, data_parallel_rank=1, data_parallel_size=2)
    [[2, 3], [6, 7]]

    Source: `MegatronPretrainingSampler` of Megatron-LM core_v0.19.0, whose consecutive slices of
    `micro * dp` samples are cut by rank.
    """
    first = data_parallel_rank * micro_batch_size
    stride = data_parallel_size * micro_batch_size
    return [list(range(m * stride + first, m * stride + first + micro_batch_size)) for m in range(num_microbatches)]
