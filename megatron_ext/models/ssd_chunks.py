"""The SSD over whole chunks of tokens, forward and backward.

Inside a chunk the SSD is a masked attention, between chunks it is carried by the states. What a token
gives to its own output, dt_t x_t (C_t B_t) + D x_t, is kept apart from the rest, y'.

The backward is written by hand because of one identity: with s_t the sum of dt A over a chunk's tokens up
to t, and u_t the gradient that reaches dt_t x_t through later tokens,

    d loss / d s_t = dy_t . y'_t - u_t . dt_t x_t     (+ <dS, S> after the chunk at its last token)

because y'_t is linear in exp(s_t), and dt_t x_t meets later tokens through exp(-s_t) only. Two dot products
replace the row and column sums of a [q, q] matrix a head. With a token's own part inside y' and u both
terms would be large and their difference small under strong decay: the float32 gradient of A was ten
times less exact.

With `seq_idx`, what a token gives stops where the index changes: the decays between tokens of different
documents are zero, and s counts from the document's first token in the chunk. Decays are multiplied by zero,
not pushed down in the exponent, and s is a product with a matrix of ones, not a running sum less its value at
the boundary: no document moves a bit of another, its rounding included. The identity above holds within each
document.

Shapes: those of ssd.py, and
    c chunks   q tokens of a chunk   r = h / g heads of a group
    tokens first [c, b, q, g, r, p]   heads first [c, b, g, r, q, p]   groups first [c, b, g, q, r, p]
Heads first, products of one head run as [c b g r] small matrices; groups first, products with B or C,
which the heads of a group share, run as [c b g] matrices of width r p. Chunks come before rows, so that the
states before and after every chunk are two slices of one buffer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SMALLEST_EXPONENT = -80.0
"""exp(-80) = 1.8e-35 stands for all that is smaller: below, vectorised exp leaves its fast path (ten times slower)."""

_HEADS_FIRST = (0, 1, 3, 4, 2, 5)
_GROUPS_FIRST = (0, 1, 3, 2, 4, 5)


def _scaled(t: Tensor, weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """Multiplies t [c, b, q, g, r, p] by weight [c, b, q, g, r]; contiguous in the order asked for."""
    out = t.new_empty([t.shape[i] for i in order])
    return torch.mul(t.permute(order), weight[..., None].permute(order), out=out)


def _decays(s: Tensor, seq: Tensor | None) -> tuple[Tensor, Tensor]:
    """Decay from the state before the chunk to each token, and from each token to the chunk's end.

    Args:
        s: Sums of dt A, [c, b, q, g, r].
        seq: Document of each token, [c, b, q]; a state before a chunk is that of the token before it.

    Returns:
        Two of [c, b, q, g, r].
    """
    growth = s.clamp(min=_SMALLEST_EXPONENT).exp_()
    highest = None if seq is None else 0.0  # between documents the difference may be large, and inf * 0 is NaN
    remaining = (s[:, :, -1:] - s).clamp_(min=_SMALLEST_EXPONENT, max=highest).exp_()
    if seq is not None:
        before = torch.cat([seq[:1, :, 0], seq[:-1, :, -1]])  # the initial state belongs to the first document
        growth *= (seq == before[..., None])[..., None, None]
        remaining *= (seq == seq[:, :, -1:])[..., None, None]
    return growth, remaining


def _running_sums(t: Tensor, seq: Tensor | None, *, from_end: bool = False) -> Tensor:
    """Sums t [c, b, q, g, r] along each chunk, or each document in it, up to every token or from it on."""
    if seq is None:
        return t.flip(2).cumsum(2).flip(2) if from_end else t.cumsum(2)
    ones = (seq[..., :, None] == seq[..., None, :]).to(t.dtype)  # [c, b, q, q]
    ones = ones.triu_() if from_end else ones.tril_()
    return torch.matmul(ones, t.flatten(3)).view(t.shape)


def _decay_matrices(s: Tensor, seq: Tensor | None) -> Tensor:
    """exp(s_i - s_j) where i > j within a document, else 0: [c, b, q, g, r] -> [c, b, g, r, q, q].

    Above the diagonal the exponent is clamped, then dropped: masking it with -inf made exp 15 times slower.
    """
    s = s.permute(0, 1, 3, 4, 2).contiguous()
    exponent = s[..., :, None] - s[..., None, :]
    matrices = exponent.clamp_(_SMALLEST_EXPONENT, 0.0).exp_().tril_(-1)
    if seq is not None:
        matrices *= seq[:, :, None, None, :, None] == seq[:, :, None, None, None, :]
    return matrices


def _own_products(CB: Tensor) -> Tensor:
    """C_t B_t of every token with itself: CB [c, b, g, 1, q, q] -> [c, b, q, g, 1]."""
    return CB.diagonal(dim1=-2, dim2=-1).permute(0, 1, 4, 2, 3)


class ChunkedSSD(torch.autograd.Function):
    """Arguments as in `ssd_chunked`, all in one dtype, the length a multiple of the chunk q; D is not None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        initial_state: Tensor,
        seq_idx: Tensor | None,
        q: int,
    ) -> tuple[Tensor, Tensor]:
        """Returns y [b, l, h, p] and the final state [b, h, p, n]."""
        b, length, h, p = x.shape
        g, n = B.shape[2:]
        c, r = length // q, h // g
        xs = x.reshape(b, c, q, g, r, p).transpose(0, 1)
        dts = dt.reshape(b, c, q, g, r).transpose(0, 1)
        Bs, Cs = (t.reshape(b, c, q, g, n).permute(1, 0, 3, 2, 4).reshape(c * b * g, q, n) for t in (B, C))
        seq = None if seq_idx is None else seq_idx.reshape(b, c, q).transpose(0, 1)

        s = _running_sums(dts * A.view(g, r), seq)  # [c, b, q, g, r]
        growth, remaining = _decays(s, seq)
        L = _decay_matrices(s, seq)
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
        out = torch.empty_like(y)
        own_weight = torch.addcmul(D.view(g, r), dts, _own_products(CB))
        torch.addcmul(y.transpose(0, 1), xs, own_weight[..., None], out=out.transpose(0, 1))
        final_state = states[c].permute(0, 1, 3, 4, 2).reshape(b, h, p, n)
        ctx.save_for_backward(x, dt, A, Bs, Cs, D, s, L, CB, states, y, seq)
        ctx.sizes = (b, c, q, g, r, p, n)
        return out.view(x.shape), final_state

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of forward's arguments."""
        x, dt, A, Bs, Cs, D, s, L, CB, states, y, seq = ctx.saved_tensors
        b, c, q, g, r, p, n = ctx.sizes
        xs, dys = (t.reshape(b, c, q, g, r, p).transpose(0, 1) for t in (x, dout))
        dts = dt.reshape(b, c, q, g, r).transpose(0, 1)
        growth, remaining = _decays(s, seq)

        # Inside chunks: inside = M (dt x) with M = L * CB.
        dy_heads = dys.permute(_HEADS_FIRST).reshape(-1, q, p)
        dM = torch.bmm(dy_heads, _scaled(xs, dts, _HEADS_FIRST).view(-1, q, p).transpose(1, 2))
        dCB = dM.view(L.shape).mul_(L).sum(3)
        dweight = (dys * xs).sum(-1)  # of a token's own weight, dt_t (C_t B_t) + D
        dCB.diagonal(dim1=-2, dim2=-1).add_((dts * dweight).sum(-1).transpose(2, 3))
        dCB = dCB.view(-1, q, q)
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
        ds = (dys * y.transpose(0, 1)).sum(-1).addcmul_(dts, xu, value=-1)
        ds[:, :, -1] += (states[1:] * dstates[1:]).sum((3, 5))
        da = _running_sums(ds, seq, from_end=True)  # gradient with respect to dt A
        own_weight = torch.addcmul(D.view(g, r), dts, _own_products(CB))
        dx = du.mul_(dts[..., None]).addcmul_(dys, own_weight[..., None])
        ddt = xu.addcmul_(da, A.view(g, r)).addcmul_(dweight, _own_products(CB))

        dA = (dts * da).sum((0, 1, 2)).view(A.shape)
        dD = dweight.sum((0, 1, 2)).view(D.shape)
        ddt = ddt.transpose(0, 1).reshape(dt.shape)
        dB, dC = (t.view(c, b, g, q, n).permute(1, 0, 3, 2, 4).reshape(b, c * q, g, n) for t in (dB, dC))
        dinitial = dstates[0].permute(0, 1, 3, 4, 2).reshape(b, g * r, p, n)
        return dx.transpose(0, 1).reshape(x.shape), ddt, dA, dB, dC, dD, dinitial, None, None
