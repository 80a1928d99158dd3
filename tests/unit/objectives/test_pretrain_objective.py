"""The pretraining loss, with a pencil."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from megatron_ext.datasets.batch import Batch
from megatron_ext.objectives.pretrain import PretrainObjective


def make_batch(*, row_mask: list[float], source_index: list[int]) -> Batch:
    rows = np.arange(len(row_mask) * 4, dtype=np.int64).reshape(len(row_mask), 4)
    return Batch.from_rows(rows, source_index=source_index, sample_ids=["s:0:0"] * len(row_mask), row_mask=row_mask)


def test_loss_is_summed_over_unmasked_tokens_only() -> None:
    batch = make_batch(row_mask=[1.0, 0.0], source_index=[0, 0])
    losses = torch.tensor([[1.0, 2.0, 3.0], [100.0, 100.0, 100.0]])
    total, tokens, _ = PretrainObjective(1).sum_losses(losses, batch)
    assert total.item() == 6.0
    assert tokens.item() == 3
    assert tokens.dtype == torch.int32


def test_report_keeps_sources_apart() -> None:
    batch = make_batch(row_mask=[1.0, 1.0, 1.0], source_index=[2, 0, 2])
    losses = torch.tensor([[1.0, 1.0, 1.0], [5.0, 5.0, 5.0], [2.0, 2.0, 2.0]])
    _, _, report = PretrainObjective(3).sum_losses(losses, batch)
    assert report.tolist() == [[15.0, 3.0], [0.0, 0.0], [9.0, 6.0]]


def test_gradient_reaches_unmasked_tokens_with_weight_one() -> None:
    batch = make_batch(row_mask=[1.0, 0.0], source_index=[0, 0])
    losses = torch.zeros(2, 3, requires_grad=True)
    total, _, _ = PretrainObjective(1).sum_losses(losses, batch)
    total.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


def test_forward_step_gives_the_model_tokens_positions_and_labels() -> None:
    batch = make_batch(row_mask=[1.0], source_index=[0])

    def model(tokens: torch.Tensor, positions: torch.Tensor, mask: None, *, labels: torch.Tensor) -> torch.Tensor:
        return (labels * 100 + tokens * 10 + positions).float()

    output, loss_function = PretrainObjective(1).forward_step(iter([batch]), model)
    assert output.tolist() == [[100.0, 211.0, 322.0]]
    assert loss_function(output)[0].item() == 633.0


def test_rows_whose_documents_are_kept_apart_are_laid_end_to_end() -> None:
    rows = np.arange(8, dtype=np.int64).reshape(2, 4)
    batch = Batch.from_rows(rows, source_index=[0, 1], sample_ids=["s:0:0"] * 2, document_starts=[[0, 2], []])
    seen = {}

    def model(tokens: torch.Tensor, positions: torch.Tensor, mask: None, **kwargs: Any) -> torch.Tensor:
        seen.update(kwargs, tokens=tokens.tolist(), positions=positions.tolist())
        return tokens.float()

    output, loss_function = PretrainObjective(2, reset="full").forward_step(iter([batch]), model)
    assert (seen["tokens"], seen["positions"]) == ([[0, 1, 2, 4, 5, 6]], [[0, 1, 2, 0, 1, 2]])
    assert seen["labels"].tolist() == [[1, 2, 3, 5, 6, 7]]
    assert seen["packed_seq_params"].seq_idx.tolist() == [[0, 0, 1, 2, 2, 2]]
    assert loss_function(output)[2].tolist() == [[3.0, 3.0], [15.0, 3.0]]


def test_resetting_attention_alone_is_what_the_layers_are_told() -> None:
    rows = np.arange(4, dtype=np.int64).reshape(1, 4)
    batch = Batch.from_rows(rows, source_index=[0], sample_ids=["s:0:0"], document_starts=[[0, 2]])

    def model(tokens: torch.Tensor, *_: Any, labels: Any, packed_seq_params: Any) -> torch.Tensor:
        assert packed_seq_params.cu_seqlens_q.tolist() == [0, 2, 3]
        assert packed_seq_params.seq_idx is None
        return tokens.float()

    PretrainObjective(1, reset="attention").forward_step(iter([batch]), model)
