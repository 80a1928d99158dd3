"""The state space dual (SSD) of Mamba-2 in plain torch, with a backward of its own.

For every head, with a state S of shape [p, n]:

    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T          y_t = S_t C_t + D x_t

`ssd_scan_ref` computes that token by token. `ssd_chunked` computes the same in chunks of q tokens:
inside a chunk as a masked attention matrix, between chunks through the states (Source: Mamba-2,
arXiv 2405.21060, section 6 and listing 1). The backward is written by hand because of one identity:
with s_t = sum of dt A over a chunk's tokens up to t, and u_t the gradient with respect to dt_t x_t,

    d loss / d s_t = dy_t . (y_t - D x_t) - u_t . dt_t x_t     (+ <dS, S> after the chunk at its last token)

Two dot products replace the row and column sums of a [q, q] matrix a head (Source: y_t is linear in
exp(s_t), and dt_t x_t meets every later token through exp(-s_t)).

Shapes:
    b batch   l length   h heads   p head width   g groups   r = h / g heads of a group   n state width
    c chunks  q tokens of a chunk
    x, y [b, l, h, p]   dt [b, l, h]   A, D [h]   B, C [b, l, g, n]   state [b, h, p, n]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DEFAULT_CHUNK_SIZE = 64
"""Fastest on the CPUs that we measured."""

_SMALLEST_EXPONENT = -80.0
"""exp(-80) = 1.8e-35 stands for all that is smaller: below, vectorised exp leaves its fast path (ten times slower)."""

_HEADS_FIRST = (0, 1, 3, 4, 2, 5)  # [c, b, q, g, r, p] -> [c, b, g, r, q, p]
_GROUPS_FIRST = (0, 1, 3, 2, 4, 5)  # [c, b, q, g, r, p] -> [c, b, g, q, r, p]


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
    xs, dts, Bs, Cs = (_pad_tokens(t.to(dtype), -length % chunk) for t in (x, dt, B, C))
    skip = torch.zeros_like(A, dtype=dtype) if D is None else D.to(dtype)
    y, state = _ChunkedSSD.apply(xs, dts, A.to(dtype), Bs, Cs, skip, initial_state.to(dtype), chunk)
    return y[:, :length].to(x.dtype), state


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Advances the SSD by one token, for decoding.

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
        y, state = ssd_step(state, xs[:, t], dts[:, t], A.double(), Bs[:, t], Cs[:, t], D)
        ys.append(y)
    return torch.stack(ys, dim=1), state


def _pad_tokens(t: Tensor, padding: int) -> Tensor:
    """Appends zeros along dim 1: a token with dt = 0 leaves the state as it is."""
    return t if padding == 0 else torch.cat([t, t.new_zeros(t.shape[0], padding, *t.shape[2:])], dim=1)


def _scaled(t: Tensor, weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """t [c, b, q, g, r, p] times weight [c, b, q, g, r], contiguous in another order of its dimensions."""
    out = t.new_empty([t.shape[i] for i in order])
    return torch.mul(t.permute(order), weight[..., None].permute(order), out=out)


def _decay_matrices(s: Tensor) -> Tensor:
    """exp(s_i - s_j) where i >= j, else 0. s falls along q: [c, b, q, g, r] -> [c, b, g, r, q, q].

    Above the diagonal the exponent is clamped, then dropped: masking it with -inf made exp 15 times slower.
    """
    s = s.permute(0, 1, 3, 4, 2).contiguous()
    exponent = s[..., :, None] - s[..., None, :]
    return exponent.clamp_(_SMALLEST_EXPONENT, 0.0).exp_().tril_()


class _ChunkedSSD(torch.autograd.Function):
    """SSD over a whole number of chunks, all tensors in one dtype.

    Products of one head run as [c b g r] small matrices; products with B or C, which the heads of a
    group share, as [c b g] matrices of width r p. Chunks come first, so that the states before and
    after every chunk are two slices of one buffer.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial_state: Tensor, q: int
    ) -> tuple[Tensor, Tensor]:
        b, l, h, p = x.shape
        g, n = B.shape[2:]
        c, r = l // q, h // g
        xs = x.reshape(b, c, q, g, r, p).transpose(0, 1)
        dts = dt.reshape(b, c, q, g, r).transpose(0, 1)
        Bs, Cs = (t.reshape(b, c, q, g, n).permute(1, 0, 3, 2, 4).reshape(c * b * g, q, n) for t in (B, C))

        s = (dts * A.view(g, r)).cumsum(2)  # [c, b, q, g, r]
        growth = s.clamp(min=_SMALLEST_EXPONENT).exp_()  # from the chunk's start to the token
        remaining = (s[:, :, -1:] - s).clamp_(min=_SMALLEST_EXPONENT).exp_()  # from the token to the chunk's end
        L = _decay_matrices(s)
        CB = torch.bmm(Cs, Bs.transpose(1, 2)).view(c, b, g, 1, q, q)
        inside = torch.bmm((L * CB).view(-1, q, q), _scaled(xs, dts, _HEADS_FIRST).view(-1, q, p))

        states = x.new_empty(c + 1, b, g, n, r, p)  # [i]: the state before chunk i
        states[0] = initial_state.view(b, g, r, p, n).permute(0, 1, 4, 2, 3)
        inputs = _scaled(xs, dts * remaining, _GROUPS_FIRST).view(-1, q, r * p)
        torch.bmm(Bs.transpose(1, 2), inputs, out=states[1:].view(-1, n, r * p))
        decay = growth[:, :, -1].view(c, b, g, 1, r, 1)
        for i in range(c):
            states[i + 1].addcmul_(decay[i], states[i])
        carried = torch.bmm(Cs, states[:c].view(-1, n, r * p)).view(c, b, g, q, r, p)

        y = x.new_empty(b, c, q, g, r, p)
        inside = inside.view(c, b, g, r, q, p).permute(0, 1, 4, 2, 3, 5)
        torch.addcmul(inside, carried.transpose(2, 3), growth[..., None], out=y.transpose(0, 1))
        y = y.view(b, l, h, p)
        final_state = states[c].permute(0, 1, 3, 4, 2).reshape(b, h, p, n)
        ctx.save_for_backward(x, dt, A, Bs, Cs, D, s, L, CB, states, y)
        ctx.sizes = (b, c, q, g, r, p, n)
        return torch.addcmul(y, x, D[:, None]), final_state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, Bs, Cs, D, s, L, CB, states, y = ctx.saved_tensors
        b, c, q, g, r, p, n = ctx.sizes
        xs, dys = (t.reshape(b, c, q, g, r, p).transpose(0, 1) for t in (x, dout))
        dts = dt.reshape(b, c, q, g, r).transpose(0, 1)
        growth = s.clamp(min=_SMALLEST_EXPONENT).exp_()
        remaining = (s[:, :, -1:] - s).clamp_(min=_SMALLEST_EXPONENT).exp_()

        # Inside chunks: inside = M (dt x) with M = L * CB.
        dy_heads = _scaled(dys, torch.ones_like(s), _HEADS_FIRST).view(-1, q, p)
        dM = torch.bmm(dy_heads, _scaled(xs, dts, _HEADS_FIRST).view(-1, q, p).transpose(1, 2))
        dCB = dM.view(L.shape).mul_(L).sum(3).view(-1, q, q)
        u = torch.bmm((L * CB).view(-1, q, q).transpose(1, 2), dy_heads).view(c, b, g, r, q, p)

        # Through the states: carried = growth * (C state), state' = decay state + B^T (remaining dt x).
        dcarried = _scaled(dys, growth, _GROUPS_FIRST).view(-1, q, r * p)
        dstates = torch.empty_like(states)
        dstates[c] = dfinal.reshape(b, g, r, p, n).permute(0, 1, 4, 2, 3)
        torch.bmm(Cs.transpose(1, 2), dcarried, out=dstates[:c].view(-1, n, r * p))
        decay = growth[:, :, -1].view(c, b, g, 1, r, 1)
        for i in reversed(range(c)):
            dstates[i].addcmul_(decay[i], dstates[i + 1])
        before, dafter = states[:c].view(-1, n, r * p), dstates[1:].view(-1, n, r * p)
        dC = torch.bmm(dCB, Bs).baddbmm_(dcarried, before.transpose(1, 2))
        inputs = _scaled(xs, dts * remaining, _GROUPS_FIRST).view(-1, q, r * p)
        dB = torch.bmm(dCB.transpose(1, 2), Cs).baddbmm_(inputs, dafter.transpose(1, 2))
        u_states = torch.bmm(Bs, dafter).view(c, b, g, q, r, p)

        # Together: u is the gradient with respect to dt x, ds with respect to s.
        du = x.new_empty(b, c, q, g, r, p).transpose(0, 1)
        torch.addcmul(u.permute(0, 1, 4, 2, 3, 5), u_states.transpose(2, 3), remaining[..., None], out=du)
        xu = (xs * du).sum(-1)
        ds = (dys * y.view(b, c, q, g, r, p).transpose(0, 1)).sum(-1).addcmul_(dts, xu, value=-1)
        ds[:, :, -1] += (states[1:] * dstates[1:]).sum((3, 5))
        da = ds.flip(2).cumsum(2).flip(2)  # gradient with respect to dt A
        dx = du.mul_(dts[..., None]).addcmul_(dys, D.view(g, r, 1))

        shape = (b, c * q)
        dD = (dys * xs).sum((0, 1, 2, 5)).view(D.shape)
        dA = (dts * da).sum((0, 1, 2)).view(A.shape)
        ddt = xu.addcmul_(da, A.view(g, r)).transpose(0, 1).reshape(dt.shape)
        dB, dC = (t.view(c, b, g, q, n).permute(1, 0, 3, 2, 4).reshape(*shape, g, n) for t in (dB, dC))
        dinitial = dstates[0].permute(0, 1, 3, 4, 2).reshape(b, g * r, p, n)
        return dx.transpose(0, 1).reshape(x.shape), ddt, dA, dB, dC, dD, dinitial, None
