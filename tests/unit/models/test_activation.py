"""Squared ReLU."""

from __future__ import annotations

import torch

from megatron_ext.models.activation import squared_relu


def test_squares_what_is_positive() -> None:
    assert squared_relu(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.0, 9.0]


def test_its_slope_is_twice_what_is_positive() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    squared_relu(x).backward(torch.tensor([1.0, 1.0, 10.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 0.0, 60.0]
