"""Grouped-query attention of the local backend.

Megatron-Core's `SelfAttention` does the projections, RoPE and the key/value cache; only the product of
queries, keys and values is ours, through torch's scaled dot product attention (core's own
`DotProductAttention` needs its fused CUDA softmax here). In a packed row every document attends to itself
alone: one product a document, so memory grows with the longest document and never with the row's square.
`read_prompts` and `decode` are the same layer over a cache whose rows have lengths of their own.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

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


class Turns(NamedTuple):
    """Of RoPE's angles at some positions."""

    cos: Tensor
    sin: Tensor


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

    def read_prompts(self, hidden: Tensor, keys: Tensor, values: Tensor, *, turns: Turns | None) -> Tensor:
        """Whole prompts of one length; sums over the tensor-parallel ranks are left to the caller, as in `decode`.

        Args:
            hidden: [s, b, h].
            keys: Filled up to s, [b, groups, tokens, d].
            values: As keys.
            turns: RoPE's, [s, 1, 1, 1, d]; None without positions.

        Returns:
            This rank's part of [s, b, h].
        """
        query, key, value = self._project(hidden, turns)
        query, key, value = query.flatten(-3, -2), key.squeeze(-2), value.squeeze(-2)
        for cached, new in ((keys, key), (values, value)):
            cached[:, :, : len(hidden)] = new.permute(1, 2, 0, 3)
        return F.linear(self.core_attention(query, key, value, None), self.linear_proj.weight)

    def decode(
        self,
        hidden: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        lengths: Tensor | int,
        used: int,
        bias: Tensor | None,
        turns: Turns | None,
    ) -> Tensor:
        """The next token of every row.

        Args:
            hidden: [b, h].
            keys: [b, groups, tokens, d]; the new token's are written at `lengths`.
            values: As keys.
            lengths: Cached tokens of each row, [b], or of all.
            used: Tokens of the longest row, the new one counted.
            bias: Of `decode_bias`.
            turns: RoPE's at `lengths`, [b, 1, 1, d]; None without positions.

        Returns:
            This rank's part of [b, h].
        """
        query, key, value = self._project(hidden, turns)
        if isinstance(lengths, int):
            keys.narrow(2, lengths, 1).copy_(key)
            values.narrow(2, lengths, 1).copy_(value)
        else:
            rows = torch.arange(len(hidden), device=hidden.device)
            keys[rows, :, lengths], values[rows, :, lengths] = key[:, :, 0], value[:, :, 0]
        out = F.scaled_dot_product_attention(  # the queries of a group as rows: no key is repeated for each head
            query,
            keys[:, :, :used],
            values[:, :, :used],
            attn_mask=bias,
            scale=self.core_attention.softmax_scale,
        )
        return F.linear(out.flatten(1), self.linear_proj.weight)

    def _project(self, hidden: Tensor, turns: Turns | None) -> tuple[Tensor, Tensor, Tensor]:
        """[..., h] to a group's queries [..., groups, q, d], key and value [..., groups, 1, d], turned by position."""
        groups, d = self.num_query_groups_per_partition, self.hidden_size_per_attention_head
        mixed = F.linear(hidden, self.linear_qkv.weight).unflatten(-1, (groups, -1, d))
        num_queries = mixed.shape[-2] - 2
        if turns is None:
            return mixed.split_with_sizes([num_queries, 1, 1], -2)
        turned, value = mixed.split_with_sizes([num_queries + 1, 1], -2)
        return *_turned(turned, turns).split_with_sizes([num_queries, 1], -2), value


def decode_bias(lengths: Tensor, *, shortest: int, longest: int, dtype: torch.dtype) -> Tensor | None:
    """What hides the cached tokens that a row does not have: 0, or -inf beyond its own new token.

    Args:
        lengths: Cached tokens of each row, [b].
        shortest: The smallest of them.
        longest: The largest of them.
        dtype: Of the queries.

    Returns:
        [b, 1, 1, longest + 1]; None where all are equally long.
    """
    if shortest == longest:
        return None
    is_beyond = torch.arange(longest + 1, device=lengths.device) > lengths[:, None]
    bias = torch.zeros(is_beyond.shape, dtype=dtype, device=lengths.device)
    return bias.masked_fill_(is_beyond, float("-inf"))[:, None, None]


def _turned(t: Tensor, turns: Turns) -> Tensor:
    """RoPE on pairs of channels half a head apart (Source: core 0.19, `rope_utils.py`, not interleaved)."""
    first, second = t.chunk(2, dim=-1)
    return t * turns.cos.to(t.dtype) + torch.cat((-second, first), dim=-1) * turns.sin.to(t.dtype)


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
