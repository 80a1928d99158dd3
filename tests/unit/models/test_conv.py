"""The causal convolution against torch's own, and one token at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_ext.models.conv import causal_conv1d_silu, causal_conv1d_silu_step

CHANNELS = 3


def make_inputs(length: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = ((2, length, CHANNELS), (CHANNELS, 1, 4), (CHANNELS,))
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padded = F.pad(x.transpose(1, 2), (3, 0))
    return F.silu(F.conv1d(padded, weight, bias, groups=CHANNELS)).transpose(1, 2)


def test_each_tap_meets_its_own_token() -> None:
    x = torch.tensor([1.0, 10, 100, 1000, 0]).view(1, 5, 1)
    weight, bias = torch.tensor([4.0, 3, 2, 1]).view(1, 1, 4), torch.zeros(1)
    y = causal_conv1d_silu(x, weight, bias).flatten()
    expected = torch.tensor([1.0, 12, 123, 1234, 2340])  # the digits: the oldest token meets the first tap
    torch.testing.assert_close(y, F.silu(expected))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 11])
def test_equals_torchs_convolution(length: int) -> None:
    inputs = make_inputs(length)
    torch.testing.assert_close(causal_conv1d_silu(*inputs), torch_conv(*inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 11])
def test_gradients_equal_torchs(length: int) -> None:
    inputs = make_inputs(length)
    weights = torch.randn(2, length, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = torch.autograd.grad((causal_conv1d_silu(*inputs) * weights).sum(), inputs)
    theirs = torch.autograd.grad((torch_conv(*inputs) * weights).sum(), inputs)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_steps_from_an_empty_state_equal_the_sequence() -> None:
    x, weight, bias = (t.detach().float() for t in make_inputs(6))
    state = torch.zeros(2, CHANNELS, 4)
    steps = [causal_conv1d_silu_step(state, x[:, t], weight, bias) for t in range(6)]
    torch.testing.assert_close(torch.stack(steps, 1), causal_conv1d_silu(x, weight, bias))


def test_no_tap_reaches_into_another_document() -> None:
    x = torch.tensor([1.0, 10, 100, 1000, 10000]).view(1, 5, 1)
    weight, bias = torch.tensor([4.0, 3, 2, 1]).view(1, 1, 4), torch.zeros(1)
    y = causal_conv1d_silu(x, weight, bias, torch.tensor([[0, 0, 1, 1, 1]])).flatten()
    expected = torch.tensor([1.0, 12, 100, 1200, 12300])
    torch.testing.assert_close(y, F.silu(expected))


@pytest.mark.parametrize("first", range(1, 8))
def test_two_documents_of_a_row_are_convolved_like_two_rows(first: int) -> None:
    x, weight, bias = make_inputs(11)
    seq_idx = (torch.arange(11) >= first).int().expand(2, 11)
    weights = torch.randn(2, 11, CHANNELS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = causal_conv1d_silu(x, weight, bias, seq_idx)
    apart = torch.cat([torch_conv(part, weight, bias) for part in (x[:, :first], x[:, first:])], dim=1)
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), (x, weight, bias)) for y in (together, apart))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
