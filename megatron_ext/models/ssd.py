"""The state space dual (SSD) of Mamba-2 in plain torch.

For every head, with a state S of shape [p, n]:

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T          y_t = S_t C_t + D x_t

`ssd_scan_ref` computes that token by token in float64; `ssd_chunked` computes the same for training
(Source: Mamba-2, arXiv 2405.21060, section 6 and listing 1); `ssd_step` is one token of it, `ssd_step_` the same in
place, for decoding.

Where a row holds several documents, `seq_idx` [b, l] numbers them, and the state is zero before the first
token of each, as with the argument of that name in mamba-ssm.

Shapes:
    b batch   l length   h heads   p head width   g groups   n state width
    x, y [b, l, h, p]   dt [b, l, h]   A, D [h]   B, C [b, l, g, n]   state [b, h, p, n]
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_ext.models.ssd_chunks import ChunkedSSD

DEFAULT_CHUNK_SIZE = 64
"""Fastest on the CPUs that we measured."""


def ssd_chunked(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs the SSD over whole sequences; differentiable once in every tensor argument.

    Accumulates in float32 at least; float64 stays float64.

    Args:
        x: Inputs, [b, l, h, p].
        dt: Step sizes after softplus, at least 0, [b, l, h].
        A: Decay rates, below 0, [h].
        B: Input projections, [b, l, g, n]; head i reads group i // (h / g).
        C: Output projections, [b, l, g, n].
        D: Skip weights, [h].
        chunk_size: Tokens of a chunk: changes speed and rounding, not the result.
        initial_state: State before the first token, [b, h, p, n]; zero when None.
        seq_idx: Document of each token, [b, l], equal numbers side by side; one document a row when None.

    Returns:
        y [b, l, h, p] in x's dtype, and the state after the last token [b, h, p, n] in the dtype of
        the accumulation.

    Raises:
        ValueError: When the sequence is empty or the groups do not divide the heads.
    """
    batch, length, num_heads, head_dim = x.shape
    num_groups, state_dim = B.shape[2:]
    if length == 0 or num_heads % num_groups:
        raise ValueError(
            f"x {tuple(x.shape)}, B {tuple(B.shape)}: the length must be positive and the groups divide the heads."
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    if initial_state is None:
        initial_state = x.new_zeros(batch, num_heads, head_dim, state_dim, dtype=dtype)
    chunk = min(chunk_size, length)
    padding = -length % chunk
    xs, dts, Bs, Cs = (_pad_tokens(t.to(dtype), padding) for t in (x, dt, B, C))
    if seq_idx is not None and padding:
        seq_idx = torch.cat([seq_idx, seq_idx[:, -1:].expand(batch, padding)], dim=1)
    skip = torch.zeros_like(A, dtype=dtype) if D is None else D.to(dtype)
    y, state = ChunkedSSD.apply(xs, dts, A.to(dtype), Bs, Cs, skip, initial_state.to(dtype), seq_idx, chunk)
    return y[:, :length].to(x.dtype), state


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Advances the SSD by one token.

    Args:
        state: State before the token, [b, h, p, n]; its dtype is the dtype of the computation.
        x: Input, [b, h, p].
        dt: Step sizes after softplus, [b, h].
        A: Decay rates, [h].
        B: Input projections, [b, g, n].
        C: Output projections, [b, g, n].
        D: Skip weights, [h].

    Returns:
        y [b, h, p] in x's dtype, and the new state [b, h, p, n].
    """
    heads_per_group = x.shape[1] // B.shape[1]
    xs, dts, Bs, Cs = (t.to(state.dtype) for t in (x, dt, B, C))
    Bs, Cs = (t.repeat_interleave(heads_per_group, dim=1) for t in (Bs, Cs))  # [b, h, n]
    decay = torch.exp(dts * A.to(state.dtype))
    state = state * decay[..., None, None] + (dts[..., None] * xs)[..., None] * Bs[:, :, None, :]
    y = (state * Cs[:, :, None, :]).sum(-1)
    if D is not None:
        y = y + D.to(state.dtype)[:, None] * xs
    return y.to(x.dtype), state


def ssd_step_(state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """`ssd_step` that overwrites `state`, contiguous: three passes over it instead of six, and nothing its size.

    Returns:
        y [b, h, p] in x's dtype.
    """
    dtype, (batch, heads, p, n) = state.dtype, state.shape
    rows = batch * B.shape[1]
    xs, dts = x.to(dtype), dt.to(dtype).view(batch, heads, 1)
    decay = torch.exp(dts * A.to(dtype).view(heads, 1))
    grouped = state.mul_(decay.view(batch, heads, 1, 1)).view(rows, -1, n)  # heads that share B and C are one matrix
    grouped.baddbmm_((dts * xs).view(rows, -1, 1), B.to(dtype).reshape(rows, 1, n))
    y = torch.bmm(grouped, C.to(dtype).reshape(rows, n, 1)).view(batch, heads, p)
    return y.addcmul_(D.to(dtype).view(heads, 1), xs).to(x.dtype)


def ssd_scan_ref(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sequential float64 twin of `ssd_chunked`: same arguments; `chunk_size` is ignored; autograd backward.

    Returns:
        y [b, l, h, p] and the state after the last token [b, h, p, n], both float64.
    """
    xs, dts, Bs, Cs = (t.double() for t in (x, dt, B, C))
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], *x.shape[2:], B.shape[-1])
    state = initial_state.double()
    ys = []
    for t in range(x.shape[1]):
        if seq_idx is not None and t > 0:
            state = state * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        y, state = ssd_step(state, xs[:, t], dts[:, t], A.double(), Bs[:, t], Cs[:, t], D)
        ys.append(y)
    return torch.stack(ys, dim=1), state


def _pad_tokens(t: Tensor, padding: int) -> Tensor:
    """Appends zeros along dim 1: a token with dt = 0 leaves the state as it is."""
    return t if padding == 0 else torch.cat([t, t.new_zeros(t.shape[0], padding, *t.shape[2:])], dim=1)
