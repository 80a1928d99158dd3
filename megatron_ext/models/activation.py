"""Squared ReLU, the activation of Nemotron-H's MLP layers.

Megatron-Core's own `squared_relu` goes through torch.compile, which needs a C++ compiler on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2, elementwise (Source: So et al., "Primer", arXiv 2109.08668)."""
    if torch.is_inference_mode_enabled():
        return torch.relu(x).square_()
    return _SquaredReLU.apply(x)


class _SquaredReLU(torch.autograd.Function):
    """Keeps max(x, 0) for the backward, not x and the square: one pass and one buffer fewer than autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.clamp(min=0)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (dout * positive).mul_(2)
