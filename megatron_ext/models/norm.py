"""RMSNorm, plain and gated, with the names and marks that Megatron-Core expects.

    plain   y = w * x / rms(x)
    gated   y = w * h / rms(h),  h = x * silu(z), rms over each group of channels

Both compute in float32 at least (Source: Zhang and Sennrich, arXiv 1910.07467; the gated form is
Mamba-2's, arXiv 2405.21060, with the gate before the norm).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import Tensor, nn

from megatron_ext.models import kernels
from megatron_ext.runtime.device import device


class RMSNorm(nn.Module):
    """RMSNorm over the hidden size.

    Its weight carries the `sequence_parallel` mark, by which Megatron-Core adds up the gradients of
    ranks that saw different tokens; core's own `WrappedTorchNorm` refuses sequence parallelism.

    Args:
        config: Gives the parameter dtype and whether sequences are split over tensor-parallel ranks.
        hidden_size: Channels of the input.
        eps: Added to the mean square.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device()))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Normalises x [..., hidden_size]."""
        if torch.is_inference_mode_enabled():
            return _normalised(wide(x), self.weight, self.eps).to(x.dtype)
        if kernels.is_half_on_gpu(x):
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)  # one kernel, float32 within
        return _GatedRMSNorm.apply(x, None, self.weight, self.eps, self.weight.numel())


class GatedRMSNorm(nn.Module):
    """RMSNorm of x * silu(z) over each group of channels; the weight is split over tensor-parallel ranks.

    Args:
        config: Gives the parameter dtype and epsilon.
        width: Channels on this rank.
        group_size: Channels that share one mean square.
        pg_collection: Process groups; `tp` shards the weight in checkpoints.
    """

    def __init__(
        self, config: TransformerConfig, width: int, *, group_size: int, pg_collection: ProcessGroupCollection
    ) -> None:
        super().__init__()
        self.eps = config.layernorm_epsilon
        self.group_size = group_size
        self.tp_group = pg_collection.tp
        self.weight = nn.Parameter(torch.ones(width, dtype=config.params_dtype, device=device()))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Normalises x gated by z, both [..., width]."""
        if torch.is_inference_mode_enabled():
            gated = F.silu(wide(z)).mul_(wide(x)).unflatten(-1, (-1, self.group_size))
            return _normalised(gated, self.weight.view(-1, self.group_size), self.eps).flatten(-2).to(x.dtype)
        if kernels.has_gated_norm(x):
            return kernels.fused_gated_norm(x, z, self.weight, eps=self.eps, group_size=self.group_size)
        return _GatedRMSNorm.apply(x, z, self.weight, self.eps, self.group_size)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The weight as a tensor sharded along its only dimension (Source: core's ExtendedRMSNorm)."""
        assert metadata is not None, "MambaMixer.sharded_state_dict always passes metadata"
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )


class _GatedRMSNorm(torch.autograd.Function):
    """Both norms; z None means no gate. Saves only its inputs and one number a group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor | None, weight: Tensor, eps: float, group_size: int) -> Tensor:
        h = wide(x) if z is None else F.silu(wide(z)).mul_(wide(x))
        groups = h.unflatten(-1, (-1, group_size))
        mean_square = torch.linalg.vector_norm(groups, dim=-1, keepdim=True).square_().div_(group_size)
        scale = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, z, weight, scale)
        ctx.group_size = group_size
        return (groups * scale).flatten(-2).mul_(wide(weight)).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, z, weight, scale = ctx.saved_tensors
        xs, dout = wide(x), wide(dout)
        gate = None if z is None else F.silu(wide(z))
        normal = (xs if gate is None else xs * gate).unflatten(-1, (-1, ctx.group_size)) * scale
        dweight = (dout * normal.flatten(-2)).flatten(0, -2).sum(0).to(weight.dtype)
        dh = (dout * wide(weight)).unflatten(-1, (-1, ctx.group_size))
        share = (dh * normal).mean(-1, keepdim=True)
        dh = dh.addcmul_(normal, share, value=-1).mul_(scale).flatten(-2)
        if gate is None:
            return dh.to(x.dtype), None, dweight, None, None
        dz = torch.ops.aten.silu_backward(dh * xs, wide(z))
        return dh.mul_(gate).to(x.dtype), dz.to(z.dtype), dweight, None, None


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The plain norm of float32 x without a backward, for decoding.

    On a GPU it is one kernel; on a CPU torch's `rms_norm` is eleven operations, and took twice as long as these.
    """
    if x.device.type != "cpu":
        return F.rms_norm(x, x.shape[-1:], eps=eps).mul_(wide(weight))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scale = torch.addcmul(_scalar(eps, x.dtype), length, length, value=1 / x.shape[-1]).rsqrt_()
    return scale.mul(x).mul_(wide(weight))


@functools.cache
def _scalar(value: float, dtype: torch.dtype) -> Tensor:
    """A tensor for operations that take no Python number."""
    return torch.tensor(value, dtype=dtype, device="cpu")


def wide(t: Tensor) -> Tensor:
    """Float32 at least."""
    return t if t.dtype == torch.float32 else t.to(torch.promote_types(t.dtype, torch.float32))
