"""Stand-in for Transformer Engine's attention, in plain torch: whole rows and packed ones, on one rank or several.

With context parallelism a rank has its part of queries, keys and values. Transformer Engine passes keys and values
around the ranks; here all of them are gathered, and put under the mask that their places in the row ask for. The
places are those of Transformer Engine's own function, copied step by step from its kernel's arithmetic, apart from
`datasets/context_slices.py`: where the two disagree, a rank attends to the wrong tokens.

Source: transformer_engine 2.x, `pytorch/attention/dot_product_attention/{dot_product_attention,context_parallel}.py`
and `common/fused_attn/context_parallel.cu` (`thd_partition_indices_kernel`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def thd_get_partitioned_indices(cu_seqlens: Tensor, total_tokens: int, world_size: int, rank: int) -> Tensor:
    """Places in the row of each token that a rank holds, `[total_tokens / world_size]` int32."""
    assert (cu_seqlens % (2 * world_size) == 0).all()
    ends = cu_seqlens // world_size  # what a rank has of each document ends here
    token = torch.arange(total_tokens // world_size)
    document = torch.searchsorted(ends[1:].contiguous(), token, right=True)
    length = (ends[1:] - ends[:-1])[document]
    inside = token - ends[document]
    pieces_before = torch.where(inside < length // 2, rank, 2 * (world_size - 1) - rank)
    return (inside + ends[document] * world_size + length // 2 * pieces_before).to(torch.int32)


class _Gather(torch.autograd.Function):
    """All ranks' parts, one behind another; their gradients are summed over the ranks that used them."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(part) for _ in range(group.size())]
        dist.all_gather(parts, part.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient.chunk(ctx.group.size())[ctx.group.rank()], None


class DotProductAttention(nn.Module):
    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int,
        num_gqa_groups: int,
        attention_dropout: float,
        attn_mask_type: str,
        sequence_parallel: bool,
        tp_size: int,
        get_rng_state_tracker: Any,
        tp_group: Any,
        layer_number: int,
        attention_type: str,
        softmax_scale: float | None,
        cp_group: Any = None,
        cp_global_ranks: Any = None,
        cp_stream: Any = None,
        cp_comm_type: str = "p2p",
    ) -> None:
        super().__init__()
        assert (attn_mask_type, attention_type, attention_dropout) == ("causal", "self", 0.0)
        assert cp_comm_type == "p2p"
        self.softmax_scale, self.cp_group = softmax_scale, cp_group

    def get_extra_state(self) -> Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        assert state.numel() == 0

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        attn_mask_type: str,
        qkv_format: str = "sbhd",
        cu_seqlens_q: Tensor | None = None,
        cu_seqlens_kv: Tensor | None = None,
        max_seqlen_q: int | None = None,
        **unset: Any,
    ) -> Tensor:
        """[s, b, heads, d] to [s, b, heads * d]; packed [s, heads, d] to [s, heads * d]; s of this rank."""
        assert attn_mask_type == ("causal" if qkv_format == "sbhd" else "padding_causal")
        packed = qkv_format == "thd"
        if packed:
            assert cu_seqlens_q is cu_seqlens_kv
            assert max_seqlen_q == (cu_seqlens_q[1:] - cu_seqlens_q[:-1]).max()
            query, key, value = (t[:, None] for t in (query, key, value))
        size = self.cp_group.size() if self.cp_group is not None else 1
        tokens = query.shape[0] * size
        bounds = cu_seqlens_q if packed else torch.tensor([0, tokens])
        places = [torch.arange(tokens)]
        if size > 1:
            places = [thd_get_partitioned_indices(bounds, tokens, size, rank).long() for rank in range(size)]
            key, value = (_Gather.apply(t, self.cp_group) for t in (key, value))
        mine, every = places[self.cp_group.rank() if size > 1 else 0], torch.cat(places)
        of_place = torch.searchsorted(bounds[1:].contiguous(), torch.arange(tokens), right=True)
        mask = (mine[:, None] >= every) & (of_place[mine][:, None] == of_place[every])
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.softmax_scale, enable_gqa=True)
        out = out.permute(2, 0, 1, 3).flatten(2)
        return out[:, 0] if packed else out
