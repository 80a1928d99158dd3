"""Grouped-query attention of the local backend.

Megatron-Core's `SelfAttention` does the projections, RoPE and the key/value cache; only the product of
queries, keys and values is ours, through torch's scaled dot product attention (core's own
`DotProductAttention` needs its fused CUDA softmax here). In a packed row every document attends to itself
alone: one product a document, so memory grows with the longest document and never with the row's square.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from megatron_ext.models.limits import (
    refuse_context_parallel,
    refuse_dynamic_batching,
    refuse_packed_decoding,
    refuse_unlike_row,
)

_VARLEN_TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Not yet in torch 2.11."""


class CausalSelfAttention(SelfAttention):
    """Core's self attention, with its cache on the device of the weights and its limits said aloud."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attends within every row, or every document of a packed row.

        Args:
            hidden_states: [s, b, h].
            attention_mask: Ignored by the core attention: the mask is causal.
            *args: Passed on.
            **kwargs: Passed on; with `packed_seq_params` RoPE starts anew at every document.

        Returns:
            [s, b, h] and the bias that the caller adds, None here.

        Raises:
            UnsupportedError: For continuous batching, and packed rows that are decoded from a cache.
        """
        refuse_dynamic_batching(kwargs.get("inference_context"))
        if kwargs.get("inference_context") is not None:
            refuse_packed_decoding(kwargs.get("packed_seq_params"))
        return super().forward(hidden_states, attention_mask, *args, **kwargs)

    def _allocate_memory(
        self, inference_max_sequence_length: int, batch_size: int, dim: int, dtype: torch.dtype
    ) -> Tensor:
        """A cache of keys or values, [s, b, groups, dim] (core 0.19 allocates it on a GPU always)."""
        groups = self.num_query_groups_per_partition
        return torch.empty(
            inference_max_sequence_length, batch_size, groups, dim, dtype=dtype, device=self.linear_qkv.weight.device
        )


class ScaledDotProductAttention(MegatronModule):
    """softmax(q k^T / sqrt(d)) v with a causal mask.

    Takes the arguments of core's `DotProductAttention`, so that a spec can name either.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
    ) -> None:
        super().__init__(config)
        refuse_context_parallel(config.context_parallel_size)
        assert attn_mask_type == AttnMaskType.causal, f"layer {layer_number}: mask {attn_mask_type} is not causal"
        self.softmax_scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attends from the last s_q of s_k tokens, or within each document of a packed row.

        Args:
            query: [s_q, b, heads, d]; of a packed row [s, heads, d].
            key: [s_k, b, groups, d], s_k >= s_q: earlier tokens come from the cache; packed [s, groups, d].
            value: As key.
            attention_mask: Ignored: the mask is causal.
            attn_mask_type: Ignored for the same reason; core passes `no_mask` while it decodes one token.
            attention_bias: Must be None.
            packed_seq_params: Where the documents of a packed row begin.

        Returns:
            [s_q, b, heads * d]; of a packed row [s, 1, heads * d].
        """
        assert attention_bias is None, "the local backend has no attention bias"
        if packed_seq_params is None:
            return self._attend(query, key, value)
        refuse_unlike_row(packed_seq_params, tokens=query.shape[0], rows=1 if query.dim() == 3 else query.shape[1])
        if self._has_varlen(query, key):
            return self._attend_varlen(query, key, value, packed_seq_params)
        lengths = packed_seq_params.cu_seqlens_q.diff().tolist()
        documents = zip(*(t[:, None].split(lengths) for t in (query, key, value)), strict=True)
        return torch.cat([self._attend(*document) for document in documents])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        num_queries, num_keys = q.shape[2], k.shape[2]
        mask = None
        if 1 < num_queries < num_keys:
            ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device)
            mask = ones.tril(num_keys - num_queries)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=1 < num_queries == num_keys,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.softmax_scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return out.permute(2, 0, 1, 3).flatten(2)

    def _has_varlen(self, query: Tensor, key: Tensor) -> bool:
        """Whether torch's variable-length flash attention takes it: half precision, a GPU, no dropout."""
        is_half = query.dtype in (torch.bfloat16, torch.float16)
        takes_heads = _VARLEN_TAKES_GROUPS or query.shape[1] == key.shape[1]
        return takes_heads and is_half and query.device.type != "cpu" and not (self.training and self.dropout)

    def _attend_varlen(self, query: Tensor, key: Tensor, value: Tensor, packed_seq_params: Any) -> Tensor:
        bounds, longest = packed_seq_params.cu_seqlens_q, packed_seq_params.max_seqlen_q
        out = varlen_attn(
            query,
            key,
            value,
            bounds,
            bounds,
            longest,
            longest,
            scale=self.softmax_scale,
            window_size=(-1, 0),  # all tokens before, none after: causal
            **({"enable_gqa": True} if query.shape[1] != key.shape[1] else {}),
        )
        return out.flatten(1)[:, None]
