"""Weighted sums whose every number stands in the file."""

from __future__ import annotations

import torch

from megatron_ext.datasets.batch import Batch
from megatron_ext.objectives.sft import SftObjective


def row(weights: list[float], sources: list[int]) -> Batch:
    length = len(weights)
    ids = torch.arange(length)[None]
    return Batch(
        tokens=ids,
        labels=ids,
        loss_mask=torch.tensor([weights]),
        position_ids=ids,
        source_index=torch.tensor([sources]),
        sample_ids=("row:0",),
        cu_seqlens=(0, length),
    )


LOSSES = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]], requires_grad=True)


def test_tokens_that_weigh_one_are_summed_by_source() -> None:
    total, weight, report = SftObjective(2).sum_losses(LOSSES, row([1, 0, 1, 1, 0], [0, 0, 0, 1, 1]))
    assert (total.item(), weight.item()) == (13, 3)
    assert weight.dtype == torch.int32
    assert report.tolist() == [[5, 2, 2], [8, 1, 1]]


def test_conversations_weigh_one_each_and_tokens_are_still_counted() -> None:
    third = 1 / 3
    total, weight, report = SftObjective(2).sum_losses(LOSSES, row([third, third, third, 0.5, 0.5], [0, 0, 0, 1, 1]))
    assert torch.isclose(total, torch.tensor(7 / 3 + 12))
    assert weight.item() == 2
    torch.testing.assert_close(report, torch.tensor([[7 / 3, 1, 3], [12, 1, 2]], dtype=torch.float64))


def test_the_weight_of_a_conversation_is_a_whole_number() -> None:
    twelfths = [1 / 12] * 12  # they sum to 0.9999999 in fp32
    _, weight, _ = SftObjective(1).sum_losses(torch.ones(1, 12), row(twelfths, [0] * 12))
    assert weight.item() == 1


def test_each_token_gets_its_weight_as_gradient() -> None:
    losses = LOSSES.detach().clone().requires_grad_()
    weights = [0.5, 0.5, 0, 1, 0]
    SftObjective(1).sum_losses(losses, row(weights, [0] * 5))[0].backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [weights]
