"""The local backend's model over cached texts: whole prompts, then one token of every text at a time.

The weights are the training model's own; the wiring between them is core's, less what training needs around it
(core 0.19, `ssm/mamba_layer.py`, `transformer/transformer_layer.py`, `models/hybrid/hybrid_block.py`): at a token a
step, core's own path through its layers took longer than the arithmetic. Projections multiply this rank's slice and
add up over the tensor-parallel ranks, so every rank holds whole hidden states, whatever `sequence_parallel` says.

Shapes: s tokens, b texts, n slots in use, v padded vocabulary.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.models.hybrid.hybrid_model import HybridModel
from torch import Tensor

from megatron_ext.models.attention import decode_bias
from megatron_ext.recipe.layer_pattern import ATTENTION, MAMBA
from megatron_ext.rollout.cache import RolloutCache
from megatron_ext.runtime.device import plain_torch


class CachedForward:
    """Reads prompts into a cache and advances cached texts.

    Args:
        model: The whole model on the local backend: one pipeline stage, any number of tensor-parallel ranks.
        max_tokens: Of a text.

    Attributes:
        model: As given.
        tp_group: Its tensor-parallel ranks.
    """

    def __init__(self, model: HybridModel, *, max_tokens: int) -> None:
        self.model = model
        self.tp_group = model.pg_collection.tp
        self._layers = list(zip(model.decoder.layer_type_list, model.decoder.layers, strict=True))
        has_rope = model.position_embedding_type == "rope"
        self._angles = model.rotary_pos_emb(max_tokens)[:, 0, 0] if has_rope else None  # [max_tokens, width]

    @torch.inference_mode()
    @plain_torch()
    def read_prompts(self, tokens: Tensor, cache: RolloutCache) -> Tensor:
        """Reads whole prompts of one length.

        Args:
            tokens: [b, s].
            cache: Of b slots and at least s tokens; filled.

        Returns:
            Logits after the last token, [b, v] float32.
        """
        hidden = self._embed(tokens.t())  # [s, b, h]
        angles = None if self._angles is None else self._angles[: len(hidden), None, None]
        for (symbol, layer), state in zip(self._layers, cache.layers, strict=True):
            if symbol == MAMBA:
                change = layer.mixer.read_prompts(layer.norm(hidden), *state)
            elif symbol == ATTENTION:
                change = layer.self_attention.read_prompts(layer.input_layernorm(hidden), *state, angles=angles)
            else:
                change = _mlp(layer, hidden)
            hidden = hidden + self._added_up(change)
        cache.lengths.fill_(len(hidden))
        return self._logits(hidden[-1])

    @torch.inference_mode()
    @plain_torch()
    def decode(self, tokens: Tensor, cache: RolloutCache, *, shortest: int, longest: int) -> Tensor:
        """Appends one token to each of the first n texts of the cache.

        Args:
            tokens: [n].
            cache: Advanced in place.
            shortest: Tokens of the shortest of these texts, the new one not counted.
            longest: The same of the longest.

        Returns:
            Logits after these tokens, [n, v] float32.
        """
        num_rows = len(tokens)
        lengths = cache.lengths[:num_rows]
        hidden = self._embed(tokens)  # [n, h]
        bias = decode_bias(lengths, shortest=shortest, longest=longest, dtype=hidden.dtype)
        angles = None if self._angles is None else self._angles[lengths, None]  # [n, 1, width]
        for (symbol, layer), states in zip(self._layers, cache.layers, strict=True):
            state = [part[:num_rows] for part in states]
            if symbol == MAMBA:
                change = layer.mixer.decode(layer.norm(hidden), *state)
            elif symbol == ATTENTION:
                change = layer.self_attention.decode(
                    layer.input_layernorm(hidden), *state, lengths=lengths, used=longest + 1, bias=bias, angles=angles
                )
            else:
                change = _mlp(layer, hidden)
            hidden = hidden + self._added_up(change)
        lengths += 1
        return self._logits(hidden)

    def _embed(self, tokens: Tensor) -> Tensor:
        words = self.model.embedding.word_embeddings
        if self.tp_group.size() == 1:
            return F.embedding(tokens, words.weight)
        local = tokens - words.vocab_start_index
        is_ours = (local >= 0) & (local < len(words.weight))
        return self._added_up(F.embedding(local * is_ours, words.weight) * is_ours[..., None])

    def _logits(self, hidden: Tensor) -> Tensor:
        model = self.model
        is_tied = model.share_embeddings_and_output_weights
        weight = model.shared_embedding_or_output_weight() if is_tied else model.output_layer.weight
        logits = F.linear(model.decoder.final_norm(hidden), weight)
        if self.tp_group.size() > 1:
            parts = [torch.empty_like(logits) for _ in range(self.tp_group.size())]
            dist.all_gather(parts, logits, group=self.tp_group)
            logits = torch.cat(parts, dim=-1)
        return logits.float()

    def _added_up(self, part: Tensor) -> Tensor:
        if self.tp_group.size() > 1:
            part = part.contiguous()
            dist.all_reduce(part, group=self.tp_group)
        return part


def _mlp(layer: torch.nn.Module, hidden: Tensor) -> Tensor:
    mlp = layer.mlp
    wide = mlp.activation_func(F.linear(layer.pre_mlp_layernorm(hidden), mlp.linear_fc1.weight))
    return F.linear(wide, mlp.linear_fc2.weight)
