"""The causal depthwise convolution of a Mamba-2 layer, with its SiLU.

    y_t = silu(bias + sum_k w_k x_{t - width + 1 + k})          x_t = 0 before the document's first token

As `width` shifted multiply-adds: depthwise F.conv1d wants channels before tokens, so it costs two
transpositions of the largest activation of the layer, and its backward on a CPU is slower still
(`tests/benchmarks/ssd.py` prints the ratio).

Shapes: b batch, l length, d channels, w width of the kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_silu(x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor | None = None) -> Tensor:
    """Convolves along the sequence and applies SiLU; differentiable once in every argument.

    Accumulates in float32 at least.

    Args:
        x: Inputs, [b, l, d]; any strides.
        weight: Kernels, [d, 1, w], the last tap meets the token itself.
        bias: [d].
        seq_idx: Document of each token, [b, l], equal numbers side by side; one document a row when None.

    Returns:
        [b, l, d], contiguous, in x's dtype.
    """
    return _CausalConv1dSiLU.apply(x, weight, bias, seq_idx)


def causal_conv1d_silu_step(conv_state: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same for one new token, for decoding.

    Args:
        conv_state: The last w inputs, [b, d, w]; shifted by one token in place. Of any strides, as `weight`; fastest
            where the channels of a tap lie side by side, as `tap_major` lays them.
        x: The new input, [b, d].
        weight: Kernels, [d, 1, w].
        bias: [d].

    Returns:
        [b, d] in x's dtype.
    """
    inputs, taps = conv_state.unbind(-1), weight[:, 0].unbind(-1)
    out = torch.addcmul(bias.float(), x.float(), taps[-1].float())
    for older, newer, tap in zip(inputs, inputs[1:], taps, strict=False):
        out.addcmul_(newer.float(), tap.float())
        older.copy_(newer)
    inputs[-1].copy_(x)
    return F.silu(out, inplace=True).to(x.dtype)


def tap_major(t: Tensor) -> Tensor:
    """The same numbers, [..., w], laid out with w outermost."""
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


class _CausalConv1dSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, seq_idx: Tensor | None) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        xs, taps = x.to(dtype), _taps(weight, dtype)
        before = torch.addcmul(bias.to(dtype), xs, taps[-1])
        for lag in range(1, taps.shape[0]):
            before[:, lag:].addcmul_(_reached(xs[:, :-lag], seq_idx, lag), taps[-1 - lag])
        ctx.save_for_backward(x, weight, bias, before, seq_idx)
        return F.silu(before).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, bias, before, seq_idx = ctx.saved_tensors
        xs, taps = x.to(before.dtype), _taps(weight, before.dtype)
        d = torch.ops.aten.silu_backward(dout.to(before.dtype), before)
        dx = d * taps[-1]
        dtaps = torch.zeros_like(taps)
        dtaps[-1] = (d * xs).sum((0, 1))
        for lag in range(1, taps.shape[0]):
            later = _reached(d[:, lag:], seq_idx, lag)
            dx[:, :-lag].addcmul_(later, taps[-1 - lag])
            dtaps[-1 - lag] = (later * xs[:, :-lag]).sum((0, 1))
        return dx.to(x.dtype), dtaps.t()[:, None].to(weight.dtype), d.sum((0, 1)).to(bias.dtype), None


def _reached(t: Tensor, seq_idx: Tensor | None, lag: int) -> Tensor:
    """Of t [b, l - lag, d] what a tap reaches: zero at pairs of tokens `lag` apart that lie in different documents."""
    return t if seq_idx is None else t * (seq_idx[:, lag:] == seq_idx[:, :-lag])[..., None]


def _taps(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[d, 1, w] as [w, d]; contiguous, because a strided factor halves the speed of a multiply-add."""
    return weight[:, 0].t().to(dtype).contiguous()
